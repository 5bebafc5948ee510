"""Replies to prompts, by one model or several side by side."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, computed_field

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError
from dialogkit.services.alone import alone
from dialogkit.services.models import DEFAULT_OUTPUT, Loadable, output_option, resolve_model
from dialogkit.services.result import Result

if TYPE_CHECKING:
    from dialogkit.inference.session import Reply

StreamSink = Callable[[str], None]


class ReplyResult(Result):
    """One reply and how it came about."""

    model: str
    prompt: str
    reply: str
    tokens: int
    """Generated tokens, the end of turn included."""
    seconds: float
    """Wall time from the start of its batch to its last token."""
    stop_reason: str
    """end of turn, length, or context full."""
    cut_tokens: int = 0
    """Tokens at the beginning of the prompt that the context had no room for."""
    reference: str | None = None
    """The answer in the dataset, where the prompt is a held-out dialog's."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_s(self) -> float:
        """Tokens of this reply by its seconds."""
        return self.tokens / max(self.seconds, 1e-9)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def repetition(self) -> float:
        """Share of the sequences of three words that were there before: 0 for none, towards 1 for a loop."""
        words = self.reply.split()
        triples = list(zip(words, words[1:], words[2:], strict=False))
        return 1 - len(set(triples)) / len(triples) if triples else 0.0

    @property
    def succeeded(self) -> bool:
        """Whether there is any text."""
        return bool(self.reply)


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

    from dialogkit.inference.session import generate_replies
    from dialogkit.services.loading import load_for_inference

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


def reply_results(
    model: str, prompts: Sequence[str], replies: Sequence["Reply"], references: Sequence[str | None] = ()
) -> list[ReplyResult]:
    """Return the replies of a model, each with its prompt, and with its reference where there are any."""
    return [
        ReplyResult(
            model=model,
            prompt=prompt,
            reply=reply.text,
            tokens=reply.tokens,
            seconds=reply.seconds,
            stop_reason=reply.stop_reason,
            cut_tokens=reply.cut_tokens,
            reference=reference,
        )
        for prompt, reply, reference in zip(prompts, replies, references or [None] * len(prompts), strict=True)
    ]
