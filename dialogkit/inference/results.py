"""Replies as results: what was asked, answered, and how it ended."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import computed_field

from dialogkit.services.result import Result

if TYPE_CHECKING:
    from dialogkit.inference.replies import Reply


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
