"""The runs of an output folder: their names, their order, and a run by its name."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dialogkit.config.model import NAME_PATTERN
from dialogkit.errors import ModelError, did_you_mean
from dialogkit.hints import Call
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_index import RunSummary, read_runs

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_AHEAD = timedelta(days=1)


def run_name(model: str, preset: str, output: Path) -> str:
    """Return `{model}-{preset}-{timestamp}`, made unique in the output folder."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = base = f"{model[:32]}-{preset[:12]}-{stamp}"
    number = 2
    while (output / "runs" / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name


def list_runs(output: Path) -> list[tuple[RunDir, RunSummary]]:
    """Return the runs of an output folder, newest first; skip folders without a readable record.

    Runs without a valid start time come last, as do those that started in the future.
    """
    return newest_first(read_runs(output).readable)


def newest_first(runs: list[tuple[RunDir, RunSummary]]) -> list[tuple[RunDir, RunSummary]]:
    """Return runs in the order of `list_runs`."""
    return sorted(runs, key=lambda run: _age(*run), reverse=True)


def _age(run: RunDir, summary: RunSummary) -> tuple[bool, datetime, str]:
    # If the clock of this machine is behind, all runs start in its future: they keep their order.
    return start_time(summary.created) is not None, _moment(summary.created) or _EARLIEST, run.name


def start_time(created: str) -> datetime | None:
    """Parse the start time in a record; None if it is invalid or more than a day in the future.

    A time in the future comes from a wrong clock: the run would be the newest of all until then.
    """
    return None if is_ahead(created) else _moment(created)


def is_ahead(created: str) -> bool:
    """Return whether the start time in a record is more than a day in the future."""
    when = _moment(created)
    return when is not None and when > datetime.now(UTC) + _AHEAD


def _moment(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def damaged_runs(output: Path) -> list[RunDir]:
    """Return the runs that `list_runs` skips because of an unreadable record, by name."""
    return read_runs(output).damaged


def find_run(output: Path, name: str) -> RunDir:
    """Return a run by its name, or by the path of its folder.

    Raises: ModelError if it does not exist, or its record cannot be read.
    """
    if os.sep in name or name == os.curdir:
        run = RunDir(Path(os.path.expanduser(name)))
        if run.exists or run.is_damaged:
            run.read()
            return run
    run, is_name = RunDir(output / "runs" / name), bool(re.match(NAME_PATTERN, name))
    if is_name and (run.exists or run.is_damaged):
        run.read()
        return run
    names = [run.name for run, _ in list_runs(output)]
    if name in names:  # a folder that somebody renamed
        return run
    raise ModelError(f"no run {name!r} in {str(output)!r}{did_you_mean(name, names)}", hint=Call("runs list"))
