"""Dialogs and their chat formats, shared by training and replying so that both see the same tokens.

A dialog is rendered to *spans*. A span is a list of pieces; a piece is either one special token of the format or
plain text. Text is always tokenized as text: a user who types `<|end_of_turn|>` gets the letters. A span ends
where an answer starts and after its end-of-turn token, and each span is tokenized separately. The prompt for a
reply is therefore, token for token, a prefix of the training data.

No tokenizer library is imported here; `models/tokenizer.py` turns pieces into ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from dialogkit.hints import Change

PLAIN_FORMAT = Change({"model.chat_format": "plain"})
"""What to do about a chat template that cannot be used."""

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One turn of a dialog."""

    role: Role
    content: str
    learned: bool = True
    """Whether an answer is supervised; False keeps it as context."""

    def turn(self) -> dict[str, str]:
        """Return role and content as chat templates and JSONL files take them."""
        return {"role": self.role, "content": self.content}


Dialog = tuple[Message, ...]
"""An optional system message, then user and assistant alternately. The assistant may open it, as context."""


class Piece(NamedTuple):
    """A special token (`special`) or text in which no special token is recognised."""

    text: str
    special: bool = False


class Span(NamedTuple):
    """Pieces that are tokenized together; a `supervised` span is an answer with its end of turn."""

    pieces: tuple[Piece, ...]
    supervised: bool = False


SYSTEM_FOLDED = "the chat template has no system role; the system text is put before the first user message"
GREETING_LEFT_OUT = "the chat template expects the user first; the assistant's opening message is left out"
ANSWERS_CHANGED = "the chat template leaves out or changes a part of their answers"
SHOWN_OTHERWISE = "the template renders them differently once more turns follow"
NOT_AFTER_PROMPT = "the template does not show them after its prompt for a reply"
NOT_ENDED = "the template does not end them"


class Remarks(NamedTuple):
    """Remarks on the encoding of a dialog."""

    refused: str | None = None
    """Why the chat template refuses the dialog, which then has no tokens."""
    notes: tuple[str, ...] = ()
    """What was changed in the dialog to fit the template."""
    not_learned: tuple[str, ...] = ()
    """For each answer that is to be learned and is not, the reason."""


class Encoded(NamedTuple):
    """Token ids of a dialog, and which of them are supervised (same length)."""

    input_ids: list[int]
    supervised: list[bool]
    remarks: Remarks = Remarks()


class Rendered(NamedTuple):
    """The spans of a dialog, and remarks on them."""

    spans: list[Span]
    remarks: Remarks = Remarks()


class ChatTokenizer(Protocol):
    """The interface of a tokenizer with a chat format that data preparation and replying use."""

    stop_ids: frozenset[int]
    """Ids that end a turn."""
    reply_stop_ids: frozenset[int]
    """Ids at which a reply ends: `stop_ids`, and those that the files of the model name."""

    @property
    def pad_id(self) -> int:
        """The id for padding."""

    @property
    def highest_id(self) -> int:
        """The highest id of the vocabulary."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and the chat format."""

    def encode_dialogs(self, dialogs: Sequence[Dialog]) -> list[Encoded]:
        """Return ids and supervision of each dialog, and remarks on it."""

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which a reply to `messages` starts."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids without special tokens."""

    def prompt_text(self, ids: Sequence[int]) -> str:
        """Return the text before the first answer, with a system text separate from the user's."""


