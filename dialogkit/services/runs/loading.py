"""Load a model with its tokenizer for inference."""

from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.errors import UnavailableError
from dialogkit.hints import Change
from dialogkit.services.runs.resolve import Loadable

if TYPE_CHECKING:
    from dialogkit.models.tokenizer import ChatTokenizer


class LoadedModel(NamedTuple):
    """A float32 model on its device, with its tokenizer."""

    name: str
    model: Any
    tokenizer: "ChatTokenizer"
    context: int
    """Longest sequence, in tokens."""
    device: str


def load_for_inference(loadable: Loadable, *, device: str) -> LoadedModel:
    """Return the model and tokenizer of a MODEL argument.

    Raises: ModelError; UnavailableError, also if the weights do not fit into memory.
    """
    from dialogkit.config.runtime import RuntimeConfig
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.models.build import build_model
    from dialogkit.models.context import context_length
    from dialogkit.models.tokenizer import load_tokenizer
    from dialogkit.system.memory import free_bytes

    runtime = resolve_runtime(RuntimeConfig.model_validate({"device": device}))
    tokenizer = load_tokenizer(loadable.model)
    model = build_model(loadable.model, tokenizer, room=free_bytes()).to(runtime.device).eval()
    return LoadedModel(loadable.name, model, tokenizer, context_length(model.config), runtime.device)


def load_for_replies(loadable: Loadable, *, device: str, int8: bool = False) -> LoadedModel:
    """Return the model and tokenizer of a MODEL argument, ready to answer one prompt at a time fast.

    With `int8` the weights of linear layers are rounded to 8 bits; see `prepare_for_replies`.

    Raises: as `load_for_inference`; UnavailableError for `int8` on another device than the CPU.
    """
    from dialogkit.inference.products import prepare_for_replies

    loaded = load_for_inference(loadable, device=device)
    if loaded.device == "cpu":
        prepare_for_replies(loaded.model, int8=int8)
    elif int8:
        raise UnavailableError(
            f"int8 weights make replies faster on the CPU only, and {loaded.name} is on {loaded.device}",
            hint=Change({"runtime.device": "cpu"}),
        )
    return loaded


def int8_note(loadable: Loadable) -> str:
    """Return what is told where a model replies with int8 weights."""
    return f"{loadable.display_name}: replies on the CPU, with weights of 8 bits"
