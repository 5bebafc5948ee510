"""Exchanges of held-out dialogs, and their likelihood under a model."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.models.tokenizer import ChatTokenizer


class Exchange(NamedTuple):
    """The first answer of a dialog, and what is before it."""

    prompt_ids: list[int]
    answer_ids: list[int]
    prompt: str
    answer: str


class Subject(NamedTuple):
    """A model to be measured, ready for padding-free batches."""

    model: Any
    tokenizer: "ChatTokenizer"
    context: int
    device: str


def exchanges(dialogs: "DialogTokens", tokenizer: "ChatTokenizer") -> list[Exchange]:
    """Return the first answer of each dialog with its prompt."""
    found = []
    for index in range(len(dialogs)):
        ids = dialogs[index]["input_ids"].tolist()
        learned = dialogs[index]["supervised"].tolist()
        start = learned.index(True, 1) if True in learned[1:] else len(ids)
        end = learned.index(False, start) if False in learned[start:] else len(ids)
        prompt, answer = ids[:start], ids[start:end]
        found.append(Exchange(prompt, answer, tokenizer.prompt_text(prompt), tokenizer.decode(answer)))
    return found


def score(
    subject: Subject, dialogs: "DialogTokens", *, batch_size: int = 8, done: Callable[[int], None] = lambda _: None
) -> "Likelihood":
    """Return the likelihood of dialogs in float32; `done` is told of each batch's dialogs."""
    from dialogkit.data.collate import batches_of
    from dialogkit.engine.attention import use_packed_attention
    from dialogkit.inference.likelihood import score_batches

    def told() -> "Iterator[tuple[dict[str, Any], list[int]]]":
        for batch, sizes in batches_of(dialogs, batch_size):
            yield batch, sizes
            done(len(sizes))

    use_packed_attention(subject.model)
    return score_batches(subject.model, told(), subject.tokenizer.stop_ids, device=subject.device)
