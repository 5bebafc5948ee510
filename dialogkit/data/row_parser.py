"""Parses the rows of a dataset into dialogs, and counts what it repairs or leaves out."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dialogkit.data.formats import FORMATS, REJECTED, SYSTEM, TREES, by_column, column_name, recognise_format
from dialogkit.data.questions import COLUMNS as CHECKED
from dialogkit.data.split import SPLIT
from dialogkit.data.turns import Notes, Row, RowError, is_false, text_of
from dialogkit.dialog import Dialog, Message, check_dialog
from dialogkit.errors import DataError, did_you_mean

_MAX_COLUMNS = 1000
JOINED = "consecutive messages of one role joined"
GREETING = "opening message of the assistant kept as context, not learned"
UNANSWERED = "messages after the last answer left out"
TOOLS = "tool definitions left out"
PREFERENCES = "preference data: the chosen answer is learned, the rejected one left out"
MARKED_BAD = "marked as bad by `label`"
_BESIDE = (*SYSTEM, "label", "tools", SPLIT, *CHECKED)
"""Columns that mean the same beside any shape, so that `data.columns` need not map them."""


class RowParser:
    """Parses the rows of one dataset.

    Attributes:
        format: the name of the format; empty until a row of a known format was parsed.
        notes: what was repaired or left out, with the number of dialogs.
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
        self._mapped = {role: column_name(column) for role, column in (columns or {}).items()}
        self._beside = {*_BESIDE} - {*self._mapped, *self._mapped.values()}
        if "system" in self._mapped:
            self._beside -= {*SYSTEM}
        self._source = source

    @property
    def unused(self) -> list[str]:
        """Columns that are not used, in the order of the rows."""
        known = {*FORMATS[self.format].uses, *SYSTEM, *REJECTED, "label", "tools"}
        used = {column for name in known if (column := self.column_of(name)) is not None}
        return [name for name in self.columns if name and name not in used]

    def column_of(self, name: str) -> str | None:
        """Return the column that means `name`; None if `data.columns` leaves none."""
        return self._mapped.get(name, name if not self._mapped or name in self._beside else None)

    def values_of(self, row: Row) -> dict[str, Any]:
        """Return the values of a row by what its columns mean."""
        values = by_column(row)
        if not self._mapped:
            return values
        beside = {name: values[name] for name in self._beside if name in values}
        return {**beside, **{role: values.get(column) for role, column in self._mapped.items()}}

    def expects_trees(self, row: Row) -> bool:
        """Return whether rows like this are messages of trees, so that `read_trees` makes the rows to parse."""
        if not self.format and FORMATS[TREES].matches({*map(column_name, row)}) and not self._mapped:
            self.format = TREES
        if self.format == TREES:
            self.columns.update(dict.fromkeys(by_column(row)))
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
                raise RowError(f"its columns ({', '.join(map(column_name, row))}) match no known format") from None
        values = by_column(row)
        if len(self.columns) < _MAX_COLUMNS:
            self.columns.update(dict.fromkeys(values))
        if len(values) < len(row):
            twice = next(name for name, number in Counter(map(column_name, row)).items() if number > 1)
            raise RowError(f"two columns are called {twice!r}")
        notes: Notes = Counter()
        dialog = self._dialog(self.values_of(row) if self._mapped else values, notes)
        self.notes.update(dict.fromkeys(notes, 1))
        return dialog

    def _recognised(self, row: Row) -> str:
        columns = {column_name(column) for column in row}
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
        if system := next((text for name in SYSTEM if (text := _system_text(row, name))), ""):
            messages.insert(0, Message("system", system))
        if row.get("tools"):
            notes[TOOLS] += 1
        if any(row.get(name) for name in REJECTED):
            notes[PREFERENCES] += 1
        return _repaired(messages, notes)


def _system_text(row: Row, name: str) -> str:
    """Return the system text of a column, which may come in parts."""
    parts = row.get(name)
    if not isinstance(parts, list):
        return text_of(row, name, optional=True)
    return "\n".join(text_of(part if isinstance(part, Mapping) else {"text": part}, "text") for part in parts)


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
