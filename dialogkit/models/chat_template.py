"""Chat templates that models bring, which are untrusted: rendered within limits of time and memory."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from dialogkit.dialog import (
    ANSWERS_CHANGED,
    GREETING_LEFT_OUT,
    NOT_AFTER_PROMPT,
    NOT_ENDED,
    PLAIN_FORMAT,
    SHOWN_OTHERWISE,
    SYSTEM_FOLDED,
    Dialog,
    Message,
    Piece,
    Remarks,
    Rendered,
    Span,
)
from dialogkit.errors import DataError, ModelError, shortened
from dialogkit.models.limits import memory_limit, time_limit

_ROLE_LINE = re.compile(r"^(?:system|user)\s*\n\s*")

TEMPLATE_SECONDS = 5.0
"""Longest time to render a dialog."""
TEMPLATE_BYTES = 2**30
"""Most memory that rendering a dialog may take."""
TEMPLATE_CHARACTERS = 1_000_000
"""Most characters that a template may add to four times those of the dialog."""

# Private-use characters stand for text that only looks like a special token while a foreign template is rendered.
MARK_OPEN, MARK_CLOSE = "\ue0f0", "\ue0f1"


class Refused(DataError):
    """The template refuses a dialog; others may suit it."""


class TemplateFormat:
    """The chat format of a model with its own Jinja template."""

    def __init__(self, hf: Any, special: re.Pattern[str]) -> None:
        self._hf = hf
        self._special = special
        self._masked = re.compile(f"{special.pattern}|[{MARK_OPEN}{MARK_CLOSE}]")
        probe = (Message("user", "ping"), Message("assistant", "pong"))
        _, said, tail = self._render(probe).rpartition("pong")
        if not said:
            raise ModelError("the model's chat template does not show the text of an answer", hint=PLAIN_FORMAT)
        end = special.search(tail)
        if end is None:
            raise ModelError(
                "the model's chat template ends an answer with no special token, so a model trained with it "
                "would never stop",
                hint=PLAIN_FORMAT,
            )
        self.end_of_turn = end[0]
        self._has_system = self._shows(Message("system", "peng"), probe)
        self._may_greet = self._shows(Message("assistant", "peng"), probe)
        self._opens_replies = self._opens(probe[:1])

    def _shows(self, first: Message, probe: Dialog) -> bool:
        """Return whether the template takes a message before the user's first, and shows its text."""
        try:
            return first.content in self._render((first, *probe))
        except Refused:
            return False

    def _opens(self, asked: Dialog) -> bool:
        """Return whether a reply can follow what `add_generation_prompt` makes.

        Some templates ignore it. That does not matter where they write nothing but space before an answer.
        """
        before = self._render(asked)
        if self._render(asked, reply=True) != before:
            return True
        return not self._opening(asked).removeprefix(before).strip()

    def _opening(self, messages: Sequence[Message]) -> str:
        """Return the text before the answer to `messages`: what dialogs with different answers share."""
        one, other = (self._render((*messages, Message("assistant", text))) for text in ("pong", "ball"))
        return _common_prefix(one, other).rstrip(" ")

    def _prompt(self, messages: Sequence[Message]) -> str:
        return self._render(messages, reply=True) if self._opens_replies else self._opening(messages)

    def changes(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Return what is changed in a dialog to fit the template."""
        return self._adapted(messages)[1]

    def _adapted(self, messages: Sequence[Message]) -> tuple[Sequence[Message], tuple[str, ...]]:
        """Return a dialog as the template takes it, and what was changed."""
        notes: list[str] = []
        if messages and messages[0].role == "system" and not self._has_system:
            messages, notes = _folded(messages), [SYSTEM_FOLDED]
        first = 1 if messages and messages[0].role == "system" else 0
        if len(messages) > first + 1 and messages[first].role == "assistant" and not self._may_greet:
            messages = [*messages[:first], *messages[first + 1 :]]
            notes.append(GREETING_LEFT_OUT)
        return messages, tuple(notes)

    def render(self, messages: Sequence[Message], *, reply: bool = False) -> Rendered:
        """Return the spans of a dialog; with `reply`, ending where the next answer starts.

        An answer is supervised from where the template's prompt for a reply ends or, where it does not begin with
        what that prompt opens it with, from where the prompt and the dialog part. One that the template renders
        differently when more turns follow (some drop the reasoning of earlier answers) is not supervised.

        Raises: Refused if the template refuses the dialog; DataError if it takes too much time or memory.
        """
        messages, changes = self._adapted(messages)
        notes, not_learned = list(changes), []
        masked, texts = self._mask(messages)
        full = self._prompt(masked) if reply else self._render(masked)
        spans: list[Span] = []
        done = 0
        for index, message in enumerate(masked):
            if message.role != "assistant" or not any(before.role == "user" for before in masked[:index]):
                continue
            until = self._render(masked[: index + 1])
            start, unopened = self._start(masked[:index], until)
            end = until.find(self.end_of_turn, start) + len(self.end_of_turn)
            if problem := self._problem(full, until, done, start, end):
                not_learned += [problem] * message.learned
                continue
            if message.learned:
                changed = None if _holds(until[done:end], message.content) else ANSWERS_CHANGED
                notes += filter(None, (unopened, changed))
            spans.append(Span(self._pieces(full[done:start], texts)))
            spans.append(Span(self._pieces(full[start:end], texts), supervised=message.learned))
            done = end
        spans.append(Span(self._pieces(full[done:], texts)))
        return Rendered(
            [span for span in spans if span.pieces], Remarks(None, tuple(dict.fromkeys(notes)), tuple(not_learned))
        )

    def _start(self, before: Sequence[Message], until: str) -> tuple[int, str | None]:
        """Return where the last answer of `until` starts (-1: unknown), and a note if the prompt differs."""
        prompt = self._prompt(before)
        if until.startswith(prompt):
            return len(prompt), None
        opening = self._opening(before)
        if not until.startswith(opening):
            return -1, None
        added = prompt[len(_common_prefix(prompt, opening)) :]
        return len(opening), (
            f"the chat template opens each reply with {shortened(added.strip() or added, 60)!r}, with which their "
            "answers do not begin; they are learned without it, and replies will begin with it"
        )

    def _problem(self, full: str, until: str, done: int, start: int, end: int) -> str | None:
        """Return why the answer at `start` to `end` of `until` cannot be learned as part of `full`, or None."""
        if start < done:
            return NOT_AFTER_PROMPT
        if end <= start:
            return NOT_ENDED
        return None if full.startswith(until[:end]) else SHOWN_OTHERWISE

    def without_label(self, text: str) -> str:
        """Return the decoded text of a turn without the role line that most templates write."""
        return _ROLE_LINE.sub("", text)

    def _mask(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
        """Replace text that looks like a special token or a mark by marks; return it separately."""
        texts: list[str] = []

        def mark(match: re.Match[str]) -> str:
            texts.append(match[0])
            return f"{MARK_OPEN}{len(texts) - 1}{MARK_CLOSE}"

        return [m._replace(content=self._masked.sub(mark, m.content)) for m in messages], texts

    def _pieces(self, text: str, texts: list[str]) -> tuple[Piece, ...]:
        pieces: list[Piece] = []
        position = 0
        for match in self._special.finditer(text):
            pieces += [Piece(text[position : match.start()]), Piece(match[0], True)]
            position = match.end()
        pieces.append(Piece(text[position:]))
        unmark = re.compile(f"{MARK_OPEN}(\\d+){MARK_CLOSE}")
        return tuple(
            piece if piece.special else Piece(unmark.sub(lambda m: texts[int(m[1])], piece.text))
            for piece in pieces
            if piece.text
        )

    def _render(self, messages: Sequence[Message], *, reply: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            with time_limit(TEMPLATE_SECONDS), memory_limit(TEMPLATE_BYTES):
                text = str(
                    self._hf.apply_chat_template(
                        [message.turn() for message in messages], tokenize=False, add_generation_prompt=reply
                    )
                )
        except TimeoutError:
            problem = f"the model's chat template takes more than {TEMPLATE_SECONDS:g} s for a dialog"
            raise DataError(problem, hint=PLAIN_FORMAT) from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            raise Refused(f"the model's chat template refuses a dialog: {reason}", hint=PLAIN_FORMAT) from None
        if len(text) > TEMPLATE_CHARACTERS + 4 * sum(len(message.content) for message in messages):
            raise Refused(
                f"the model's chat template renders a dialog as {len(text):,} characters", hint=PLAIN_FORMAT
            )
        return text


def _folded(messages: Sequence[Message]) -> list[Message]:
    """Return a dialog with its system text before the first user message."""
    system, *turns = messages
    for index, turn in enumerate(turns):
        if turn.role == "user":
            turns[index] = turn._replace(content=f"{system.content}\n\n{turn.content}")
            return turns
    return [Message("user", system.content), *turns]


def _common_prefix(one: str, other: str) -> str:
    """Return the beginning that two texts share."""
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))]


def _holds(text: str, part: str) -> bool:
    """Return whether a text holds another, whatever space is between their words."""
    return part in text or "".join(part.split()) in "".join(text.split())
