"""Chat templates that models bring, which are untrusted: rendered within limits of time and memory."""

import re
from collections.abc import Sequence
from typing import Any

from dialogkit.dialog import Message, Piece, Span
from dialogkit.errors import DataError, ModelError
from dialogkit.hints import Change
from dialogkit.models.limits import memory_limit, time_limit

_ROLE_LINE = re.compile(r"^(?:system|user)\s*\n\s*")

TEMPLATE_SECONDS = 5.0
"""Longest time to render a dialog."""
TEMPLATE_BYTES = 2**30
"""Most memory that rendering a dialog may take."""
TEMPLATE_CHARACTERS = 1_000_000
"""Most characters that a template may add to four times those of the dialog."""


PLAIN_FORMAT = Change({"model.chat_format": "plain"})
"""What to do about a template that cannot be used."""

# Private-use characters stand for text that only looks like a special token while a foreign template is rendered.
MARK_OPEN, MARK_CLOSE = "\ue0f0", "\ue0f1"


class TemplateFormat:
    """The chat format of a model with its own Jinja template."""

    def __init__(self, hf: Any, special: re.Pattern[str]) -> None:
        self._hf = hf
        self._special = special
        self._masked = re.compile(f"{special.pattern}|[{MARK_OPEN}{MARK_CLOSE}]")
        probe = (Message("user", "ping"), Message("assistant", "pong"))
        tail = self._render(probe).rpartition("pong")[2]
        end = special.search(tail)
        if end is None:
            raise ModelError(
                "the model's chat template ends an answer with no special token, so a model trained with it "
                "would never stop",
                hint=PLAIN_FORMAT,
            )
        self.end_of_turn = end[0]

    def spans(self, messages: Sequence[Message], *, reply: bool = False) -> list[Span]:
        """Return the spans of a dialog; with `reply`, ending where the next answer starts.

        An answer that the template renders differently when more turns follow (some drop the reasoning of
        earlier answers) is not supervised.
        """
        masked, texts = self._mask(messages)
        full = self._render(masked, reply=reply)
        spans: list[Span] = []
        done = 0
        for index, message in enumerate(masked):
            if message.role != "assistant":
                continue
            prompt = self._render(masked[:index], reply=True)
            until = self._render(masked[: index + 1])
            if not (full.startswith(until) and until.startswith(prompt) and len(prompt) >= done):
                continue
            end = until.rfind(self.end_of_turn, len(prompt))
            if end < 0:
                continue
            end += len(self.end_of_turn)
            spans.append(Span(self._pieces(full[done : len(prompt)], texts)))
            spans.append(Span(self._pieces(full[len(prompt) : end], texts), supervised=message.learned))
            done = end
        spans.append(Span(self._pieces(full[done:], texts)))
        return [span for span in spans if span.pieces]

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
            raise DataError(f"the model's chat template refuses a dialog: {reason}", hint=PLAIN_FORMAT) from None
        if len(text) > TEMPLATE_CHARACTERS + 4 * sum(len(message.content) for message in messages):
            raise DataError(
                f"the model's chat template renders a dialog as {len(text):,} characters", hint=PLAIN_FORMAT
            )
        return text
