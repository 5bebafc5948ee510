"""Reads dataset rows: from the package, from files (JSON, JSONL, CSV, Parquet, also gzipped), from the hub."""

import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from dialogkit.config.data import DataConfig
from dialogkit.config.load import HUB_ID
from dialogkit.data.formats import RowError, parse_row, recognise_format
from dialogkit.dialog import Dialog
from dialogkit.errors import DataError, UnavailableError, did_you_mean
from dialogkit.network import hub_reachable

STARTER = Path(__file__).parent / "samples" / "starter.jsonl"

_MEND = "mend that line, or: --dataset starter"

# Files are read here and not by pyarrow's JSON reader, which crashes the process on deep nesting.
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")


@dataclass(frozen=True)
class NamedDataset:
    """A dataset that has a short name."""

    path: Path | None
    hub_id: str | None
    license: str
    description: str


NAMED = {
    "starter": NamedDataset(STARTER, None, "CC0-1.0", "dialogs that ship with the package"),
    "alpaca-gpt4": NamedDataset(
        None, "vicgalle/alpaca-gpt4", "CC BY-NC 4.0 (research only)", "52,000 instructions answered by GPT-4"
    ),
}


@dataclass
class RawData:
    """The dialogs of a source, and what is known about it."""

    name: str
    format: str
    license: str | None
    revision: str
    """SHA-256 of the file's bytes, or the fingerprint of the hub dataset."""
    rows: int = 0
    dialogs: list[Dialog] = field(default_factory=list)
    bad_rows: list[str] = field(default_factory=list)
    """`place: reason` for each row that holds no dialog."""


@dataclass(frozen=True)
class DataSource:
    """A dataset that was found but not read yet."""

    name: str
    path: Path | None
    hub_id: str | None
    license: str | None


def looks_like_file(name: str) -> bool:
    """Return whether a dataset's name is that of a file, and not of the hub or one of ours."""
    return _suffix(Path(name)) in SUFFIXES or not HUB_ID.match(name)


def find_source(config: DataConfig) -> DataSource:
    """Return where a dataset lies. Raises: DataError if it is no known name, file or hub id."""
    name = config.dataset
    if (named := NAMED.get(name)) is not None:
        return DataSource(name, named.path, named.hub_id, named.license)
    # Unlike pathlib's, these functions answer for any text, be it too long for a name.
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        inside = sorted(file for file in os.listdir(path) if _suffix(Path(file)) in SUFFIXES)
        example = f"dialogkit train --dataset {os.path.join(name, inside[0])}" if inside else "dialogkit data list"
        raise DataError(f"{name!r} is a folder, not a file", hint=example)
    if os.path.isfile(path):
        if _suffix(path) not in SUFFIXES:
            raise DataError(f"{name!r} has none of the endings {', '.join(SUFFIXES)} (or .gz after them)")
        return DataSource(path.name, path, None, None)
    if HUB_ID.match(name) and _suffix(path) not in SUFFIXES:
        return DataSource(name, None, name, None)
    if "/" in name or path.suffix:
        raise DataError(f"the dataset file {name!r} does not exist", hint="dialogkit data list")
    raise DataError(f"unknown dataset {name!r}{did_you_mean(name, NAMED)}", hint="dialogkit data list")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. Raises: DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {(error.strerror or str(error)).lower()}") from None


