"""Reads the rows of Parquet files, within limits of memory."""

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dialogkit.data.hints import use_another_file
from dialogkit.data.not_datasets import named_file
from dialogkit.data.open_files import (
    MAX_ROW,
    NOT_UTF8,
    TOO_LONG,
    Row,
    most_unpacked,
    open_file,
    reason_of,
    require_different,
    unpacks_too_far,
)
from dialogkit.errors import DataError
from dialogkit.text import byte_size

MAX_GROUP_BYTES = 4 * 2**30
"""Largest row group, which is unpacked as a whole."""

_BATCH_ROWS, _BATCH_BYTES = 8, 2**28
"""Rows that are read at a time; fewer if together they could exceed this number of bytes."""


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    for number, content, problem in ParquetRows(path).rows(0):
        yield Row(f"{path.name}[{number + 1}]", content, problem)


class ParquetRows:
    """The rows of a Parquet file, starting at any row.

    Attributes:
        path: the file.
        wanted: rows before this one are skipped without being converted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wanted = 0
        self._most = most_unpacked(path)

    def counts(self) -> tuple[int, int]:
        """Return the number of rows and their unpacked size in bytes. Raises: DataError."""
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
                # A text that the file stores once can be the value of every row.
                at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))
                for batch in file.iter_batches(at_once, row_groups=range(first, len(groups))):
                    most -= batch.nbytes
                    if most < 0:
                        raise unpacks_too_far(self.path)
                    skipped = max(0, min(self.wanted - number, batch.num_rows))
                    number += skipped
                    for content, problem in _values(batch.slice(skipped)):
                        if number >= self.wanted:  # the caller may have changed it meanwhile
                            yield number, content, problem
                        number += 1
        except (pa.ArrowException, OverflowError, OSError, ValueError) as error:
            raise self._explained(error, f"cannot be read after row {number}: {reason_of(error)}") from None

    def _explained(self, error: Exception, problem: str) -> Exception:
        """Return the error of a file that pyarrow cannot read, or that of the system or of gzip as it is."""
        if isinstance(error, gzip.BadGzipFile) or getattr(error, "errno", None):
            return error
        return DataError(f"{self.path.name} {problem}", hint=use_another_file(self.path))

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, list[Any]]]:
        """Open the file; yield its reader and the metadata of its row groups. Raises: DataError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with ExitStack() as closing:
            try:
                stored = closing.enter_context(open_file(self.path))
                # Parquet is read from its end, which a gzipped stream reaches only by reading all of it.
                source = pa.BufferReader(stored.read()) if self.path.suffix == ".gz" else stored
                file = closing.enter_context(pq.ParquetFile(source))
            except (pa.ArrowException, OverflowError, OSError, ValueError) as error:
                raise named_file(self.path) or self._explained(error, "is not a valid Parquet file") from None
            require_different(file.schema_arrow.names, self.path.name)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > MAX_GROUP_BYTES:
                raise DataError(
                    f"{self.path.name} has a row group of {byte_size(largest)}",
                    hint=use_another_file(self.path),
                )
            if sum(group.total_byte_size for group in groups) > self._most:
                raise unpacks_too_far(self.path)
            yield file, groups


def _values(batch: Any) -> Iterator[tuple[Any, str | None]]:
    """Yield the content of each row of a batch, or its problem."""
    if batch.nbytes <= MAX_ROW:
        with suppress(UnicodeDecodeError):
            yield from [(content, None) for content in batch.to_pylist()]
            return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > MAX_ROW:
            yield None, TOO_LONG
            continue
        try:
            yield row.to_pylist()[0], None
        except UnicodeDecodeError:
            yield None, NOT_UTF8
