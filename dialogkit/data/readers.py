"""Reads rows from files: JSON, JSONL, CSV and Parquet, also gzipped.

Files are not trusted. They are read as a stream, and the sizes of rows and unpacked files are limited. A malformed
row (invalid JSON or UTF-8, duplicate key, too long, nested too deeply) is yielded with its problem, and the caller
decides whether to continue. pyarrow's own JSON reader is not used: deep nesting crashes the process.
"""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dialogkit.data.formats import FORMATS, TURNS, column_name
from dialogkit.data.hints import FIX_LINE
from dialogkit.data.open_files import (
    CHUNK_BYTES,
    MAX_ROW,
    NOT_UTF8,
    TOO_LONG,
    Row,
    open_text,
    readable,
    require_different,
    suffix_of,
)
from dialogkit.data.parquet import parquet_rows
from dialogkit.data.turns import CONTENT_KEYS, ROLE_KEYS, kind_of
from dialogkit.errors import DataError, shortened
from dialogkit.text import json_problem

_NO_BLANK = re.compile(r"[^ \t\r\n]")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. Raises: DataError for a problem after which no row can be read."""
    with readable(path):
        match suffix_of(path):
            case ".csv" | ".tsv":
                yield from _csv_rows(path)
            case ".parquet":
                yield from parquet_rows(path)
            case _:
                yield from _json_rows(path)


class Decoder:
    """Decodes JSON and detects duplicate keys, of which `json` silently keeps the last."""

    def __init__(self) -> None:
        self.duplicates: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counted = Counter(key for key, _ in pairs)
            self.duplicates.append(next(key for key, number in counted.items() if number > 1))
        return made

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that starts at `start`, and its end. Raises: what `json` raises."""
        self.duplicates.clear()
        return self._decoder.raw_decode(text, start)

    def problem(self, content: Any) -> str | None:
        """Return the problem of the value that was decoded last, or None."""
        if self.duplicates:
            return f"the key {shortened(repr(self.duplicates[0]), 60)} appears twice"
        if not isinstance(content, dict):
            return f"a row must be an object, not {kind_of(content)}"
        return None


def _json_rows(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        head = file.peek(4096) if isinstance(file, io.BufferedReader) else b""
        text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "ignore")
        if text.lstrip().startswith("["):
            yield from _Values(path.name, _decoded(file)).array()
        elif (skipped := _before_wrapped_rows(text)) is not None:
            yield from _Values(path.name, _decoded(file), skipped).array(wrapped=True)
        else:
            yield from _object_rows(path, file)


def _decoded(file: BinaryIO) -> TextIO:
    return io.TextIOWrapper(file, encoding="utf-8-sig")


_WRAPPED = re.compile(
    r'\s*\{(?:\s*"[^"]*"\s*:\s*(?:"[^"]*"|[-+.\w]+|\{[^{}]*\})\s*,)*'
    r'\s*"(?:data|rows|train|examples|items|dialogs|records|results|samples)"\s*:\s*(?=\[\s*\{)'
)


def _before_wrapped_rows(text: str) -> int | None:
    """Return the characters before a list of rows such as `{"data": [{...}, ...]}`, or None for other texts."""
    if (found := _WRAPPED.match(text)) is None:
        return None
    first = re.compile(r'\[\s*\{\s*"([^"]*)"').match(text, found.end())
    # The list may also be the turns of one dialog.
    return None if first is not None and first[1].lower() in (*ROLE_KEYS, *CONTENT_KEYS) else found.end()


def _object_rows(path: Path, file: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a text of JSON objects: one per line, or written over several lines."""
    rows = _line_rows(path.name, file)
    if (first := next(rows, None)) is None:
        return
    if first.problem is None:
        yield from _spread(first, rows)
        return
    # Objects may be written over several lines, and old Macs ended lines by a carriage return alone.
    with open_text(path) as again:
        values = _Values(path.name, _decoded(again))
        sequence, started, after = values.sequence(), None, ","
        with suppress(DataError, UnicodeDecodeError):
            started, after = next(sequence, None), values.peek()
        if started is not None and started.problem is None and after != ",":
            yield from _spread(started, sequence)
        else:
            yield first
            yield from rows


def _spread(first: Row, others: Iterator[Row]) -> Iterator[Row]:
    """Yield rows; of a first row that holds all rows by column, as pandas writes it, those rows."""
    table = _from_columns(first.content) if isinstance(first.content, dict) else None
    if table is None:
        yield first
    else:
        place = first.place.rpartition(":")[0]
        yield from (Row(f"{place}[{number}]", row) for number, row in enumerate(table, 1))
    yield from others


def _from_columns(content: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of a table by columns: the orients of `pandas.DataFrame.to_json`, and lists."""
    values = list(content.values())
    if values and all(isinstance(value, dict) for value in values):
        if any(value.keys() != values[0].keys() for value in values):
            return None
        if _is_known(values[0]) and not _is_known(content):  # the orient index
            return values
        if len(values) == 1 and not all(key.isdigit() for key in values[0]):  # an object in a row
            return None
        return [{name: column[key] for name, column in content.items()} for key in values[0]]
    if isinstance(columns := content.get("columns"), list) and isinstance(rows := content.get("data"), list):
        return [dict(zip(map(str, columns), row, strict=False)) for row in rows if isinstance(row, list)]
    texts = all(isinstance(value, list) and not any(isinstance(v, dict | list) for v in value) for value in values)
    if not texts or len(values) < 2 or {*content} & {*TURNS} or len({*map(len, values)}) > 1:
        return None
    return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]


def _is_known(row: dict[str, Any]) -> bool:
    columns = {column_name(column) for column in row}
    return any(form.matches(columns) for form in FORMATS.values())