def read_dialogs(source: DataSource, config: DataConfig) -> RawData:
    """Return all dialogs of a source.

    Raises: DataError naming the file, the line and the reason for unreadable input; UnavailableError if the
    hub cannot be reached and the dataset is not in its cache.
    """
    if source.path is not None:
        rows = _file_rows(source.path)
        revision = file_digest(source.path)
    else:
        rows, revision = _hub_rows(source.hub_id or "", config.revision)
    raw = RawData(source.name, "", source.license, revision)
    for place, row in rows:
        raw.rows += 1
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be an object, not {type(row).__name__}", hint=_MEND)
        if not raw.format:
            chosen = config.format
            raw.format = recognise_format(row, source=source.name) if chosen == "auto" else chosen
        try:
            raw.dialogs.append(parse_row(row, raw.format))
        except RowError as error:
            raw.bad_rows.append(f"{place}: {error}")
    if not raw.rows:
        raise DataError(f"{source.name} holds no rows", hint="--dataset starter")
    if not raw.dialogs:
        raise DataError(
            f"none of the {raw.rows} rows of {source.name} is a dialog in the format {raw.format}: "
            f"{raw.bad_rows[0]}",
            hint="dialogkit data list" if config.format == "auto" else "--set data.format=auto",
            details=raw.bad_rows[1:10],
        )
    return raw


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        match _suffix(path):
            case ".csv":
                yield from _csv_rows(path)
            case ".parquet":
                yield from _parquet_rows(path)
            case _:
                yield from _json_rows(path)
    except UnicodeDecodeError:
        raise DataError(
            f"{path.name}:{_first_bad_line(path)}: not UTF-8 text", hint="save it as UTF-8, or: --dataset starter"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path.name} is no gzip file, or only the beginning of one") from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _first_bad_line(path: Path) -> int:
    """Return the line that is not UTF-8; a decoder that reads by chunks does not know it."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        head = file.read(4096).decode("utf-8-sig", errors="replace").lstrip()
        file.seek(0)
        text = io.TextIOWrapper(file, encoding="utf-8-sig")
        if head.startswith("["):
            rows = _parse(text.read(), path.name)
            yield from ((f"{path.name}[{number}]", row) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(text, 1):
            if line.strip():
                yield f"{path.name}:{number}", _parse(line.strip(), f"{path.name}:{number}")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = place if error.lineno == 1 else f"{place}:{error.lineno}"
        raise DataError(f"{where}: not valid JSON: {error.msg[0].lower()}{error.msg[1:]}", hint=_MEND) from None
    except (RecursionError, ValueError):
        raise DataError(f"{place}: nested too deeply, or a number too long", hint=_MEND) from None


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # 128 KB otherwise, less than a long answer
    with _open(path) as file:
        header = file.readline()
        # Where a comma is the decimal point, spreadsheets write semicolons.
        delimiter = max(",;\t", key=lambda mark: header.count(mark.encode()))
        file.seek(0)
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, strict=True, delimiter=delimiter)
        done = 1
        try:
            for row in reader:
                done = reader.line_num
                if None in row:
                    raise DataError(f"{path.name}:{reader.line_num}: more fields than the header has", hint=_MEND)
                yield f"{path.name}:{reader.line_num}", row
        except csv.Error as error:
            # A quote that is never closed takes in all the rest, so that the reader stands at the end.
            at = f"{path.name}: the row after line {done}" if "end of data" in str(error) else None
            reason = "opens a quote that is never closed" if at else str(error)
            raise DataError(f"{at or f'{path.name}:{reader.line_num}:'} {reason}", hint=_MEND) from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _open(path) as stored, pq.ParquetFile(stored) as file:
            number = 0
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}[{number}]", row
    except pa.ArrowException:
        raise DataError(f"{path.name} is no Parquet file, or only a part of one") from None


def _hub_rows(hub_id: str, revision: str | None) -> tuple[Iterator[tuple[str, Any]], str]:
    import datasets
    import huggingface_hub.errors

    online = hub_reachable()
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was_offline or not online
    datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()  # it reports at length that it uses its cache
    hint = "--dataset starter (ships with the package), or --dataset FILE"
    try:
        dataset = datasets.load_dataset(hub_id, revision=revision, split="train")
    except (ConnectionError, huggingface_hub.errors.OfflineModeIsEnabled) as error:
        if online:
            raise UnavailableError(f"the dataset {hub_id!r} cannot be fetched: {error}", hint=hint) from None
        raise UnavailableError(
            f"the hub cannot be reached and the dataset {hub_id!r} is not in its cache", hint=hint
        ) from None
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"the dataset {hub_id!r} cannot be loaded: {first}", hint=hint) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
        datasets.logging.set_verbosity(verbosity)
    rows = ((f"{hub_id}[{number}]", row) for number, row in enumerate(dataset, 1))
    return rows, str(dataset._fingerprint)
