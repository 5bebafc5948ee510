"""Reads rows from files: JSON, JSONL, CSV and Parquet, also gzipped.

Files come from anywhere. They are read as a stream, each row is bounded, as is what a packed file unpacks to, and
a row that is malformed (no JSON, no UTF-8, a key twice, too long, too deep) does not keep others from being read:
whether to go on without it is decided by who asked. pyarrow's own JSON reader is not used: deep nesting crashes
the process.
"""

import csv
import gzip
import io
import json
import os
import re
import shlex
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from dialogkit.config.paths import files_beside, nearest_file
from dialogkit.data.formats import kind_of
from dialogkit.errors import DataError, shortened
from dialogkit.text import convert_command, json_problem, wide_encoding

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
STREAMED = (".jsonl", ".ndjson", ".parquet")
"""Those that can be read from any place on, as a stream is."""

MAX_ROW = 4 * 2**20
"""Longest row, in bytes or characters: a dialog of a whole book, and about what the longest context takes in."""
MAX_GROUP_BYTES = 4 * 2**30
"""Largest group of rows of a Parquet file, which is unpacked as a whole."""
_FREE_UNPACKED, _MAX_RATIO = 64 * 2**20, 200
"""What a packed file may unpack to: so many bytes, or so many times its size. Text has a ratio of 3 to 20."""
_BATCH_ROWS, _BATCH_BYTES = 8, 2**28
"""Rows of a Parquet file at a time; fewer where they could be longer than so many bytes together."""
_CHUNK = 2**20
_NO_BLANK = re.compile(r"[^ \t\r\n]")
MEND = "mend that line, or: --dataset starter"


def instead_of(path: Path) -> str:
    """Return what to give in place of a file: that of the most similar name beside it, another one, or ours."""
    other = nearest_file(path, SUFFIXES) or next(iter(files_beside(path, SUFFIXES)), None)
    return f"--dataset {shlex.quote(str(other)) if other else 'starter'}"


class Row(NamedTuple):
    """A row and its place (`file:line`, or `file[number]`); `problem` says why it could not be read."""

    place: str
    content: Any
    problem: str | None = None


