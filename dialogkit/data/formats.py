"""The shapes of dataset rows: how each is recognised, and how its rows become dialogs.

`FORMATS` declares every shape; the reference page is generated from it. Nothing of a row is dropped silently:
`RowParser` counts what it repairs or leaves out (`notes`) and lists the columns that it does not use.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialogkit.data.hints import USE_STARTER
from dialogkit.dialog import Dialog, Message, Role, check_dialog
from dialogkit.errors import DataError, did_you_mean, shortened
from dialogkit.hints import Change, Either, Hint

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

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "data")
PROMPT = ("prompt", "question", "query", "input", "instruction")
RESPONSE = ("response", "completion", "output", "answer", "reply", "target")
CONTEXT = ("input", "context")
SYSTEM = ("system", "system_prompt", "system_message")
REJECTED = ("rejected", "rejected_response")
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")
LEARNED_KEYS = ("weight", "train", "loss")
"""Keys of a turn with which OpenAI, axolotl and ms-swift mark an answer that is context only."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

_MAX_COLUMNS = 1000
TREES = "oasst"
JOINED = "consecutive messages of one role joined"
GREETING = "opening message of the assistant kept as context, not learned"
UNANSWERED = "messages after the last answer left out"
UNWEIGHTED = "answers marked as not to be learned kept as context"
REASONING = "reasoning of answers left out"
TOOLS = "tool definitions left out"
PREFERENCES = "preference data: the chosen answer is learned, the rejected one left out"
MARKED_BAD = "marked as bad by `label`"


class RowError(ValueError):
    """A row is not a dialog of its format; the message says why."""


