"""Asks held-out questions whose answers the dataset can check, and counts the right replies."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.data.checks import Check, is_right
from dialogkit.data.questions import Checked
from dialogkit.errors import DataError
from dialogkit.services.evaluation.results import RightRow, WrongRow

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.models.tokenizer import ChatTokenizer

QUESTIONS = 200
"""Maximum number of questions in an evaluation, unless more dialogs are requested."""


class Question(NamedTuple):
    """A held-out dialog up to the first of its answers that has a check."""

    prompt_ids: list[int]
    text: str
    answer: str
    check: Check
    topic: str
    new: str


class Marked(NamedTuple):
    """A question with a reply to it."""

    question: Question
    reply: str
    is_right: bool


def choose_questions(
    dialogs: "DialogTokens", checked: Mapping[int, Checked], tokenizer: "ChatTokenizer", most: int = QUESTIONS
) -> list[Question]:
    """Return one question from each checked dialog: topics take turns, and each keeps the order of the dialogs.

    It is the first checked question of the dialog: a row gives the topic of that one, and what is new in it.

    Args:
        dialogs: the held-out dialogs.
        checked: what their rows say about their answers, by hash.
        tokenizer: that of the dialogs.
        most: maximum number of questions.
    """
    by_topic: dict[str, dict[int, int]] = {}
    for index, hashed in enumerate(dialogs.hashes.tolist()):
        if (one := checked.get(hashed)) is not None:
            by_topic.setdefault(one.topic, {}).setdefault(hashed, index)
    in_turn = chain.from_iterable(zip_longest(*(found.items() for found in by_topic.values())))
    made = (_question(dialogs[found[1]], checked[found[0]], tokenizer) for found in in_turn if found is not None)
    return list(islice(filter(None, made), most))


def _question(dialog: Mapping[str, Any], checked: Checked, tokenizer: "ChatTokenizer") -> Question | None:
    """Return the first checked question of a dialog; None if the dialog was cut before it."""
    ids, supervised = dialog["input_ids"].tolist(), dialog["supervised"].tolist()
    texts: list[str] = []
    end = 0
    for check, (start, stop) in zip(checked.checks, _runs(supervised), strict=False):
        asked, answer = tokenizer.prompt_text(ids[end:start]), tokenizer.decode(ids[start:stop])
        if check is not None:
            text = " / ".join([*texts, asked])
            return Question(ids[:start], text, answer.strip(), check, checked.topic, checked.new)
        texts += [asked, answer.strip()]
        end = stop
    return None


def _runs(supervised: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield where each run of supervised tokens starts and stops."""
    edges = [n for n, (a, b) in enumerate(zip([False, *supervised], [*supervised, False], strict=True)) if a != b]
    return zip(edges[::2], edges[1::2], strict=True)


def mark(questions: Sequence[Question], replies: Sequence[str]) -> list[Marked]:
    """Return the questions with the reply to each, and whether it is right."""
    return [
        Marked(question, reply.strip(), _is_right(reply, question.check))
        for question, reply in zip(questions, replies, strict=True)
    ]


def _is_right(reply: str, check: Check) -> bool:
    try:
        return is_right(reply, check)
    except DataError:  # a pattern that searches too long finds nothing, and must not end a run
        return False


def right_rows(marked: Iterable[Marked], kind: Callable[[Question], str]) -> list[RightRow]:
    """Return how many questions of each kind are answered right, by the name of the kind; '' is no kind."""
    from dialogkit.inference.intervals import wilson

    kinds: dict[str, list[bool]] = {}
    for one in marked:
        if name := kind(one.question):
            kinds.setdefault(name, []).append(one.is_right)
    return [
        RightRow(
            name=name,
            questions=len(kinds[name]),
            right=sum(kinds[name]),
            interval=wilson(sum(kinds[name]) / len(kinds[name]), len(kinds[name])),
        )
        for name in sorted(kinds)
    ]


def wrong_rows(marked: Iterable[Marked]) -> list[WrongRow]:
    """Return the questions that are not answered right."""
    return [
        WrongRow(
            question=one.question.text,
            reply=one.reply,
            answer=one.question.answer,
            check=one.question.check,
            topic=one.question.topic,
        )
        for one in marked
        if not one.is_right
    ]
