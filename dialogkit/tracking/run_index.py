"""A summary of each run in an output folder, kept in an index so that a list does not read all records again.

The folder of a run stays the only truth. An entry of the index counts only while the files it was made from have
the same times, size and inode: an index that is old, copied, damaged or written twice at once costs time at most.
"""

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from dialogkit import __version__
from dialogkit.errors import ModelError, StorageError
from dialogkit.system.files import write_text
from dialogkit.system.ownership import read_regular
from dialogkit.tracking.record import RunRecord, Status
from dialogkit.tracking.run_dir import METRICS_FILE, RECORD_FILE, RunDir

INDEX_FILE = ".index.json"
"""Name inside the folder of all runs."""
WORTH_WRITING = 20
"""Entries that an index must gain to be written: a few records are read as fast as an index."""
_SETTLED_NS = 2_000_000_000
"""A file that changed within this time is not indexed: another change could leave its times the same."""
_LONGEST_INDEX = 100_000_000

Stamp = tuple[int, int, int, int]
"""Time of the content, time of the inode, size and inode of a file."""


class RunSummary(BaseModel):
    """What lists show of a run; None if not reached yet."""

    # Non-finite metrics are written as text, as in the record.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    status: Status
    created: str
    model_name: str
    preset: str
    duration_s: float | None
    parameters: int | None
    dataset: str | None
    revision: str | None
    eval_dialogs: int | None
    steps: int | None
    """Completed steps, as far as they were logged."""
    total_steps: int | None
    bits_per_byte: float | None
    """Of the finished model, or of the last evaluation."""
    nats_per_token: float | None
    reply_rate: float | None
    stop_rate: float | None
    tokens_per_s: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, record: RunRecord, points: Sequence[Mapping[str, Any]]) -> "RunSummary":
        """Summarise a record; of a run that is not finished, `points` are the logged metrics."""
        total = steps = record.schedule.total_steps
        metrics: Mapping[str, Any] = record.metrics
        prefix, speed = "final", metrics.get("perf/tokens_per_s")
        if record.status == "completed":
            total = steps = int(metrics.get("train/steps", total or 0))  # early stopping makes fewer
        else:
            steps = max((int(point["step"]) for point in points), default=None)
            evaluated = [point for point in points if "eval/nats_per_token" in point]
            prefix, metrics = "eval", evaluated[-1] if evaluated else {}
            speed = next((v for p in reversed(points) if _is_finite(v := p.get("perf/tokens_per_s"))), None)
        return cls(
            status=record.status,
            created=record.created,
            model_name=record.model_name,
            preset=str(record.config.get("preset", "")),
            duration_s=record.duration_s,
            parameters=record.model.parameters,
            dataset=record.data.dataset,
            revision=record.data.revision,
            eval_dialogs=record.data.eval_dialogs,
            steps=steps,
            total_steps=total,
            bits_per_byte=metrics.get(f"{prefix}/bits_per_byte"),
            nats_per_token=metrics.get(f"{prefix}/nats_per_token"),
            reply_rate=record.replies.get("reply_rate", record.replies.get("success_rate")),  # until 0.2.0
            stop_rate=record.replies.get("stop_rate"),
            tokens_per_s=speed,
            interval=record.intervals.get("final/bits_per_byte"),
        )


class Runs(NamedTuple):
    """The runs of an output folder, in no order.

    Attributes:
        readable: the runs with a summary of each.
        damaged: the runs whose records cannot be read, by name.
    """

    readable: list[tuple[RunDir, RunSummary]]
    damaged: list[RunDir]


class _Entry(BaseModel):
    record: Stamp
    log: Stamp | None
    """Of the logged metrics, which a finished run has in its record; None if there are none."""
    summary: RunSummary


class _Index(BaseModel):
    dialogkit: str = __version__
    """Another version may summarise in another way."""
    runs: dict[str, _Entry] = {}


def read_runs(output: Path) -> Runs:
    """Return the runs of an output folder; read only the records that changed since the index was written."""
    folder, now = output / "runs", time.time_ns()
    known, found = _read_index(folder / INDEX_FILE), _Index()
    runs, gained = Runs([], []), 0
    for name in _names(folder):
        run = RunDir(folder / name)
        entry = known.get(name)
        if entry is None or not _is_current(entry, run.path):
            try:
                entry = _read_entry(run)
            except ModelError:
                if run.is_damaged:
                    runs.damaged.append(run)
                continue
            gained += _is_settled(entry, now)
        if _is_settled(entry, now):
            found.runs[name] = entry
        runs.readable.append((run, entry.summary))
    if gained >= WORTH_WRITING or len(known) - len(found.runs) >= WORTH_WRITING:
        with suppress(StorageError):  # a folder that can only be read
            write_text(folder / INDEX_FILE, found.model_dump_json())
    runs.damaged.sort(key=lambda run: run.name)
    return runs


def _names(folder: Path) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        yield from [entry.name for entry in entries if entry.name != INDEX_FILE]


def _read_index(path: Path) -> dict[str, _Entry]:
    with suppress(ValidationError):
        index = _Index.model_validate_json(read_regular(path, _LONGEST_INDEX) or b"{}")
        return index.runs if index.dialogkit == __version__ else {}
    return {}


def _read_entry(run: RunDir) -> _Entry:
    """Read a run. Raises: ModelError if its record cannot be read."""
    # Before the files are read: what changes meanwhile has another stamp afterwards.
    record_stamp, log_stamp = _stamp(run.path / RECORD_FILE), _stamp(run.path / METRICS_FILE)
    record = run.read()
    is_finished = record.status == "completed"
    summary = RunSummary.of(record, () if is_finished else run.metrics())
    return _Entry(record=record_stamp or (0, 0, 0, 0), log=None if is_finished else log_stamp, summary=summary)


def _is_current(entry: _Entry, folder: Path) -> bool:
    if entry.record != _stamp(folder / RECORD_FILE):
        return False
    return entry.summary.status == "completed" or entry.log == _stamp(folder / METRICS_FILE)


def _is_settled(entry: _Entry, now: int) -> bool:
    times = [*entry.record[:2], *(entry.log or ())[:2]]
    return all(abs(now - when) > _SETTLED_NS for when in times)


def _stamp(path: Path) -> Stamp | None:
    """Return the stamp of a regular file, or of the one that a link leads to; else None."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")
