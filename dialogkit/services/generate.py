"""Generates replies to prompts, with one model or several side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from dialogkit.config.base import Result
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError
from dialogkit.hints import Call, Change
from dialogkit.inference.results import ReplyResult, StreamSink, reply_results
from dialogkit.services.inference import Models, hints_for, names_of, sampling_of
from dialogkit.services.inference_memory import replies_at_once
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.system.compute_lock import alone
from dialogkit.text import without_surrogates


class GenerateResult(Result):
    """Replies, prompt by prompt for each model."""

    replies: list[ReplyResult]
    notes: list[str] = Field(default_factory=list)
    """What was used of each model's own sampling settings, if `use_model_settings` is on; rounded weights;
    how prompts were changed to fit the chat template."""

    @property
    def text(self) -> str:
        """The first reply's text."""
        return self.replies[0].reply

    def repr_fields(self) -> Iterable[tuple[str, Any]]:
        """Return the first reply, and the number of all."""
        yield from (("text", self.text), ("replies", self.replies)) if self.replies else ()

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from dialogkit.services import display

        return display.generation(self.replies, self.notes)


@alone()
def generate(
    model: Models = None,
    prompts: str | Sequence[str] | None = None,
    *,
    system: str | None = None,
    config: GenerateConfig | None = None,
    output: str | Path = DEFAULT_OUTPUT,
    device: str = "auto",
    int8: bool = False,
    on_text: StreamSink | None = None,
) -> GenerateResult:
    """Return replies to prompts.

    Args:
        model: name, run, folder, hub id or result of `train`, or several; None is the newest finished run.
        prompts: one prompt or several; None takes the built-in test prompts.
        system: system text before every prompt.
        config: sampling settings.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.
        int8: round weights to 8 bits, which makes replies faster on a CPU.
        on_text: receives the text of a single reply as it grows.

    Raises: ModelError, UnavailableError, ConfigError; OutOfMemoryError if not even one reply fits into memory.
    """
    config = config or GenerateConfig()
    names = names_of(model)
    texts = _texts(config.test_prompts if prompts is None else prompts, names)
    # Look up all names first: a typo in the last must not cost the loading of the others.
    chosen = [resolve_model(name, output=output) for name in names]
    settings, notes = sampling_of(chosen, config, verb="generate", output=output)

    from dialogkit.inference.replies import AT_ONCE, continue_prompts
    from dialogkit.services.runs.loading import int8_note, load_for_replies

    start = [Message("system", without_surrogates(system))] if system else []
    replies = []
    for loadable, config in zip(chosen, settings, strict=True):
        with hints_for(loadable):
            loaded = load_for_replies(loadable, device=device, int8=int8)
            changes = loaded.tokenizer.changes([*start, Message("user", texts[0])])
            notes += [
                *([int8_note(loadable)] if int8 else ()),
                *(f"{loadable.display_name}: {change}" for change in changes),
            ]
            asked = [loaded.tokenizer.encode_prompt([*start, Message("user", text)]) for text in texts]
            at_once = replies_at_once(
                loaded, list(map(len, asked)), config, AT_ONCE, shorter=lambda n: Change({"max_new_tokens": n})
            )
            made = continue_prompts(
                loaded.model,
                loaded.tokenizer,
                asked,
                config,
                context=loaded.context,
                device=loaded.device,
                batch_size=at_once,
                on_text=on_text,
            )
        replies += reply_results(loaded.name, texts, made)
    return GenerateResult(replies=replies, notes=notes)


def _texts(prompts: str | Sequence[str], models: Sequence[str | None]) -> list[str]:
    """Return the prompts without surrounding blanks. Raises: ConfigError if one is empty or not text."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, Sequence) or not all(isinstance(text, str) for text in prompts):
        raise ConfigError(f"prompts must be text or a list of texts, not {prompts!r}")
    texts = [without_surrogates(text).strip() for text in prompts]
    if not texts or not all(texts):
        problem = "a prompt is empty" if texts else "no prompt is given"
        raise ConfigError(problem, hint=Call("generate", *filter(None, models[:1]), prompt="Hello!"))
    return texts