@dataclass(frozen=True)
class TurnFormat:
    """A chat format in which every turn is: special token, label, text, end-of-turn token.

    Each part may be empty. All formats of dialogkit have this form; models with their own chat template are
    rendered by that template.
    """

    name: str
    end_of_turn: str
    system: tuple[str, str] = ("", "")
    """Special token and plain label before a system text."""
    user: tuple[str, str] = ("", "")
    assistant: tuple[str, str] = ("", "")
    start: str = ""
    """Special token before the first turn."""
    separator: str = ""
    """Plain text between label and content; it is part of the content, so a reply starts with it."""

    @property
    def special_tokens(self) -> frozenset[str]:
        """All special tokens of the format."""
        return frozenset({self.start, self.system[0], self.user[0], self.assistant[0], self.end_of_turn} - {""})

    def _opening(self, role: Role) -> tuple[Piece, ...]:
        special, label = getattr(self, role)
        return tuple(piece for piece in (Piece(special, True), Piece(label)) if piece.text)

    def spans(self, messages: Sequence[Message], *, reply: bool = False) -> list[Span]:
        """Return the spans of a dialog; with `reply`, ending where the next answer starts."""
        spans: list[Span] = []
        context: list[Piece] = [Piece(self.start, True)] if self.start else []
        for message in messages:
            body = Piece(self.separator + message.content)
            end = Piece(self.end_of_turn, True)
            if message.role == "assistant":
                spans.append(Span((*context, *self._opening("assistant"))))
                spans.append(Span((body, end), supervised=message.learned))
                context = []
            else:
                opening = self._opening(message.role)
                # A label and the text after it are one piece, so that they are tokenized together.
                if opening and not opening[-1].special:
                    body = Piece(opening[-1].text + body.text)
                    opening = opening[:-1]
                context += [*opening, body, end]
        if reply:
            context += self._opening("assistant")
        if context:
            spans.append(Span(tuple(context)))
        return [span for span in spans if span.pieces]

    def render(self, messages: Sequence[Message], *, reply: bool = False) -> Rendered:
        """Return `spans` without remarks."""
        return Rendered(self.spans(messages, reply=reply))

    def changes(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Return what is changed in a dialog to fit the format: nothing."""
        return ()

    def without_label(self, text: str) -> str:
        """Return the decoded text of a turn without the label of its role."""
        for _, label in (self.system, self.user):
            if label and text.startswith(label):
                return text.removeprefix(label).strip()
        return text

    def template(self) -> str:
        """Return the format as a Jinja chat template, for other tools that load the model."""
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
            (f"{{{{- {_jinja(self.start)} -}}}}" if self.start else "")
            + "{%- for message in messages -%}"
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
    """Return the format of tokenizers that dialogkit trains: a special token starts each turn, another ends it."""
    return TurnFormat("dialogkit", END_OF_TURN, (SYSTEM_TOKEN, ""), (USER_TOKEN, ""), (ASSISTANT_TOKEN, ""))


def plain_format(eos_token: str, start: str = "") -> TurnFormat:
    """Return a format for models without roles, such as GPT-2: plain labels, and turns ended by eos."""
    return TurnFormat(
        "plain", eos_token, ("", "System:"), ("", "User:"), ("", "Assistant:"), start=start, separator=" "
    )


def turns_format(eos_token: str, start: str = "") -> TurnFormat:
    """Return DialoGPT's format: the turns, each ended by eos (Zhang et al. 2020, section 3.1)."""
    return TurnFormat(name="turns", end_of_turn=eos_token, start=start)


def check_dialog(messages: Sequence[Message]) -> str | None:
    """Return the problem with the order or content of a dialog, or None.

    A dialog is an optional system message, then user and assistant alternately, with at least one answer. The
    assistant may open it with a message that is not learned.
    """
    first = 1 if messages and messages[0].role == "system" else 0
    if not any(turn.role == "assistant" for turn in messages):
        return "no message from the assistant"
    if messages[first].role == "assistant" and not messages[first].learned:
        if not messages[first].content.strip():
            return f"message {first + 1} (assistant) is empty"
        first += 1
    for index, turn in enumerate(messages[first:]):
        number = first + index + 1
        expected = "user" if index % 2 == 0 else "assistant"
        if turn.role != expected:
            return f"message {number} is from {turn.role!r} instead of {expected!r}"
        if not turn.content.strip():
            return f"message {number} ({turn.role}) is empty"
    return None
