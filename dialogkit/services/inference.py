"""What generating, chatting and evaluating have in common: names of models, sampling settings, and hints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dialogkit.config.generate import GenerateConfig
from dialogkit.errors import ConfigError, DialogKitError
from dialogkit.hints import Call, Change
from dialogkit.services.runs.resolve import Loadable, output_of
from dialogkit.services.training.result import TrainResult

Models = str | Path | TrainResult | Sequence[str | Path | TrainResult] | None
"""A `model` argument: a catalogue name, run, folder, hub id or result of a training, or several of them."""


def names_of(model: Models) -> tuple[str | None, ...]:
    """Return the names in a `model` argument; None is the newest finished run. Raises: ConfigError for none."""
    if model is None:
        return (None,)
    several = (model,) if isinstance(model, str | Path | TrainResult) else tuple(model)
    if not several:
        raise ConfigError("no model is given", hint=Call("runs list"))
    return tuple(one.run_dir if isinstance(one, TrainResult) else str(one) for one in several)


def sampling_of(
    models: Sequence[Loadable], config: GenerateConfig, *, verb: str, output: str | Path
) -> tuple[list[GenerateConfig], list[str]]:
    """Return the sampling settings of each model, and a note on what was used of the model's own settings.

    Without `use_model_settings` there are no notes.

    Raises: ModelError if the model's own settings cannot be read or are out of range; its hint is the same `verb`
        without them.
    """
    if not config.use_model_settings:
        return [config] * len(models), []
    from dialogkit.models.generation import choose_settings

    settings, notes = [], []
    for loadable in models:
        name = loadable.display_name if loadable.run else loadable.model.source or loadable.name
        own, note = choose_settings(config, loadable.model, hint=Call(verb, name, **output_of(output)))
        settings.append(own)
        notes.append(f"{loadable.display_name}: {note}")
    return settings, notes


@contextmanager
def hints_for(loadable: Loadable) -> Iterator[None]:
    """Replace hints that would change a setting of the model: only `train` takes one."""
    try:
        yield
    except DialogKitError as error:
        if isinstance(error.hint, Change) and any(name.startswith("model.") for name in error.hint.settings):
            error.hint = Call("train", loadable.model.source or loadable.name, settings=error.hint.settings)
        raise
