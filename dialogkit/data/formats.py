"""The shapes of dataset rows: how each is recognised, and which messages its rows hold.

`FORMATS` declares every shape; the reference page is generated from it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dialogkit.data.hints import USE_STARTER
from dialogkit.data.turns import Notes, Row, RowError, first_given, read_chat_text, read_turns, text_of
from dialogkit.dialog import Message
from dialogkit.errors import DataError, shortened
from dialogkit.hints import Change, Either, Hint

TURNS = (
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "turns",
    "data",
    "contents",
    "chat_messages",
)
PROMPT = ("prompt", "question", "query", "input", "instruction")
RESPONSE = ("response", "completion", "output", "answer", "reply", "target")
PAIRS = (("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("human", "ai"), ("q", "a"))
"""Columns that are a prompt and its answer only together."""
CONTEXT = ("input", "context")
SYSTEM = ("system", "system_prompt", "system_message")
REJECTED = ("rejected", "rejected_response")
TREES = "oasst"
_NEITHER = {*SYSTEM, *REJECTED, *CONTEXT, "history", "label", "tools", "weight", "split", "check", "id"}
"""Columns whose meaning is known, and is neither a prompt nor an answer."""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes:
        name: as `data.format` takes it.
        columns: a description of what its rows have.
        uses: columns that it reads.
        matches: returns whether a set of columns has this shape.
        read: returns the messages of a row.
        example: a row.
    """

    name: str
    columns: str
    uses: tuple[str, ...]
    matches: Callable[[set[str]], bool]
    read: "Callable[[Row, Notes], list[Message]]"
    example: Row


def recognise_format(columns: Collection[str], *, source: str) -> str:
    """Return the name of the format of rows with these columns.

    Raises: DataError listing the columns and the known formats.
    """
    found = {column_name(column) for column in columns}
    if (known := next((name for name, form in FORMATS.items() if form.matches(found)), None)) is not None:
        return known
    raise unknown_columns(columns, source=source)


def unknown_columns(columns: Collection[str], *, source: str) -> DataError:
    """Return the error of rows whose columns match no format."""
    # An unclosed quote in the header of a CSV file includes line ends.
    names = [shortened(" ".join(name.split()), 60) for name in columns]
    mapped = _likely_columns(columns)
    hint: Hint = Either(Change({"data.columns": mapped}), USE_STARTER) if mapped else USE_STARTER
    for kind, marks in _OTHER_SHAPES.items():
        if marks <= {column_name(column) for column in columns}:
            message = f"{source} is {kind}; convert it to rows with messages, each with a role and content"
            return DataError(message, hint=USE_STARTER)
    return DataError(
        f"{source} has the columns {', '.join(names[:12]) or 'none'}, which match none of the known formats "
        f"({', '.join(FORMATS)})",
        hint=hint,
    )


def _likely_columns(columns: Collection[str]) -> list[str]:
    """Return a mapping of the first two suitable columns to prompt and answer; empty if there are not two."""
    # What a column is called must reach the command unchanged.
    plain = [name for name in columns if name.isprintable() and len(name) <= 60 and not {*name} & {*'=,"'}]
    names = {column_name(name): name.strip() for name in plain if name.strip()}
    asked = next((name for name in PROMPT if name in names), "")
    answer = next((name for name in RESPONSE if name in names), "")
    free = iter(name for name in names if name not in {asked, answer, *_NEITHER})
    asked = asked or next(free, "")
    answer = answer or next(free, "")
    if not (asked and answer):
        return []
    return [f"prompt={names[asked]}", f"response={names[answer]}"]


_OTHER_SHAPES = {
    "PersonaChat data with candidate replies": {"personality", "utterances"},
    "a chat export of Telegram": {"type", "name", "messages"},
    "a chat export of Discord": {"guild", "channel", "messages"},
    "a chat export of Slack": {"type", "user", "text", "ts"},
    "a chat export of ChatGPT": {"title", "mapping"},
    "SQuAD data": {"title", "paragraphs"},
    "SQuAD data of questions with answers in a text": {"context", "question", "answers"},
    "preference data as OpenAI takes it": {"preferred_output", "non_preferred_output"},
    "UltraFeedback data of rated completions": {"instruction", "completions"},
}
"""Shapes that are known but cannot be read, by their columns."""


def column_name(column: Any) -> str:
    """Return the name by which a column is known: case and blanks around it do not matter."""
    return str(column).strip().lower()


def by_column(row: Row) -> dict[str, Any]:
    """Return the values of a row by `column_name`; of columns with the same name, only the last."""
    return {column_name(column): value for column, value in row.items()}


def _alpaca(row: Row, notes: Notes) -> list[Message]:
    context = (text_of(row, name, optional=True) for name in CONTEXT)
    prompt = "\n\n".join(filter(None, [text_of(row, "instruction"), *context]))
    answer = first_given(row, RESPONSE) or "output"
    return [*_history(row, notes), Message("user", prompt), Message("assistant", text_of(row, answer))]


