"""The files of a stream, each cut into blocks that can be read by themselves.

A block is what starts in 256 KiB of a JSONL file (unpacked, if it is gzipped), or about as much of a Parquet file.
Where a block begins follows from its number alone, so that any process finds its own without having read the
others: in JSONL by a jump to that byte and on to the next line, in Parquet by the number of its first row. Only a
gzipped file is unpacked up to a block, and its number of blocks is known at its end.
"""

import hashlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dialogkit.config.data import DataConfig
from dialogkit.config.load import HUB_ID
from dialogkit.data.hints import READ_INTO_MEMORY
from dialogkit.data.open_files import STREAMED, open_file, open_text, readable, suffix_of
from dialogkit.data.parquet import ParquetRows
from dialogkit.data.readers import Decoder, parse_line, read_line
from dialogkit.data.sources import NAMED, fetch_file, hub_files
from dialogkit.errors import DataError, did_you_mean
from dialogkit.hints import Shell

BLOCK_BYTES = 2**18
_MOST_ROWS = 1024
"""Rows of a block of a Parquet file, however short they are."""
_FAR_ROWS = 50_000
"""Rows of a Parquet file after which it is faster to open it anew than to pass them over."""
_CHUNK = 2**20
_ENDS = 4096
"""Bytes at both ends of a file that tell whether it is the same."""


class StreamRow(NamedTuple):
    """A row of a block; `problem` says why it could not be read, `number` counts from 1 within the block."""

    number: int
    content: Any
    problem: str | None


class Reader(Protocol):
    """An open shard. Blocks are best asked for in rising order."""

    blocks: int | None
    """How many there are; None if that is known only at the end."""
    seekable: bool
    """Whether blocks in any order are as cheap as one after the other."""

    def has(self, block: int) -> bool:
        """Return whether there is such a block."""

    def rows(self, block: int) -> Iterator[StreamRow]:
        """Yield the rows of a block. Raises: DataError where the file cannot be read."""

    def place(self, block: int, number: int) -> str:
        """Return where a row of a block stands, as `file:line` or `file[number]`; may read what is before it."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Shard:
    """A file of a stream, on disk or on the hub, from where it is fetched when it is opened."""

    name: str
    path: Path | None
    hub: tuple[str, str, str] | None = None
    """Repository, file and commit."""

    def open(self) -> Reader:
        """Return the shard opened for reading. Raises: DataError, UnavailableError."""
        path = self.local()
        with readable(path):
            return _ParquetReader(self.name, path) if path.suffix == ".parquet" else _LineReader(self.name, path)

    def local(self) -> Path:
        """Return the file on disk; one of the hub's is fetched into its cache. Raises: UnavailableError."""
        return self.path if self.path is not None else fetch_file(*(self.hub or ("", "", "")))


@dataclass(frozen=True)
class Stream:
    """What a stream is read from: its shards by name, and what tells that they are the same."""

    name: str
    license: str | None
    shards: tuple[Shard, ...]
    revision: str
    """SHA-256 of names, sizes and ends of the files, or of the names and the commit of a hub dataset."""
    told_rows: int | None = None
    """Rows that the hub tells of."""

    def rows(self) -> int | None:
        """Return the rows of all shards, if that can be told without reading them: of Parquet and the hub's."""
        if any(shard.path is None or shard.path.suffix != ".parquet" for shard in self.shards):
            return self.told_rows
        return sum(ParquetRows(shard.local()).counts()[0] for shard in self.shards)


def find_stream(config: DataConfig) -> Stream:
    """Return the shards of a dataset. Raises: DataError if there is none, or one that is not read as a stream."""
    name = config.dataset
    named = NAMED.get(name)
    path = named.path if named is not None and named.path else Path(os.path.expanduser(name))
    if os.path.isdir(path):
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        chosen = [file for file in files if suffix_of(file) in STREAMED]
        if not chosen:
            raise DataError(
                f"the folder {name!r} holds no file with one of the endings {', '.join(STREAMED)} (or .gz after "
                "them), and others are not read as a stream"
            )
    elif os.path.isfile(path):
        chosen = [path]
        if suffix_of(path) not in STREAMED:
            raise DataError(
                f"{name!r} is not read as a stream: of files only those that end in {', '.join(STREAMED)} "
                "(or .gz after them) are",
                hint=READ_INTO_MEMORY,
            )
    else:
        hub_id, license = (named.hub_id or "", named.license) if named is not None else (name, None)
        if not HUB_ID.match(hub_id) or suffix_of(path) in STREAMED:
            raise DataError(f"there is no dataset {name!r}{did_you_mean(name, NAMED)}")
        return _hub_stream(name, license, hub_id, config.revision)
    if packed := next((file for file in chosen if file.name.endswith(".parquet.gz")), None):
        raise DataError(
            f"{packed.name} is not read as a stream: a packed Parquet file is read from its end",
            hint=Shell(f"gunzip {shlex.quote(str(packed))}"),
        )
    shards = tuple(Shard(file.name, file) for file in chosen)
    license = named.license if named is not None else None
    return Stream(path.name if named is None else name, license, shards, _identity(chosen))


