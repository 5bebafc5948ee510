"""Train, test and talk to small dialog models.

Importing this module imports no torch: each public name is loaded when it is first used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dialogkit.api.inference import evaluate as evaluate
    from dialogkit.api.inference import generate as generate
    from dialogkit.api.training import resume as resume
    from dialogkit.api.training import stop as stop
    from dialogkit.api.training import train as train
    from dialogkit.api.training import train_single_model as train_single_model
    from dialogkit.config.load import load_run_config as load_run_config
    from dialogkit.config.run import RunConfig as RunConfig
    from dialogkit.dialog import Dialog as Dialog
    from dialogkit.dialog import Message as Message
    from dialogkit.errors import DialogKitError as DialogKitError
    from dialogkit.examples import copy_examples as copy_examples
    from dialogkit.services.evaluate import EvaluateResult as EvaluateResult
    from dialogkit.services.export import ExportResult as ExportResult
    from dialogkit.services.export import export as export
    from dialogkit.services.generate import GenerateResult as GenerateResult
    from dialogkit.services.inspect import InspectResult as InspectResult
    from dialogkit.services.inspect import inspect_data as inspect_data
    from dialogkit.services.models import list_models as list_models
    from dialogkit.services.plan import PlanResult as PlanResult
    from dialogkit.services.plan import plan as plan
    from dialogkit.services.push import PushResult as PushResult
    from dialogkit.services.push import push as push
    from dialogkit.services.serve import serve as serve
    from dialogkit.services.training.result import TrainResult as TrainResult

_MODULES = {
    "api.inference": ("evaluate", "generate"),
    "api.training": ("resume", "stop", "train", "train_single_model"),
    "config.load": ("load_run_config",),
    "config.run": ("RunConfig",),
    "dialog": ("Dialog", "Message"),
    "errors": ("DialogKitError",),
    "examples": ("copy_examples",),
    "services.evaluate": ("EvaluateResult",),
    "services.export": ("ExportResult", "export"),
    "services.generate": ("GenerateResult",),
    "services.inspect": ("InspectResult", "inspect_data"),
    "services.models": ("list_models",),
    "services.plan": ("PlanResult", "plan"),
    "services.push": ("PushResult", "push"),
    "services.serve": ("serve",),
    "services.training.result": ("TrainResult",),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "IPython" in sys.modules:
    from dialogkit.api.shell import show_sentences

    show_sentences()