def _prompt_response(row: Row, notes: Notes) -> list[Message]:
    pair = next((pair for pair in PAIRS if {*pair} <= row.keys()), ("prompt", "response"))
    asked, answer = first_given(row, PROMPT) or pair[0], first_given(row, RESPONSE) or pair[1]
    if row.get("choices") and isinstance(row.get(answer), int):
        raise RowError(f"{answer} is the number of one of its choices, not its text")
    # Conversational prompt/completion rows hold lists of messages.
    if isinstance(row.get(asked), list):
        return [*read_turns(row, asked, notes), *read_turns(row, answer, notes, first="assistant")]
    prompt = "\n\n".join(filter(None, [text_of(row, asked), text_of(row, "context", optional=True)]))
    return [*_history(row, notes), Message("user", prompt), Message("assistant", text_of(row, answer))]


def _history(row: Row, notes: Notes) -> list[Message]:
    """Return the exchanges before the prompt: pairs of texts, or turns."""
    if not row.get("history"):
        return []
    history = row["history"]
    if isinstance(history, Sequence) and all(isinstance(pair, list | tuple) for pair in history):
        history = [text for pair in history for text in pair]
    return read_turns({"history": history}, "history", notes)


def _messages(row: Row, notes: Notes) -> list[Message]:
    return read_turns(row, first_given(row, TURNS) or "messages", notes)


def _preference(row: Row, notes: Notes) -> list[Message]:
    chosen = row.get("chosen")
    if isinstance(chosen, Mapping):
        chosen = [chosen]
    before = first_given(row, (*TURNS, *PROMPT))
    if isinstance(chosen, str):
        if before is None:
            return read_chat_text({"text": chosen}, notes)
        answer = [Message("assistant", text_of(row, "chosen"))]
    else:
        answer = read_turns({"chosen": chosen}, "chosen", notes, first="assistant")
    if before is None or (answer and answer[0].role != "assistant"):  # the whole dialog
        return answer
    is_text = isinstance(row[before], str)
    asked = [Message("user", text_of(row, before))] if is_text else read_turns(row, before, notes)
    if asked and asked[-1].role == "assistant":  # the dialog with its chosen answer
        asked = asked[:-1] if asked[-1] == answer[-1] else asked
    return [*asked, *answer]


def _is_messages(found: set[str]) -> bool:
    exported = {"type", "name"} <= found or {"guild", "channel"} <= found  # Telegram, Discord
    return bool(found & {*TURNS} - {"conversations"}) and not exported


def _is_prompt_response(found: set[str]) -> bool:
    return bool(found & {*PROMPT} and found & {*RESPONSE}) or any({*pair} <= found for pair in PAIRS)


_EXCHANGE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format(
            TREES,
            "message_id, parent_id, role and text: message trees; the best-ranked path of each is used",
            ("message_id", "parent_id", "message_tree_id", "role", "text", "rank", "messages"),
            lambda found: {"message_id", "parent_id", "role", "text"} <= found,
            _messages,
            {"message_id": "a1", "parent_id": None, "role": "prompter", "text": "Hi"},
        ),
        Format(
            "preference",
            "chosen and rejected, with or without a prompt",
            ("chosen", *TURNS, *PROMPT),
            lambda found: {"chosen", "rejected"} <= found,
            _preference,
            {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        ),
        Format(
            "messages",
            "messages (or dialog, dialogue, conversation, turns, data) with role and content, or texts in turn",
            TURNS,
            _is_messages,
            _messages,
            {"messages": _EXCHANGE},
        ),
        Format(
            "sharegpt",
            "conversations with from and value",
            TURNS,
            lambda found: "conversations" in found,
            _messages,
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        ),
        Format(
            "alpaca",
            f"instruction with {' or '.join(RESPONSE[:3])} (and input, context, history)",
            ("instruction", *CONTEXT, "history", *RESPONSE),
            lambda found: "instruction" in found and bool(found & {*RESPONSE}),
            _alpaca,
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        ),
        Format(
            "prompt-response",
            f"{', '.join(PROMPT[:4])} with {', '.join(RESPONSE[:4])}; user or human with assistant, q with a",
            (*PROMPT, "context", "history", *RESPONSE, *chain(*PAIRS)),
            _is_prompt_response,
            _prompt_response,
            {"prompt": "Hi", "response": "Hello."},
        ),
        Format(
            "text",
            "text with chat markers, such as ChatML or ### Human:",
            ("text",),
            lambda found: "text" in found and not {"user", "ts"} <= found,
            read_chat_text,
            {"text": "### Human: Hi\n### Assistant: Hello."},
        ),
    )
}
"""Every shape by its name, the richest first: the first that matches is used."""
