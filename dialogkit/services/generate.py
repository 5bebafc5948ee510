"""Replies to prompts, by one model or several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError
from dialogkit.hints import Call
from dialogkit.inference.results import ReplyResult, StreamSink, reply_results
from dialogkit.services.result import Result
from dialogkit.services.runs.resolve import Loadable, resolve_model
from dialogkit.system.compute_lock import alone


class GenerateResult(Result):
    """Replies, prompt by prompt in each model."""

    replies: list[ReplyResult]
    notes: list[str] = Field(default_factory=list)
    """What was used of each model's own sampling settings, if `use_model_settings` is on."""

    @property
    def text(self) -> str:
        """The first reply's text."""
        return self.replies[0].reply


@alone()
def generate(
    model: str | Path | Sequence[str] | None = None,
    prompts: str | Sequence[str] | None = None,
    *,
    system: str | None = None,
    config: GenerateConfig | None = None,
    output: str | Path = DEFAULT_OUTPUT,
    device: str = "auto",
    on_text: StreamSink | None = None,
) -> GenerateResult:
    """Return replies to prompts.

    Args:
        model: catalogue name, run, folder or hub id, or several of them; None is the newest finished run.
        prompts: one prompt or several; None takes the built-in test prompts.
        system: system text before every prompt.
        config: sampling settings.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.
        on_text: receives the text of a single reply as it grows.

    Raises: ModelError, UnavailableError, ConfigError.
    """
    config = config or GenerateConfig()
    names = names_of(model)
    texts = _texts(config.test_prompts if prompts is None else prompts, names)
    # Look up all names first: a typo in the last must not cost the loading of the others.
    chosen = [resolve_model(name, output=output) for name in names]
    settings, notes = sampling_of(chosen, config, verb="generate", output=output)

    from dialogkit.inference.replies import generate_replies
    from dialogkit.services.runs.loading import load_for_inference

    start = [Message("system", system)] if system else []
    replies = []
    for loadable, config in zip(chosen, settings, strict=True):
        loaded = load_for_inference(loadable, device=device)
        made = generate_replies(
            loaded.model,
            loaded.tokenizer,
            [[*start, Message("user", text)] for text in texts],
            config,
            context=loaded.context,
            device=loaded.device,
            on_text=on_text,
        )
        replies += reply_results(loaded.name, texts, made)
    return GenerateResult(replies=replies, notes=notes)


def names_of(model: str | Path | Sequence[str] | None) -> tuple[str | None, ...]:
    """Return the names in a `model` argument; None is the newest finished run."""
    if model is None:
        return (None,)
    return (str(model),) if isinstance(model, str | Path) else tuple(map(str, model))


def _texts(prompts: str | Sequence[str], models: Sequence[str | None]) -> list[str]:
    """Return the prompts without surrounding blanks. Raises: ConfigError if one is empty or not text."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, Sequence) or not all(isinstance(text, str) for text in prompts):
        raise ConfigError(f"prompts must be text or a list of texts, not {prompts!r}")
    texts = [text.strip() for text in prompts]
    if not texts or not all(texts):
        raise ConfigError("a prompt is empty", hint=Call("generate", *filter(None, models[:1]), prompt="Hello!"))
    return texts


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

    elsewhere: dict[str, Any] = {} if Path(output) == Path(DEFAULT_OUTPUT) else {"output_dir": str(output)}
    settings, notes = [], []
    for loadable in models:
        name = loadable.known_as if loadable.run else loadable.model.source or loadable.name
        chosen = choose_settings(config, loadable.model, hint=Call(verb, name, **elsewhere))
        settings.append(chosen.config)
        notes.append(f"{loadable.known_as}: {chosen.note}")
    return settings, notes
