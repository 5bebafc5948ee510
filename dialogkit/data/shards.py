"""The files of a stream, each cut into blocks that can be read by themselves.

A block is the lines that start within 256 KiB of a JSONL file (unpacked, if it is gzipped), or about as much of a
Parquet file. The number of a block alone determines where it starts, so any process finds its blocks without
reading the others: in JSONL by seeking to that byte and skipping to the next line, in Parquet by the number of its
first row. Only gzipped files must be unpacked up to a block; their number of blocks is known at the end.
"""

import hashlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dialogkit.config.data import DataConfig
from dialogkit.config.load import HUB_ID
from dialogkit.data.hints import READ_INTO_MEMORY, use_rewritten
from dialogkit.data.open_files import STREAMED, open_file, open_text, readable, suffix_of
from dialogkit.data.parquet import ParquetRows
from dialogkit.data.readers import Decoder, parse_line, read_line
from dialogkit.data.sources import NAMED, DataSource, fetch_file, hub_files
from dialogkit.data.worlds.location import holds_world
from dialogkit.errors import DataError, did_you_mean

BLOCK_BYTES = 2**18
_MOST_ROWS = 1024
"""Most rows of a block of a Parquet file, however short they are."""
_FAR_ROWS = 50_000
"""Rows of a Parquet file above which reopening it is faster than skipping them."""
_CHUNK = 2**20
_ENDS = 4096
"""Bytes at both ends of a file that are part of its identity."""


class StreamRow(NamedTuple):
    """A row of a block; `problem` says why it could not be read, `number` counts from 1 within the block."""

    number: int
    content: Any
    problem: str | None


@dataclass(frozen=True)
class Shard:
    """A file of a stream, on disk or on the hub. Opening it fetches it from the hub."""

    name: str
    source: Path | tuple[str, str, str]
    """The file on disk, or the repository, file and commit on the hub."""

    def open(self) -> "Reader":
        """Return the shard opened for reading. Raises: DataError, UnavailableError."""
        path = self.local()
        with readable(path):
            return ParquetReader(self.name, path) if path.suffix == ".parquet" else LineReader(self.name, path)

    def local(self) -> Path:
        """Return the file on disk, fetched into the hub's cache if need be. Raises: UnavailableError."""
        return self.source if isinstance(self.source, Path) else fetch_file(*self.source)


@dataclass(frozen=True)
class Stream:
    """The source of a stream: its shards, and a digest that identifies them."""

    name: str
    license: str | None
    shards: tuple[Shard, ...]
    revision: str
    """SHA-256 of names, sizes and ends of the files, or of the names and the commit of a hub dataset."""
    hub_rows: int | None = None
    """Number of rows according to the hub."""

    def rows(self) -> int | None:
        """Return the rows of all shards if known without reading them, as for Parquet files and the hub."""
        if all(isinstance(shard.source, Path) and shard.source.suffix == ".parquet" for shard in self.shards):
            return sum(ParquetRows(shard.local()).counts()[0] for shard in self.shards)
        return self.hub_rows


def find_stream(config: DataConfig) -> Stream:
    """Return the shards of a dataset. Raises: DataError if it does not exist or cannot be streamed."""
    name = config.dataset
    named = NAMED.get(name, DataSource("", hub_id=name))
    if named.world is not None or holds_world(os.path.expanduser(name)):
        raise DataError(f"{name!r} is a world, which is made in memory and not streamed", hint=READ_INTO_MEMORY)
    path = named.path or Path(os.path.expanduser(name))
    if os.path.isdir(path):
        files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        chosen = [file for file in files if suffix_of(file) in STREAMED]
        if not chosen:
            raise DataError(
                f"the folder {name!r} has no file that can be streamed: one ending in {', '.join(STREAMED)}, "
                "or with .gz after them"
            )
    elif os.path.isfile(path):
        chosen = [path]
        if suffix_of(path) not in STREAMED:
            raise DataError(
                f"{name!r} cannot be streamed: only files ending in {', '.join(STREAMED)}, or with .gz after "
                "them, can",
                hint=READ_INTO_MEMORY,
            )
    else:
        if not HUB_ID.match(named.hub_id) or suffix_of(path) in STREAMED:
            raise DataError(f"there is no dataset {name!r}{did_you_mean(name, NAMED)}")
        return _hub_stream(name, named.license, named.hub_id, config.revision)
    if packed := next((file for file in chosen if file.name.endswith(".parquet.gz")), None):
        raise DataError(
            f"{packed.name} cannot be streamed: a Parquet file is read from its end, which gzip does not allow",
            hint=use_rewritten(
                f"gunzip {shlex.quote(str(packed))}", path if os.path.isdir(path) else packed.with_suffix("")
            ),
        )
    shards = tuple(Shard(file.name, file) for file in chosen)
    return Stream(named.name or path.name, named.license, shards, _identity(chosen))


