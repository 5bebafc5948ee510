"""Dialogs and their chat format: what training and replying share, so that both see the same tokens.

A dialog is rendered to *spans*. A span is a list of pieces, and a piece is either one special token, written by
the format, or plain text, which is always tokenized as text: a user who types `<|end_of_turn|>` gets the letters.
Spans are cut where an answer starts and after its end-of-turn token, and are tokenized one by one. The prompt for
a reply is therefore, token for token, a prefix of what was trained.

No tokenizer library is imported here; `models/tokenizer.py` turns pieces into ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One turn of a dialog."""

    role: Role
    content: str


Dialog = tuple[Message, ...]
"""An optional system message, then user and assistant in turn."""


class Piece(NamedTuple):
    """A special token (`special`) or text in which no special token is recognised."""

    text: str
    special: bool = False


class Span(NamedTuple):
    """Pieces that are tokenized together; `supervised` ones are an answer with its end of turn."""

    pieces: tuple[Piece, ...]
    supervised: bool = False


class Encoded(NamedTuple):
    """Token ids of a dialog, and which of them are learned (same length)."""

    input_ids: list[int]
    supervised: list[bool]


class ChatTokenizer(Protocol):
    """What data preparation and replying need of a tokenizer with a chat format."""

    stop_ids: frozenset[int]
    """Ids that end a turn."""
    reply_stop_ids: frozenset[int]
    """Ids at which a reply ends: these, and those that the files of a model name."""

    @property
    def pad_id(self) -> int:
        """The id that fills a batch."""

    @property
    def highest_id(self) -> int:
        """The highest id of the vocabulary."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and the chat format."""

    def encode_dialogs(self, dialogs: Sequence[Dialog]) -> list[Encoded]:
        """Return ids and supervision of each dialog."""

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which a reply to `messages` starts."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""

    def prompt_text(self, ids: Sequence[int]) -> str:
        """Return what is said before a first answer, a system text apart from the user's."""


@dataclass(frozen=True)
class TurnFormat:
    """A chat format in which every turn is: special token, label, text, end-of-turn token.

    Each part may be empty. All formats that dialogkit gives to a model are of this form; models that bring a
    template of their own are rendered by that template.
    """

    name: str
    end_of_turn: str
    system: tuple[str, str] = ("", "")
    """Special token and plain label before a system text."""
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    separator: str = ""
    """Plain text between the label and the content; with the content, so that a reply starts by it."""

    @property
    def special_tokens(self) -> frozenset[str]:
        """Every special token that the format writes."""
        return frozenset({self.system[0], self.user[0], self.assistant[0], self.end_of_turn} - {""})

    def _opening(self, role: Role) -> tuple[Piece, ...]:
        special, label = getattr(self, role)
        pieces = (Piece(special, True), Piece(label))
        return tuple(piece for piece in pieces if piece.text)

    def spans(self, messages: Sequence[Message], *, reply: bool = False) -> list[Span]:
        """Return the spans of a dialog; with `reply`, ending where the next answer starts."""
        spans: list[Span] = []
        context: list[Piece] = []
        for message in messages:
            body = Piece(self.separator + message.content)
            end = Piece(self.end_of_turn, True)
            if message.role == "assistant":
                spans.append(Span((*context, *self._opening("assistant"))))
                spans.append(Span((body, end), supervised=True))
                context = []
            else:
                opening = self._opening(message.role)
                # A label and the text after it are one piece, as a tokenizer would read them.
                if opening and not opening[-1].special:
                    body = Piece(opening[-1].text + body.text)
                    opening = opening[:-1]
                context += [*opening, body, end]
        if reply:
            context += self._opening("assistant")
        if context:
            spans.append(Span(tuple(context)))
        return [span for span in spans if span.pieces]

    def without_label(self, text: str) -> str:
        """Return the decoded text of a turn without the label of its role."""
        for _, label in (self.system, self.user):
            if label and text.startswith(label):
                return text.removeprefix(label).strip()
        return text

    def template(self) -> str:
        """Return the same format as a Jinja chat template, for every other tool that reads the model."""
        branches = []
        for index, role in enumerate(("system", "user", "assistant")):
            opening = "".join(getattr(self, role)) + self.separator
            keyword = "if" if index == 0 else "elif"
            branches.append(
                f"{{%- {keyword} message['role'] == '{role}' -%}}"
                f"{{{{- {_jinja(opening)} + message['content'] + {_jinja(self.end_of_turn)} -}}}}"
            )
        reply = "".join(self.assistant)
        return (
            "{%- for message in messages -%}"
            + "".join(branches)
            + "{%- else -%}{{- raise_exception('unknown role ' + message['role']) -}}{%- endif -%}"
            + "{%- endfor -%}"
            + (f"{{%- if add_generation_prompt -%}}{{{{- {_jinja(reply)} -}}}}{{%- endif -%}}" if reply else "")
        )


def _jinja(text: str) -> str:
    """Return text as a Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


SYSTEM_TOKEN = "<|system|>"
USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"
END_OF_TURN = "<|end_of_turn|>"
END_OF_TEXT = "<|end_of_text|>"
PAD_TOKEN = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD_TOKEN, SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN, END_OF_TURN)
"""Special tokens of every tokenizer that dialogkit trains, in the order of their ids."""


def native_format() -> TurnFormat:
    """Return the format of tokenizers that dialogkit trains: one special token opens a turn, one ends it."""
    return TurnFormat(
        name="dialogkit",
        end_of_turn=END_OF_TURN,
        system=(SYSTEM_TOKEN, ""),
        user=(USER_TOKEN, ""),
        assistant=(ASSISTANT_TOKEN, ""),
    )


def plain_format(eos_token: str) -> TurnFormat:
    """Return a format for models that know no roles, such as GPT-2: labels in words, turns ended by eos."""
    return TurnFormat(
        name="plain",
        end_of_turn=eos_token,
        system=("", "System:"),
        user=("", "User:"),
        assistant=("", "Assistant:"),
        separator=" ",
    )


def turns_format(eos_token: str) -> TurnFormat:
    """Return DialoGPT's format: the turns, each ended by eos (Zhang et al. 2020, section 3.1)."""
    return TurnFormat(name="turns", end_of_turn=eos_token)


def check_dialog(messages: Sequence[Message]) -> str | None:
    """Return what is wrong with the order or content of a dialog, or None.

    A dialog is an optional system message, then user and assistant in turn, with at least one answer.
    """
    first = 1 if messages and messages[0].role == "system" else 0
    if not any(turn.role == "assistant" for turn in messages):
        return "no message of the assistant"
    for index, turn in enumerate(messages[first:]):
        number = first + index + 1
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.role != expected:
            return f"message {number} is from {turn.role!r} where {expected!r} is due"
        if not turn.content.strip():
            return f"message {number} ({turn.role}) is empty"
    return None
