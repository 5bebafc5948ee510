"""Replies to prompts, by one model or several side by side."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError
from dialogkit.inference.results import ReplyResult, StreamSink, reply_results
from dialogkit.services.result import Result
from dialogkit.services.runs.resolve import Loadable, output_option, resolve_model
from dialogkit.system.compute_lock import alone


class GenerateResult(Result):
    """Replies, prompt by prompt in each model."""

    replies: list[ReplyResult]
    notes: list[str] = Field(default_factory=list)
    """What was used of each model's own settings, where that was asked for."""

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
        on_text: takes the text of a single reply as it grows.

    Raises: ModelError, UnavailableError, ConfigError.
    """
    config = config or GenerateConfig()
    names: list[str | None] = [None]
    if model is not None:
        names = [str(model)] if isinstance(model, str | Path) else [str(name) for name in model]
    if prompts is None:
        prompts = config.test_prompts
    if not isinstance(prompts, str) and not (
        isinstance(prompts, Sequence) and all(isinstance(text, str) for text in prompts)
    ):
        raise ConfigError(f"prompts must be text or a list of texts, not {prompts!r}")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    texts = [text.strip() for text in texts]
    if not texts or not all(texts):
        words = " ".join(["dialogkit generate", *(name for name in names if name)])
        raise ConfigError("a prompt is empty", hint=f'{words} --prompt "Hello!"')
    # All names are looked up first: a typing error in the last must not cost the loading of the others.
    chosen = [resolve_model(name, output=output) for name in names]
    settings, notes = sampling_of(chosen, config, command="generate", output=output)

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


def sampling_of(
    models: Sequence[Loadable], config: GenerateConfig, *, command: str, output: str | Path
) -> tuple[list[GenerateConfig], list[str]]:
    """Return the sampling settings of each model, and what was used of its own ones where `config` asks for them.

    Raises: ModelError, with the command without them, if they cannot be read or are out of range.
    """
    if not config.use_model_settings:
        return [config] * len(models), []
    from dialogkit.models.generation import choose_settings

    settings, notes = [], []
    for loadable in models:
        typed = loadable.known_as if loadable.run else loadable.model.source or loadable.name
        hint = f"dialogkit {command} {shlex.quote(typed)}{output_option(output)}"
        chosen = choose_settings(config, loadable.model, hint=hint)
        settings.append(chosen.config)
        notes.append(f"{loadable.known_as}: {chosen.note}")
    return settings, notes