def suffix_of(path: Path) -> str:
    """Return the ending that tells the format, `.gz` left out."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file. Raises: DataError where nothing after it can be read either."""
    with readable(path):
        match suffix_of(path):
            case ".csv":
                yield from _csv_rows(path)
            case ".parquet":
                yield from _parquet_rows(path)
            case _:
                yield from _json_rows(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise DataError, with the file's name, for what keeps a file from being read."""
    try:
        yield
    except UnicodeDecodeError:
        raise DataError(
            f"{path.name}:{_first_bad_line(path)}: not UTF-8 text", hint="save it as UTF-8, or: --dataset starter"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(
            f"{path.name} is no gzip file, or only the beginning of one",
            hint=f"pack it again, or: {instead_of(path)}",
        ) from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {_reason(error)}", hint=instead_of(path)) from None


def _reason(error: Exception) -> str:
    told = getattr(error, "strerror", None) or str(error)
    return shortened((told.strip().splitlines() or [type(error).__name__])[0], 200).lower()


def _too_long() -> str:
    return f"longer than {MAX_ROW // 2**20} MiB"


def _most_unpacked(path: Path) -> int:
    return max(_FREE_UNPACKED, _MAX_RATIO * os.path.getsize(path))


def _unpacks_too_far(path: Path) -> DataError:
    return DataError(
        f"{path.name} unpacks to more than {_MAX_RATIO} times its size, which text does not",
        hint=f"give it unpacked, or: {instead_of(path)}" if path.suffix == ".gz" else instead_of(path),
    )


class _Unpacked(io.RawIOBase):
    """The content of a gzipped file, up to a size that text can have."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = gzip.GzipFile(path, "rb")  # closed with this
        self._left = _most_unpacked(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise _unpacks_too_far(self._path)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_file(path: Path) -> BinaryIO:
    """Return a file opened for reading, unpacked if it is gzipped. Raises: OSError."""
    return io.BufferedReader(_Unpacked(path), _CHUNK) if path.suffix == ".gz" else path.open("rb")


def open_text(path: Path) -> BinaryIO:
    """Return a file opened as `open_file` does. Raises: DataError if it is UTF-16 or UTF-32; OSError."""
    file = open_file(path)
    head = file.peek(4096)[:4096] if isinstance(file, io.BufferedReader) else b""
    if (encoding := wide_encoding(head)) is None:
        return file
    file.close()
    raise DataError(f"{path.name} is {encoding} and not UTF-8 text", hint=convert_command(path, encoding))


def _first_bad_line(path: Path) -> int:
    """Return the line that is not UTF-8; a decoder that reads by chunks does not know it."""
    with open_file(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_ROW), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


class Decoder:
    """Decodes JSON and notes a key that stands twice, of which readers silently keep the last."""

    def __init__(self) -> None:
        self.twice: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counted = Counter(key for key, _ in pairs)
            self.twice.append(next(key for key, number in counted.items() if number > 1))
        return made

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that begins at `start`, and its end. Raises: what `json` raises."""
        self.twice.clear()
        return self._decoder.raw_decode(text, start)

    def problem(self, content: Any) -> str | None:
        """Return what is wrong with the value that was decoded last."""
        if self.twice:
            return f"the key {shortened(repr(self.twice[0]), 60)} stands twice"
        if not isinstance(content, dict):
            return f"a row must be an object, not {kind_of(content)}"
        return None


def _json_rows(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        head = file.peek(4096) if isinstance(file, io.BufferedReader) else b""
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from _Array(path.name, io.TextIOWrapper(file, encoding="utf-8-sig")).rows()
        else:
            yield from _line_rows(path.name, file)


def _line_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    decoder, number = Decoder(), 0
    while line := read_line(file):
        number += 1
        if (row := parse_line(line, decoder, first=number == 1)) is not None:
            yield Row(f"{name}:{number}", *row)


def read_line(file: BinaryIO, passed: Callable[[int], object] = lambda _: None) -> bytes:
    """Return the next line, empty at the end; of one that is too long only a beginning that is too long as well.

    `passed` takes the bytes by which the file went on beyond what is returned.
    """
    line = rest = file.readline(MAX_ROW + 1)
    if len(line) > MAX_ROW:
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_CHUNK)
            passed(len(rest))
    return line


def parse_line(line: bytes, decoder: Decoder, *, first: bool) -> tuple[Any, str | None] | None:
    """Return the content of a line of JSONL, or what is wrong with it; None for an empty line.

    `first` is the first line of a file, which may begin with a byte order mark.
    """
    if len(line) > MAX_ROW:
        return None, _too_long()
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
        if not text:
            return None
        content, end = decoder.decode(text, 0)
        return content, "not valid JSON: extra data" if text[end:] else decoder.problem(content)
    except UnicodeDecodeError:
        return None, "not UTF-8 text"
    except json.JSONDecodeError as error:
        return None, json_problem(error)
    except (RecursionError, ValueError) as error:
        return None, _too_much(error)


def _too_much(error: Exception) -> str:
    """Return which limit of the decoder a text goes beyond; the other one is that on the digits of a number."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"a number of more than {sys.get_int_max_str_digits():,} digits"


class _Array:
    """The rows of one JSON array, of which no more than a row and a chunk is held."""

    def __init__(self, name: str, text: TextIO) -> None:
        self._name, self._text = name, text
        self._buffer, self._at, self._line = "", 0, 1

    def rows(self) -> Iterator[Row]:
        decoder, number = Decoder(), 0
        self._expect("[")
        if self._next() == "]":
            self._at += 1
        else:
            while True:
                number += 1
                content = self._value(decoder)
                yield Row(f"{self._name}[{number}]", content, decoder.problem(content))
                if self._next() == "]":
                    self._at += 1
                    break
                self._expect(",")
        if self._next():
            raise self._error("extra data after the array")

    def _value(self, decoder: Decoder) -> Any:
        self._next()
        while True:
            try:
                content, end = decoder.decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self._at
                if len(self._buffer) - self._at > MAX_ROW or not self._more():
                    raise self._error(json_problem(error), self._at + ahead) from None
            except (RecursionError, ValueError) as error:
                raise self._error(_too_much(error)) from None
            else:
                self._at = end
                return content

    def _next(self) -> str:
        """Return the next character that is no blank, and stand before it; empty at the end."""
        while True:
            if found := _NO_BLANK.search(self._buffer, self._at):
                self._at = found.start()
                return found[0]
            self._at = len(self._buffer)
            if not self._more():
                return ""

    def _expect(self, mark: str) -> None:
        if self._next() != mark:
            raise self._error(f"not valid JSON: expecting {mark!r} delimiter")
        self._at += 1

    def _more(self) -> bool:
        """Read on and forget what is behind. Returns whether there was more."""
        chunk = self._text.read(_CHUNK)
        self._line += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return bool(chunk)

    def _error(self, problem: str, at: int | None = None) -> DataError:
        line = self._line + self._buffer.count("\n", 0, self._at if at is None else at)
        return DataError(f"{self._name}:{line}: {problem}", hint=MEND)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW)  # 128 KB otherwise, less than a long answer
    with open_text(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        taken = 0

        def read_lines() -> Iterator[str]:
            nonlocal taken
            while line := text.readline(MAX_ROW):
                taken += len(line)
                if taken > MAX_ROW:  # quoted line ends make a row of any number of lines
                    raise DataError(f"{path.name}: the row after line {done} is {_too_long()}", hint=MEND)
                yield line

        done, lines = 0, read_lines()
        header = next(lines, "")
        # Where a comma is the decimal point, spreadsheets write semicolons.
        delimiter = max(",;\t", key=header.count)
        columns = next(csv.reader([header], delimiter=delimiter), [])
        _require_different(columns, f"{path.name}:1")
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        done = 1
        while True:
            taken = 0
            try:
                fields = next(reader, None)
            except csv.Error as error:
                # A quote that is never closed takes in all the rest, so that the reader stands at the end.
                if "end of data" in str(error):
                    told = f"{path.name}: the row after line {done} opens a quote that is never closed"
                    raise DataError(told, hint=MEND) from None
                done = reader.line_num + 1
                yield Row(f"{path.name}:{done}", None, str(error))
                continue
            if fields is None:
                return
            done = reader.line_num + 1
            if len(fields) > len(columns):
                yield Row(f"{path.name}:{done}", None, "more fields than the header has")
            elif fields:
                missing = [""] * (len(columns) - len(fields))
                yield Row(f"{path.name}:{done}", dict(zip(columns, [*fields, *missing], strict=True)))


def _require_different(columns: list[str], place: str) -> None:
    # Columns without a name are what a spreadsheet leaves of empty ones.
    if twice := next((name for name, number in Counter(columns).items() if name and number > 1), None):
        raise DataError(f"{place}: the column {shortened(repr(twice), 60)} stands twice", hint=MEND)


def _parquet_rows(path: Path) -> Iterator[Row]:
    for number, content, problem in ParquetRows(path).rows(0):
        yield Row(f"{path.name}[{number + 1}]", content, problem)


class ParquetRows:
    """The rows of a Parquet file, from any of them on.

    Attributes:
        path: the file.
        wanted: rows before this one are passed over, and not made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wanted = 0
        self._most = _most_unpacked(path)

    def counts(self) -> tuple[int, int]:
        """Return the number of rows, and what they take unpacked, in bytes. Raises: DataError."""
        with self._opened() as (_, groups):
            return sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)

    def rows(self, start: int) -> Iterator[tuple[int, Any, str | None]]:
        """Yield number (from 0), content and problem of each row from `start` on. Raises: DataError."""
        import pyarrow as pa

        number = 0
        try:
            with self._opened() as (file, groups):
                first, number = 0, 0  # groups before the row are not unpacked
                while first < len(groups) and number + groups[first].num_rows <= start:
                    number += groups[first].num_rows
                    first += 1
                self.wanted, most = start, self._most
                largest = max((group.total_byte_size for group in groups), default=0)
                # A text that stands once in the file can be that of every row.
                at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))
                for batch in file.iter_batches(at_once, row_groups=range(first, len(groups))):
                    most -= batch.nbytes
                    if most < 0:
                        raise _unpacks_too_far(self.path)
                    passed_over = max(0, min(self.wanted - number, batch.num_rows))
                    number += passed_over
                    for content, problem in _values(batch.slice(passed_over)):
                        if number >= self.wanted:  # which may have changed since the row before
                            yield number, content, problem
                        number += 1
        except (pa.ArrowException, OverflowError, OSError, ValueError) as error:
            if isinstance(error, gzip.BadGzipFile) or getattr(error, "errno", None):
                raise
            raise DataError(
                f"{self.path.name} cannot be read after row {number}: {_reason(error)}", hint=instead_of(self.path)
            ) from None

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, list[Any]]]:
        """Open the file, and give its reader and what it tells of its groups of rows. Raises: DataError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with ExitStack() as closing:
            try:
                stored = closing.enter_context(open_file(self.path))
                # Parquet is read from its end, and a packed stream has none before it was read.
                source = pa.BufferReader(stored.read()) if self.path.suffix == ".gz" else stored
                file = closing.enter_context(pq.ParquetFile(source))
            except (pa.ArrowException, OverflowError, OSError, ValueError) as error:
                if isinstance(error, gzip.BadGzipFile) or getattr(error, "errno", None):
                    raise
                raise DataError(
                    f"{self.path.name} is no Parquet file, or only a part of one", hint=instead_of(self.path)
                ) from None
            _require_different(file.schema_arrow.names, self.path.name)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > MAX_GROUP_BYTES:
                raise DataError(
                    f"{self.path.name} holds a group of rows of {largest / 2**30:.0f} GiB",
                    hint=instead_of(self.path),
                )
            if sum(group.total_byte_size for group in groups) > self._most:
                raise _unpacks_too_far(self.path)
            yield file, groups


def _values(batch: Any) -> Iterator[tuple[Any, str | None]]:
    """Yield each row of a batch, or what is wrong with it."""
    if batch.nbytes <= MAX_ROW:
        with suppress(UnicodeDecodeError):
            yield from [(content, None) for content in batch.to_pylist()]
            return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > MAX_ROW:
            yield None, _too_long()
            continue
        try:
            yield row.to_pylist()[0], None
        except UnicodeDecodeError:
            yield None, "not UTF-8 text"
