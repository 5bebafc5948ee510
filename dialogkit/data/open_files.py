"""Opens data files, plain or gzipped, and limits what they may unpack to."""

import gzip
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dialogkit.data.hints import FIX_LINE, use_another_file, use_rewritten
from dialogkit.errors import DataError, shortened
from dialogkit.hints import Either
from dialogkit.text import convert_command, wide_encoding

STREAMED = (".jsonl", ".ndjson", ".parquet")
"""Endings of the data files that can be streamed."""

MAX_ROW = 4 * 2**20
"""Longest row in bytes or characters: a book as one dialog, about what the longest context can hold."""
TOO_LONG = f"longer than {MAX_ROW // 2**20} MiB"

NOT_UTF8 = "not UTF-8 text"

_FREE_UNPACKED, _MAX_RATIO = 64 * 2**20, 200
"""A gzipped file may unpack to this many bytes, or to its size times this ratio. Text has a ratio of 3 to 20."""

CHUNK_BYTES = 2**20


class Row(NamedTuple):
    """A row and its place (`file:line`, or `file[number]`); `problem` says why it could not be read."""

    place: str
    content: Any
    problem: str | None = None


def suffix_of(path: Path) -> str:
    """Return the ending that determines the format, in lower case and without `.gz`."""
    return (Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix).lower()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise DataError with the file's name if the file cannot be read."""
    try:
        yield
    except UnicodeDecodeError:
        from dialogkit.data.not_datasets import named_file, wrong_encoding

        raise (named_file(path) or wrong_encoding(path) or DataError(f"{path.name}: not UTF-8 text")) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        hint = Either("pack it again", use_another_file(path))
        raise DataError(f"{path.name} is not a valid gzip file", hint=hint) from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {reason_of(error)}", hint=use_another_file(path)) from None


def reason_of(error: Exception) -> str:
    """Return one short line that says why a file could not be read."""
    message = getattr(error, "strerror", None) or str(error)
    return shortened((message.strip().splitlines() or [type(error).__name__])[0], 200).lower()


def most_unpacked(path: Path) -> int:
    """Return the most bytes that a gzipped file may unpack to."""
    return max(_FREE_UNPACKED, _MAX_RATIO * os.path.getsize(path))


def unpacks_too_far(path: Path) -> DataError:
    """Return the error of a file that unpacks to more than `most_unpacked`."""
    other = use_another_file(path)
    return DataError(
        f"{path.name} unpacks to more than {_MAX_RATIO} times its size, far more than text does",
        hint=Either("unpack it", other) if path.suffix.lower() == ".gz" else other,
    )


class _Unpacked(io.RawIOBase):
    """The content of a gzipped file, up to `most_unpacked` bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = gzip.GzipFile(path, "rb")  # closed with this
        self._left = most_unpacked(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise unpacks_too_far(self._path)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_file(path: Path) -> BinaryIO:
    """Return a file opened for reading, unpacked if it is gzipped. Raises: OSError."""
    return io.BufferedReader(_Unpacked(path), CHUNK_BYTES) if path.suffix.lower() == ".gz" else path.open("rb")


def open_text(path: Path) -> BinaryIO:
    """Return a file opened as `open_file` does. Raises: DataError if it is UTF-16 or UTF-32; OSError."""
    file = open_file(path)
    head = file.peek(4096)[:4096] if isinstance(file, io.BufferedReader) else b""
    if (encoding := wide_encoding(head)) is None:
        return file
    file.close()
    raise DataError(
        f"{path.name} is {encoding} and not UTF-8 text", hint=use_rewritten(*convert_command(path, encoding))
    )


def require_different(columns: list[str], place: str) -> None:
    """Raise DataError if two columns have the same name."""
    # Spreadsheets export empty columns without a name.
    if twice := next((name for name, number in Counter(columns).items() if name and number > 1), None):
        raise DataError(f"{place}: the column {shortened(repr(twice), 60)} appears twice", hint=FIX_LINE)