@dataclass(frozen=True)
class Format:
    """A shape of rows.

    Attributes:
        name: as `data.format` takes it.
        columns: in words, what its rows have.
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
    found = {_name(column) for column in columns}
    if (known := next((name for name, form in FORMATS.items() if form.matches(found)), None)) is not None:
        return known
    raise unknown_columns(columns, source=source)


def unknown_columns(columns: Collection[str], *, source: str) -> DataError:
    """Return the error of rows whose columns match no format."""
    # An unclosed quote in the header of a CSV file includes line ends.
    names = [shortened(" ".join(name.split()), 60) for name in columns]
    hint: Hint = USE_STARTER
    if len(usable := [name for name in names if re.fullmatch(r"[^\s=,'\"]+", name)]) > 1:
        hint = Either(Change({"data.columns": [f"prompt={usable[0]}", f"response={usable[1]}"]}), USE_STARTER)
    for kind, marks in _OTHER_SHAPES.items():
        if marks <= {_name(column) for column in columns}:
            message = f"{source} is {kind}; convert it to rows with messages, each with a role and content"
            return DataError(message, hint=USE_STARTER)
    return DataError(
        f"{source} has the columns {', '.join(names[:12]) or 'none'}, which match none of the known formats "
        f"({', '.join(FORMATS)})",
        hint=hint,
    )


_OTHER_SHAPES = {
    "PersonaChat data with candidate replies": {"personality", "utterances"},
    "a chat export of Telegram": {"type", "name", "messages"},
}
"""Shapes that are known but cannot be read, by their columns."""


class RowParser:
    """Parses the rows of one dataset.

    Attributes:
        format: the name of the format; empty until `recognise` has found one.
        notes: what was repaired or left out, in words, with the number of dialogs.
        columns: columns of the rows that were parsed.
        unknown: the error of the first row whose columns match no format.
    """

    def __init__(
        self, format: str = "", columns: Mapping[str, str] | None = None, *, source: str = "the dataset"
    ) -> None:
        """Parse rows of a format (empty: recognised) with the columns renamed by `data.columns`."""
        self.format = format
        self.notes: Notes = Counter()
        self.columns: dict[str, None] = {}
        self.unknown: DataError | None = None
        self._mapped = {role: _name(column) for role, column in (columns or {}).items()}
        self._source = source

    @property
    def unused(self) -> list[str]:
        """Columns that are not used, in the order of the rows."""
        used = set(self._mapped.values()) or {*FORMATS[self.format].uses, *SYSTEM, *REJECTED, "label", "tools"}
        return [name for name in self.columns if name and name not in used]

    def expects_trees(self, row: Row) -> bool:
        """Return whether rows like this are messages of trees, so that `tree_paths` makes the rows to parse."""
        if not self.format and FORMATS[TREES].matches({*map(_name, row)}) and not self._mapped:
            self.format = TREES
        return self.format == TREES

    def parse(self, row: Row) -> Dialog:
        """Return the dialog of a row. The first row of a known format decides the format.

        Raises: RowError if the row has no dialog.
        """
        if not self.format:
            try:
                self.format = self._recognised(row)
            except DataError as error:
                self.unknown = self.unknown or error
                raise RowError(f"its columns ({', '.join(map(_name, row))}) match no known format") from None
        if len(self.columns) < _MAX_COLUMNS:
            self.columns.update(dict.fromkeys(map(_name, row)))
        notes: Notes = Counter()
        dialog = self._dialog(_renamed(row, self._mapped), notes)
        self.notes.update(dict.fromkeys(notes, 1))
        return dialog

    def _recognised(self, row: Row) -> str:
        columns = {_name(column) for column in row}
        for column in self._mapped.values():
            if column not in columns:
                meant = did_you_mean(column, sorted(columns))
                raise DataError(f"{self._source} has no column {column!r}{meant}; it has {', '.join(row)}")
        return recognise_format(self._mapped or row.keys(), source=self._source)

    def _dialog(self, row: Row, notes: Notes) -> Dialog:
        if is_false(row.get("label")):
            self.notes[MARKED_BAD] += 1
            raise RowError(MARKED_BAD)
        messages = FORMATS[self.format].read(row, notes)
        if system := next((text for name in SYSTEM if (text := _text(row, name, optional=True))), ""):
            messages.insert(0, Message("system", system))
        if row.get("tools"):
            notes[TOOLS] += 1
        if any(row.get(name) for name in REJECTED):
            notes[PREFERENCES] += 1
        return _repaired(messages, notes)


def parse_row(row: Row, kind: str) -> Dialog:
    """Return the dialog of a single row of a format. Raises: RowError if it has none."""
    return RowParser(kind).parse(row)


def _name(column: Any) -> str:
    return str(column).strip().lower()


def _renamed(row: Row, mapped: Mapping[str, str]) -> Row:
    """Return a row with its columns as the formats name them."""
    clean = {_name(column): value for column, value in row.items()}
    if len(clean) < len(row):
        twice = next(name for name, number in Counter(map(_name, row)).items() if number > 1)
        raise RowError(f"two columns are called {twice!r}")
    return {role: clean.get(column) for role, column in mapped.items()} if mapped else clean


def _repaired(messages: list[Message], notes: Notes) -> Dialog:
    """Return messages as a dialog. Raises: RowError if no answer is left."""
    system = [message.content for message in messages if message.role == "system" and message.content]
    turns: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        if turns and turns[-1].role == message.role:
            notes[JOINED] += 1
            before = turns.pop()
            message = Message(
                message.role, f"{before.content}\n\n{message.content}".strip(), before.learned and message.learned
            )
        turns.append(message)
    while turns and turns[-1].role != "assistant":
        turns.pop()
        notes[UNANSWERED] += 1
    if turns and turns[0].role == "assistant":
        turns[0] = turns[0]._replace(learned=False)
        notes[GREETING] += 1
    dialog = tuple([Message("system", "\n\n".join(dict.fromkeys(system))), *turns] if system else turns)
    if problem := check_dialog(dialog):
        raise RowError(problem)
    if not any(turn.learned for turn in turns if turn.role == "assistant"):
        raise RowError("no answer to learn")
    return dialog


def _text(row: Row, name: str, *, optional: bool = False) -> str:
    value = row.get(name)
    if value is None and optional:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
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


def _given(row: Row, names: Iterable[str]) -> str | None:
    """Return the first of the columns that has a value, else the first that exists."""
    found = [name for name in names if name in row]
    return next((name for name in found if row[name] is not None), found[0] if found else None)


def _alpaca(row: Row, notes: Notes) -> list[Message]:
    context = (_text(row, name, optional=True) for name in CONTEXT)
    prompt = "\n\n".join(filter(None, [_text(row, "instruction"), *context]))
    answer = _given(row, RESPONSE) or "output"
    return [*_history(row, notes), Message("user", prompt), Message("assistant", _text(row, answer))]


def _prompt_response(row: Row, notes: Notes) -> list[Message]:
    asked, answer = _given(row, PROMPT) or "prompt", _given(row, RESPONSE) or "response"
    # Conversational prompt/completion rows hold lists of messages.
    if isinstance(row.get(asked), list):
        return [*_turns(row, asked, notes), *_turns(row, answer, notes, first="assistant")]
    context = "" if asked == "context" else _text(row, "context", optional=True)
    prompt = "\n\n".join(filter(None, [_text(row, asked), context]))
    return [*_history(row, notes), Message("user", prompt), Message("assistant", _text(row, answer))]


def _history(row: Row, notes: Notes) -> list[Message]:
    """Return the exchanges before the prompt: pairs of texts, or turns."""
    if not row.get("history"):
        return []
    history = row["history"]
    if isinstance(history, Sequence) and all(isinstance(pair, list | tuple) for pair in history):
        history = [text for pair in history for text in pair]
    return _turns({"history": history}, "history", notes)


def _messages(row: Row, notes: Notes) -> list[Message]:
    return _turns(row, _given(row, TURNS) or "messages", notes)


def _preference(row: Row, notes: Notes) -> list[Message]:
    chosen = row.get("chosen")
    if isinstance(chosen, Mapping):
        chosen = [chosen]
    before = _given(row, (*TURNS, *PROMPT))
    if isinstance(chosen, str):
        if before is None:
            return _marked({"text": chosen}, notes)
        answer = [Message("assistant", _text(row, "chosen"))]
    else:
        answer = _turns({"chosen": chosen}, "chosen", notes, first="assistant")
    if before is None or (answer and answer[0].role != "assistant"):  # the whole dialog
        return answer
    asked = [Message("user", _text(row, before))] if isinstance(row[before], str) else _turns(row, before, notes)
    if asked and asked[-1].role == "assistant":  # the dialog with its chosen answer
        asked = asked[:-1] if asked[-1] == answer[-1] else asked
    return [*asked, *answer]


def _turns(row: Row, column: str, notes: Notes, *, first: Role = "user") -> list[Message]:
    """Return the messages of a list of turns, up to the first turn that cannot be used.

    Turns without roles alternate, beginning with `first`.
    """
    turns = row.get(column)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise RowError(f"{column} is {kind_of(turns) if column in row else 'missing'}, not a list")
    others: Role = "assistant" if first == "user" else "user"
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        place = f"{column}[{number}]"
        try:
            if isinstance(turn, str):
                message = Message(first if number % 2 else others, _text({place: turn}, place))
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
    key = _given(turn, ROLE_KEYS) or "role"
    name = turn.get(key)
    plain = re.sub(r"[^\w-]", "", name).lower() if isinstance(name, str) else ""
    if plain in TOOL_ROLES or turn.get("tool_calls") or turn.get("function_call"):
        raise RowError(f"{place} is a tool call or its result, which cannot be learned")
    if plain not in ROLES:
        raise RowError(f"{place} has the {key} {shortened(repr(name), 60)}")
    content = _given(turn, CONTENT_KEYS) or "content"
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
        return _text({f"{place}.{key}": parts} if key in turn else {}, f"{place}.{key}")
    texts = []
    for part in parts:
        if isinstance(part, Mapping):
            if "text" not in part:
                kind = shortened(str(part.get("type", "unknown")), 30)
                raise RowError(f"{place} holds a part of type {kind!r}, which is not text")
            part = part["text"]
        texts.append(_text({place: part}, place))
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


def _marked(row: Row, notes: Notes) -> list[Message]:
    """Return the turns of a text with chat markers."""
    text = _text(row, "text")
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


def tree_paths(rows: Iterable[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """Return place and row of the dialogs of OpenAssistant's message trees: of each tree the best-ranked path.

    Args:
        rows: place and content of rows with message_id, parent_id, role, text, and rank (0 is the best).
    """
    places: dict[str, str] = {}
    children: dict[str | None, list[Row]] = {}
    for place, content in rows:
        row = _renamed(content, {})
        places.setdefault(str(row.get("message_id")), place)
        children.setdefault(row.get("parent_id") or None, []).append(row)
    dialogs: list[tuple[str, Row]] = []
    for root in children.get(None, []):
        path, seen = [root], {root.get("message_id")}
        while replies := [
            r for r in children.get(path[-1].get("message_id"), []) if r.get("message_id") not in seen
        ]:
            path.append(min(replies, key=_rank))
            seen.add(path[-1].get("message_id"))
        dialogs.append((places[str(root.get("message_id"))], {"messages": path}))
    return dialogs


def _rank(row: Row) -> float:
    rank = row.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")


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
            lambda found: bool(found & {*TURNS} - {"conversations"}) and not {"type", "name"} <= found,
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
            f"{', '.join(PROMPT[:4])} with {', '.join(RESPONSE[:4])}",
            (*PROMPT, "context", "history", *RESPONSE),
            lambda found: bool(found & {*PROMPT}) and bool(found & {*RESPONSE}),
            _prompt_response,
            {"prompt": "Hi", "response": "Hello."},
        ),
        Format(
            "text",
            "text with chat markers, such as ChatML or ### Human:",
            ("text",),
            lambda found: "text" in found,
            _marked,
            {"text": "### Human: Hi\n### Assistant: Hello."},
        ),
    )
}
"""Every shape by its name, the richest first: the first that matches is used."""


def example_of(form: Format) -> str:
    """Return an example row of a format as a line of JSONL."""
    return json.dumps(form.example)
