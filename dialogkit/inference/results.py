"""Replies as results: prompt, text and how each ended."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import computed_field

from dialogkit.config.base import Result

if TYPE_CHECKING:
    from dialogkit.inference.replies import Reply


StreamSink = Callable[[str], None]


class ReplyResult(Result):
    """One reply and how it was generated."""

    model: str
    prompt: str
    reply: str
    tokens: int
    """Generated tokens, including the end of turn."""
    seconds: float
    """Wall time from the start of its batch to its last token."""
    stop_reason: str
    """end of turn, length, or context full."""
    cut_tokens: int = 0
    """Tokens cut from the start of the prompt to fit the context."""
    reference: str | None = None
    """The dataset's answer, if the prompt is from a held-out dialog."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_s(self) -> float:
        """Tokens of this reply per second."""
        return self.tokens / max(self.seconds, 1e-9)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def repetition(self) -> float:
        """Share of trigrams that repeat an earlier one: 0 for none, near 1 for a loop."""
        from dialogkit.inference.reply_metrics import repeated_fraction

        return repeated_fraction(self.reply.split(), 3)

    @property
    def succeeded(self) -> bool:
        """Whether the reply has any text."""
        return bool(self.reply)


def reply_results(
    model: str, prompts: Sequence[str], replies: Sequence["Reply"], references: Sequence[str | None] = ()
) -> list[ReplyResult]:
    """Return the replies of a model with their prompts and, if given, references."""
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
