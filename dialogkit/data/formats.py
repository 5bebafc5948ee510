"""Recognises the format of dataset rows by their columns, and parses rows into dialogs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dialogkit.data.hints import USE_STARTER
from dialogkit.dialog import Dialog, Message, Role, check_dialog
from dialogkit.errors import DataError, shortened
from dialogkit.hints import Either

Row = Mapping[str, Any]

SHAPES = (
    "alpaca: instruction, output (and input)",
    "messages: messages with role and content",
    "sharegpt: conversations with from and value",
    "prompt-response: prompt with response or completion",
)

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class RowError(ValueError):
    """A row is not a dialog of its format; the message says why."""


def recognise_format(columns: Collection[str], *, source: str) -> str:
    """Return the format's name for a set of columns.

    Raises: DataError listing the columns found and the formats known.
    """
    found = set(columns)
    if "messages" in found:
        return "messages"
    if "conversations" in found:
        return "sharegpt"
    if {"instruction", "output"} <= found:
        return "alpaca"
    if "prompt" in found and found & {"response", "completion"}:
        return "prompt-response"
    # An unclosed quote in the header of a CSV file includes line ends.
    shown = ", ".join(shortened(" ".join(name.split()), 60) for name in sorted(found)[:12]) or "none"
    raise DataError(
        f"{source} has the columns {shown}, which match none of the known formats ({'; '.join(SHAPES)})",
        hint=Either("rename the columns", USE_STARTER),
    )


def parse_row(row: Row, kind: str) -> Dialog:
    """Return the dialog of a row. Raises: RowError if it has none."""
    dialog = tuple(_PARSERS[kind](row))
    if problem := check_dialog(dialog):
        raise RowError(problem)
    return dialog


def _text(row: Row, name: str, *, optional: bool = False) -> str:
    value = row.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{name} is {_kind(row, name)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} contains half of a surrogate pair, which is not a character") from None
    return value.strip()


def kind_of(value: Any) -> str:
    """Return the type of a value in the terms of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case Sequence():
            return "a list"
    return f"of type {type(value).__name__}"


def _kind(row: Row, name: str) -> str:
    return kind_of(row[name]) if name in row else "missing"


def _alpaca(row: Row) -> list[Message]:
    instruction, given = _text(row, "instruction"), _text(row, "input", optional=True)
    prompt = f"{instruction}\n\n{given}" if given else instruction
    system = _text(row, "system", optional=True)
    turns = [Message("user", prompt), Message("assistant", _text(row, "output"))]
    return [Message("system", system), *turns] if system else turns


def _prompt_response(row: Row) -> list[Message]:
    answer = next((name for name in ("response", "completion") if row.get(name) is not None), None)
    if answer is None:
        given = next((name for name in ("response", "completion") if name in row), "response or completion")
        raise RowError(f"{given} is {_kind(row, given)}, not text")
    # Conversational prompt/completion rows hold lists of messages.
    if isinstance(row.get("prompt"), list):
        return _answered([*_turns(row, "prompt", "role", "content"), *_turns(row, answer, "role", "content")])
    return [Message("user", _text(row, "prompt")), Message("assistant", _text(row, answer))]


def _turns(row: Row, column: str, role_key: str, content_key: str) -> list[Message]:
    turns = row.get(column)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise RowError(f"{column} is {_kind(row, column)}, not a list")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise RowError(f"{column}[{number}] is {kind_of(turn)}, not an object")
        role = turn.get(role_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise RowError(f"{column}[{number}] has the {role_key} {shortened(repr(role), 60)}")
        messages.append(Message(_ROLES[role], _text(turn, content_key)))
    return messages


def _answered(messages: list[Message]) -> list[Message]:
    """Return the messages up to the last answer; later ones have no supervised tokens."""
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return messages


_PARSERS: dict[str, Callable[[Row], list[Message]]] = {
    "alpaca": _alpaca,
    "messages": lambda row: _answered(_turns(row, "messages", "role", "content")),
    "sharegpt": lambda row: _answered(_turns(row, "conversations", "from", "value")),
    "prompt-response": _prompt_response,
}