def _hub_stream(name: str, license: str | None, hub_id: str, revision: str | None) -> Stream:
    files, commit, rows = hub_files(hub_id, revision)
    other = next((file for file in files if suffix_of(Path(file)) not in STREAMED or ".parquet." in file), None)
    if other is not None or not files:
        raise DataError(
            f"the dataset {hub_id!r} is not read as a stream: it consists of files such as {other!r}",
            hint=READ_INTO_MEMORY,
        )
    shards = tuple(Shard(file, None, (hub_id, file, commit)) for file in sorted(files))
    digest = hashlib.sha256("\n".join([commit, *(shard.name for shard in shards)]).encode())
    return Stream(name, license, shards, digest.hexdigest(), rows)


def _identity(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with readable(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape"))
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()


class _LineReader:
    """JSONL. A block is the lines that start within its bytes."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self.seekable = path.suffix != ".gz"
        self.blocks = -(-path.stat().st_size // BLOCK_BYTES) if self.seekable else None
        self._file: Any = open_text(path)
        self._at = 0
        self._starts_line = True
        """Whether a line starts where the file stands."""
        self._least = 0
        """The first byte to which a packed file can go without being opened anew."""

    def close(self) -> None:
        self._file.close()

    def has(self, block: int) -> bool:
        if self.blocks is not None:
            return block < self.blocks
        start = block * BLOCK_BYTES
        with readable(self._path):
            self._go_to(start)
            # A line may have led beyond the start already.
            return self._at > start or bool(self._file.peek(1))

    def rows(self, block: int) -> Iterator[StreamRow]:
        decoder, number, start = Decoder(), 0, block * BLOCK_BYTES
        with readable(self._path):
            self._go_to(start)
            self._least = start + 1
            while self._starts_line and self._at < start + BLOCK_BYTES:
                first = self._at == 0
                if not (line := read_line(self._file, self._passed)):
                    return
                self._at += len(line)
                number += 1
                if (row := parse_line(line, decoder, first=first)) is not None:
                    yield StreamRow(number, *row)

    def place(self, block: int, number: int) -> str:
        """Return `file:line`; the lines before the block are counted for it."""
        lines, left = min(block, 1), block * BLOCK_BYTES - 1
        with readable(self._path), open_file(self._path) as file:
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                lines += chunk.count(b"\n")
                left -= len(chunk)
        return f"{self._name}:{lines + number}"

    def _passed(self, count: int) -> None:
        self._at += count

    def _go_to(self, start: int) -> None:
        """Go to the first line that starts at byte `start` or after it, if that is still in the block."""
        if self.seekable:
            if self._at == start and self._starts_line:
                return
            self._at = max(0, start - 1)
            self._file.seek(self._at)
            self._starts_line = start == 0
        else:
            if start < self._least:
                self._file.close()
                self._file, self._at, self._starts_line = open_file(self._path), 0, True
            self._least = start
            if self._at < start:
                while self._at < start - 1 and (chunk := self._file.read(min(_CHUNK, start - 1 - self._at))):
                    self._at += len(chunk)
                self._starts_line = False
        # Whichever line the byte before the start is of, it is of an earlier block.
        while not self._starts_line and self._at < start + BLOCK_BYTES:
            if not (rest := self._file.readline(start + BLOCK_BYTES - self._at)):
                return
            self._at += len(rest)
            self._starts_line = rest.endswith(b"\n")


class _ParquetReader:
    """Parquet. A block is a number of rows that take about as much as a block of JSONL."""

    seekable = False

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._rows = name, ParquetRows(path)
        self.count, size = self._rows.counts()
        self._per_block = max(1, min(_MOST_ROWS, BLOCK_BYTES * self.count // max(1, size)))
        self.blocks: int | None = -(-self.count // self._per_block)
        self._going: Iterator[tuple[int, Any, str | None]] | None = None
        self._at = 0

    def close(self) -> None:
        self._going = None

    def has(self, block: int) -> bool:
        return block < (self.blocks or 0)

    def rows(self, block: int) -> Iterator[StreamRow]:
        start = block * self._per_block
        end = min(start + self._per_block, self.count)
        with readable(self._rows.path):
            if self._going is None or not self._at <= start <= self._at + _FAR_ROWS:
                self._going = self._rows.rows(start)
            self._rows.wanted = start
            for due in range(start, end):
                number, content, problem = next(self._going, (-1, None, None))
                if number != due:
                    raise DataError(f"{self._name} ends before row {due + 1}, although it tells of {self.count}")
                self._at = number + 1
                yield StreamRow(number - start + 1, content, problem)

    def place(self, block: int, number: int) -> str:
        return f"{self._name}[{block * self._per_block + number}]"