def _line_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    decoder, number = Decoder(), 0
    while line := read_line(file)[0]:
        number += 1
        if (row := parse_line(line, decoder, first=number == 1)) is not None:
            yield Row(f"{name}:{number}", *row)


def read_line(file: BinaryIO) -> tuple[bytes, int]:
    """Return the next line, empty at the end, and the bytes beyond the first `MAX_ROW` + 1, which are left out."""
    line = rest = file.readline(MAX_ROW + 1)
    longer_by = 0
    while len(line) > MAX_ROW and rest and not rest.endswith(b"\n"):
        rest = file.readline(CHUNK_BYTES)
        longer_by += len(rest)
    return line, longer_by


def parse_line(line: bytes, decoder: Decoder, *, first: bool) -> tuple[Any, str | None] | None:
    """Return the content and the problem of a line of JSONL; None for an empty line.

    `first`: whether it is the first line of the file, which may start with a byte-order mark.
    """
    if len(line) > MAX_ROW:
        return None, TOO_LONG
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
        if not text:
            return None
        content, end = decoder.decode(text, 0)
        return content, "not valid JSON: extra data" if text[end:] else decoder.problem(content)
    except UnicodeDecodeError:
        return None, NOT_UTF8
    except json.JSONDecodeError as error:
        return None, json_problem(error)
    except (RecursionError, ValueError) as error:
        return None, _exceeded(error)


def _exceeded(error: Exception) -> str:
    """Return which limit of the decoder a text exceeds: nesting, or the digits of a number."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"a number of more than {sys.get_int_max_str_digits():,} digits"


class _Values:
    """JSON values of a text, with at most one value and a chunk in memory."""

    def __init__(self, name: str, text: TextIO, skipped: int = 0) -> None:
        """Read the values of a text after its first `skipped` characters."""
        self._name, self._text = name, text
        self._buffer, self._at = "", 0
        self._line = 1 + text.read(skipped).count("\n")

    def sequence(self) -> Iterator[Row]:
        """Yield values that follow one another, with white space between them."""
        decoder = Decoder()
        while self.peek():
            line = self._line + self._buffer.count("\n", 0, self._at)
            content = self._value(decoder)
            yield Row(f"{self._name}:{line}", content, decoder.problem(content))

    def array(self, *, wrapped: bool = False) -> Iterator[Row]:
        """Yield the elements of an array; of a `wrapped` one, the rest of the text is not read."""
        decoder, number = Decoder(), 0
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
        else:
            while True:
                number += 1
                content = self._value(decoder)
                yield Row(f"{self._name}[{number}]", content, decoder.problem(content))
                if self.peek() == "]":
                    self._at += 1
                    break
                self._expect(",")
                if self.peek() == "]":
                    raise self._error("a comma after the last row")
        if not wrapped and self.peek():
            raise self._error("extra data after the array")

    def _value(self, decoder: Decoder) -> Any:
        self.peek()
        while True:
            try:
                content, end = decoder.decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self._at
                if len(self._buffer) - self._at > MAX_ROW or not self._more():
                    raise self._error(json_problem(error), self._at + ahead) from None
            except (RecursionError, ValueError) as error:
                raise self._error(_exceeded(error)) from None
            else:
                self._at = end
                return content

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end."""
        while True:
            if found := _NO_BLANK.search(self._buffer, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._buffer)
            if not self._more():
                return ""

    def _expect(self, mark: str) -> None:
        if self.peek() != mark:
            raise self._error(f"not valid JSON: expecting {mark!r} delimiter")
        self._at += 1

    def _more(self) -> bool:
        """Read a chunk and drop what was decoded. Return whether the file had more."""
        chunk = self._text.read(CHUNK_BYTES)
        self._line += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return bool(chunk)

    def _error(self, problem: str, at: int | None = None) -> DataError:
        line = self._line + self._buffer.count("\n", 0, self._at if at is None else at)
        return DataError(f"{self._name}:{line}: {problem}", hint=FIX_LINE)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW)  # 128 KB otherwise, less than a long answer
    with open_text(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        taken = 0

        def read_lines() -> Iterator[str]:
            nonlocal taken
            while line := text.readline(MAX_ROW):
                taken += len(line)
                if taken > MAX_ROW:  # a row has any number of lines if line ends are quoted
                    raise DataError(f"{path.name}: the row after line {done} is {TOO_LONG}", hint=FIX_LINE)
                yield line

        done, lines = 0, read_lines()
        header = next(lines, "")
        # In locales with a decimal comma, spreadsheets separate fields by semicolons; Excel may say so first.
        if named := re.fullmatch(r'"?sep=(.)"?\s*', header):
            delimiter, header_line, header = named[1], 2, next(lines, "")
        else:
            delimiter, header_line = max(",;\t|", key=header.count), 1
        columns = next(csv.reader([header], delimiter=delimiter), [])
        require_different(columns, f"{path.name}:{header_line}")
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        done = header_line
        while True:
            taken = 0
            try:
                fields = next(reader, None)
            except csv.Error as error:
                # An unclosed quote extends to the end of the file.
                if "end of data" in str(error):
                    problem = f"{path.name}: the row after line {done} opens a quote that is never closed"
                    raise DataError(problem, hint=FIX_LINE) from None
                done = reader.line_num + header_line
                yield Row(f"{path.name}:{done}", None, str(error))
                continue
            if fields is None:
                return
            done = reader.line_num + header_line
            if len(fields) > len(columns):
                yield Row(f"{path.name}:{done}", None, "more fields than the header has")
            elif fields:
                missing = [""] * (len(columns) - len(fields))
                yield Row(f"{path.name}:{done}", dict(zip(columns, [*fields, *missing], strict=True)))