def _hub_stream(name: str, license: str | None, hub_id: str, revision: str | None) -> Stream:
    files, commit, rows = hub_files(hub_id, revision)
    other = next((file for file in files if suffix_of(Path(file)) not in STREAMED or ".parquet." in file), None)
    if other is not None or not files:
        problem = f"the dataset {hub_id!r} cannot be streamed: it has files such as {other!r}"
        raise DataError(problem, hint=READ_INTO_MEMORY)
    shards = tuple(Shard(file, (hub_id, file, commit)) for file in sorted(files))
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


class LineReader:
    """An open JSONL file, whose blocks are read fastest in ascending order.

    A block is the lines that start within its bytes.

    Attributes:
        blocks: number of blocks; None if it is known only at the end.
        seekable: whether random access to blocks is as cheap as reading them in order.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self.seekable = path.suffix != ".gz"
        self.blocks = -(-path.stat().st_size // BLOCK_BYTES) if self.seekable else None
        self._file: Any = open_text(path)
        self._at = 0
        self._starts_line = True
        """Whether a line starts at the current position."""
        self._least = 0
        """The first byte that a gzipped file reaches without being reopened."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def has(self, block: int) -> bool:
        """Return whether the file has this block."""
        if self.blocks is not None:
            return block < self.blocks
        start = block * BLOCK_BYTES
        with readable(self._path):
            self._go_to(start)
            # The last line of the previous block may have ended after the start.
            return self._at > start or bool(self._file.peek(1))

    def rows(self, block: int) -> Iterator[StreamRow]:
        """Yield the rows of a block. Raises: DataError if the file cannot be read."""
        decoder, number, start = Decoder(), 0, block * BLOCK_BYTES
        with readable(self._path):
            self._go_to(start)
            self._least = start + 1
            while self._starts_line and self._at < start + BLOCK_BYTES:
                first = self._at == 0
                line, longer_by = read_line(self._file)
                if not line:
                    return
                self._at += len(line) + longer_by
                number += 1
                if (row := parse_line(line, decoder, first=first)) is not None:
                    yield StreamRow(number, *row)

    def place(self, block: int, number: int) -> str:
        """Return where a row of a block is, as `file:line`, by counting the lines before the block."""
        lines, left = min(block, 1), block * BLOCK_BYTES - 1
        with readable(self._path), open_file(self._path) as file:
            while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                lines += chunk.count(b"\n")
                left -= len(chunk)
        return f"{self._name}:{lines + number}"

    def _go_to(self, start: int) -> None:
        """Go to the first line that starts at byte `start` or later in the block."""
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
        # The line that contains the byte before the start belongs to an earlier block.
        while not self._starts_line and self._at < start + BLOCK_BYTES:
            if not (rest := self._file.readline(start + BLOCK_BYTES - self._at)):
                return
            self._at += len(rest)
            self._starts_line = rest.endswith(b"\n")


class ParquetReader:
    """An open Parquet file, with the interface of `LineReader`.

    A block is as many rows as take about the space of a block of JSONL.
    """

    seekable = False

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._rows = name, ParquetRows(path)
        self.count, size = self._rows.counts()
        self._per_block = max(1, min(_MOST_ROWS, BLOCK_BYTES * self.count // max(1, size)))
        self.blocks = -(-self.count // self._per_block)
        self._active: Iterator[tuple[int, Any, str | None]] | None = None
        self._at = 0

    def close(self) -> None:
        """Close the file."""
        self._active = None

    def has(self, block: int) -> bool:
        """Return whether the file has this block."""
        return block < self.blocks

    def rows(self, block: int) -> Iterator[StreamRow]:
        """Yield the rows of a block. Raises: DataError if the file cannot be read."""
        start = block * self._per_block
        end = min(start + self._per_block, self.count)
        with readable(self._rows.path):
            if self._active is None or not self._at <= start <= self._at + _FAR_ROWS:
                self._active = self._rows.rows(start)
            self._rows.wanted = start
            for due in range(start, end):
                number, content, problem = next(self._active, (-1, None, None))
                if number != due:
                    raise DataError(f"{self._name} ends before row {due + 1}, but declares {self.count} rows")
                self._at = number + 1
                yield StreamRow(number - start + 1, content, problem)

    def place(self, block: int, number: int) -> str:
        """Return where a row of a block is, as `file[number]`."""
        return f"{self._name}[{block * self._per_block + number}]"


Reader = LineReader | ParquetReader
