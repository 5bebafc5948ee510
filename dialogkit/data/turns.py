"""The turns of a dialog as files hold them: lists of messages, and texts with chat markers."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from dialogkit.dialog import Message, Role
from dialogkit.errors import shortened

Row = Mapping[str, Any]
Notes = Counter[str]

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("user", "human", "prompter", "customer", "client", "question", "instruction", "input"), "user"
    ),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "gpt4", "gpt-4", "bot", "chatbot", "model", "ai", "agent", "bing", "bard"),
        "assistant",
    ),
    **dict.fromkeys(("claude", "llama", "answer", "response", "output"), "assistant"),
}
"""Names of roles, in any case and with or without the marks around them (`<|user|>`, `User:`)."""
TOOL_ROLES = frozenset(
    {"tool", "function", "observation", "function_call", "function-call", "tool_call", "ipython"}
)

ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "parts")
LEARNED_KEYS = ("weight", "train", "loss")
"""Keys of a turn with which OpenAI, axolotl and ms-swift mark an answer that is context only."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


UNWEIGHTED = "answers marked as not to be learned kept as context"
REASONING = "reasoning of answers left out"


class RowError(ValueError):
    """A row is not a dialog of its format; the message says why."""


def text_of(row: Row, name: str, *, optional: bool = False) -> str:
    """Return the text or number of a column as text. Raises: RowError for other values, or if it is required."""
    value = row.get(name)
    if value is None and optional:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    if value != value:
        raise RowError(f"{name} is NaN, not text")
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value) if name in row else 'missing'}, not text")
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


def is_false(value: Any) -> bool:
    """Return whether a value says no: false, 0 or "false"; None and everything else do not."""
    return value is not None and str(value).strip().lower() in ("false", "0", "0.0")


def first_given(row: Row, names: Iterable[str]) -> str | None:
    """Return the first of the columns that has a value, else the first that exists."""
    found = [name for name in names if name in row]
    return next((name for name in found if row[name] is not None), found[0] if found else None)


def read_turns(row: Row, column: str, notes: Notes, *, first: Role = "user") -> list[Message]:
    """Return the messages of a list of turns, up to the first turn that cannot be used.

    Turns without roles alternate, beginning with `first`.
    """
    turns = row.get(column)
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a list in a table
        with suppress(ValueError, RecursionError):
            turns = json.loads(turns)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise RowError(f"{column} is {kind_of(turns) if column in row else 'missing'}, not a list")
    others: Role = "assistant" if first == "user" else "user"
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        place = f"{column}[{number}]"
        try:
            if isinstance(turn, str):
                message = Message(first if number % 2 else others, text_of({place: turn}, place))
            else:
                message = _turn(turn, place, notes)
            if not message.content:
                raise RowError(f"message {number} ({message.role}) is empty")
            if message.role == "system" and any(before.role != "system" for before in messages):
                raise RowError(f"message {number} is from 'system'")
        except RowError as error:
            if not any(before.role == "assistant" for before in messages):
                raise
            notes[f"cut where {_general(str(error))}"] += 1
            break
        messages.append(message)
    return messages


def _general(problem: str) -> str:
    """Return the problem of a turn without its number, so that equal problems are counted together."""
    return re.sub(r"^\w+\[\d+\](?:\.\w+)?|^message \d+", "a message", problem)


def _turn(turn: Any, place: str, notes: Notes) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{place} is {kind_of(turn)}, not an object")
    key = first_given(turn, ROLE_KEYS) or "role"
    name = turn.get(key)
    plain = re.sub(r"[^\w-]", "", name).lower() if isinstance(name, str) else ""
    if plain in TOOL_ROLES or turn.get("tool_calls") or turn.get("function_call"):
        raise RowError(f"{place} is a tool call or its result, which cannot be learned")
    if plain not in ROLES:
        raise RowError(f"{place} has the {key} {shortened(repr(name), 60)}")
    content = first_given(turn, CONTENT_KEYS) or "content"
    text = _joined_parts(turn, content, place)
    if any(turn.get(reasoning) for reasoning in REASONING_KEYS):
        notes[REASONING] += 1
    learned = not any(is_false(turn.get(mark)) for mark in LEARNED_KEYS)
    if ROLES[plain] == "assistant" and not learned:
        notes[UNWEIGHTED] += 1
    return Message(ROLES[plain], text, learned or ROLES[plain] != "assistant")


def _joined_parts(turn: Row, key: str, place: str) -> str:
    """Return the text of a turn, which may come in parts."""
    parts = turn.get(key)
    if not isinstance(parts, list):
        return text_of({f"{place}.{key}": parts} if key in turn else {}, f"{place}.{key}")
    texts = []
    for part in parts:
        if isinstance(part, Mapping):
            if "text" not in part:
                kind = shortened(str(part.get("type", "unknown")), 30)
                raise RowError(f"{place} holds a part of type {kind!r}, which is not text")
            part = part["text"]
        texts.append(text_of({place: part}, place))
    return "\n".join(filter(None, texts))


_ROLE_WORDS = "|".join(sorted(map(re.escape, {*ROLES, *TOOL_ROLES}), key=len, reverse=True))
_MARKERS = [
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n",
        r"<\|start_header_id\|>[ \t]*(\w+)[ \t]*<\|end_header_id\|>",
        r"<start_of_turn>[ \t]*(\w+)[ \t]*\n",
        rf"<\|({_ROLE_WORDS})\|>",
        r"(\[/?INST\])",
        rf"^#{{2,4}}[ \t]*({_ROLE_WORDS})[ \t]*:?",
        rf"^({_ROLE_WORDS})[ \t]*:",
    )
]
"""Marks with which chat texts begin a turn: ChatML, Llama 3, Gemma, Zephyr, Llama 2, `### Human:`, `Human:`."""
_INSTRUCTION_MARKS: dict[str, Role] = {"[inst]": "user", "[/inst]": "assistant"}
_SYSTEM_BLOCK = re.compile(r"^\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_OTHER_MARKS = re.compile(
    r"<\|(?:im_end|eot_id|end|end_of_turn|begin_of_text|endoftext)\|>|<end_of_turn>|<bos>|</?s>"
)


def read_chat_text(row: Row, notes: Notes) -> list[Message]:
    """Return the turns of a text with chat markers."""
    text = text_of(row, "text")
    found = next((hits for marker in _MARKERS if len(hits := list(marker.finditer(text))) > 1), [])
    if not found:
        raise RowError("the text has no chat markers, such as '### Human:' or '<|im_start|>user'")
    messages = []
    if preamble := _OTHER_MARKS.sub("", text[: found[0].start()]).strip():
        messages.append(Message("system", preamble))
    for hit, following in zip(found, [*found[1:], None], strict=True):
        content = _OTHER_MARKS.sub("", text[hit.end() : following.start() if following else len(text)])
        mark = hit[1].lower()
        if (role := _INSTRUCTION_MARKS.get(mark) or ROLES.get(mark)) is None:
            raise RowError(f"the text has the role {shortened(repr(hit[1]), 60)}")
        if role == "user" and (block := _SYSTEM_BLOCK.match(content)):
            messages.append(Message("system", block[1].strip()))
            content = content[block.end() :]
        if content.strip():
            messages.append(Message(role, content.strip()))
    return messages
