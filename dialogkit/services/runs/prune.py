"""Delete runs, or only their checkpoints, to free disk space."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dialogkit.config.base import Result
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.errors import ModelError, StorageError
from dialogkit.hints import Call
from dialogkit.services.runs.resolve import is_published
from dialogkit.system.ownership import Contents
from dialogkit.tracking.pruning import contents, delete, freed_bytes, half_deleted
from dialogkit.tracking.record import Status
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_index import RunSummary
from dialogkit.tracking.run_list import find_run, list_runs, start_time


class PruneRow(Result):
    """What pruning deletes of one run."""

    name: str
    status: str
    checkpoints_only: bool
    bytes: int
    """Size of the files."""
    freed_bytes: int
    """Without files that keep another hard link, such as a published model."""
    deletes_model: bool
    """Whether this deletes a finished model that is not published in the output folder."""
    foreign: list[str]
    """Files that dialogkit did not write; they stay."""
    problem: str | None = None
    """Why nothing, or not everything, is deleted."""


class PruneResult(Result):
    """What was deleted, or would be deleted."""

    rows: list[PruneRow]
    freed_bytes: int
    pruned: bool
    """Whether it was deleted."""


def prune_runs(
    names: Sequence[str] | None = None,
    *,
    keep: int | None = None,
    older_than_s: float | None = None,
    status: Sequence[Status] | None = None,
    checkpoints_only: bool = False,
    output: str | Path = DEFAULT_OUTPUT,
    agreed: Callable[[PruneResult], bool] = lambda planned: True,
) -> PruneResult:
    """Delete runs, or only their checkpoints. By default: the checkpoints of all finished runs.

    Files that dialogkit did not write stay. Unfinished runs can be resumed: they are selected only by name or
    status. Runs that are being trained are never touched. An interrupted deletion is completed.

    Args:
        names: the runs to select from; None for all.
        keep: select all but the newest `keep` runs.
        older_than_s: select runs that started more than this many seconds ago.
        status: select runs with one of these statuses.
        checkpoints_only: delete only checkpoints; runs and models stay.
        output: folder of models and runs.
        agreed: receives the plan and returns whether to carry it out.

    Raises: ModelError for an unknown run; StorageError for a named run that is being trained or is a link.
    """
    output = Path(output)
    chosen = _chosen(output, names, keep, older_than_s, status)
    by_default = not names and keep is None and older_than_s is None and not status
    alone = checkpoints_only or by_default
    planned = [_planned(run, summary, output, checkpoints_only=alone) for run, summary in chosen]
    if names:
        for row in planned:
            if row.problem is not None:
                raise StorageError(row.problem, hint=Call("runs show", row.name))
    for run, record in half_deleted(output):
        if not names or run.name in names:
            summary = RunSummary.of(record, ())
            chosen.append((run, summary))
            planned.append(_planned(run, summary, output, checkpoints_only=False))
    work = [(run, row) for (run, _), row in zip(chosen, planned, strict=True) if row.bytes or row.problem]
    plan = PruneResult(
        rows=[row for _, row in work], freed_bytes=sum(row.freed_bytes for _, row in work), pruned=False
    )
    if not any(row.problem is None for row in plan.rows) or not agreed(plan):
        return plan
    done = [_deleted(run, row) if row.problem is None else row for run, row in work]
    return PruneResult(rows=done, freed_bytes=sum(row.freed_bytes for row in done), pruned=True)


def _chosen(
    output: Path,
    names: Sequence[str] | None,
    keep: int | None,
    older_than_s: float | None,
    status: Sequence[Status] | None,
) -> list[tuple[RunDir, RunSummary]]:
    half = {run.name for run, _ in half_deleted(output)}
    named = {_named(output, name) for name in names or () if name not in half}
    kept = [(run, summary) for run, summary in list_runs(output) if not names or run.name in named]
    if status or not names:
        kept = [(run, summary) for run, summary in kept if summary.status in (status or ("completed",))]
    if older_than_s is not None:
        limit = datetime.now(UTC) - timedelta(seconds=older_than_s)
        # A run without a valid start time counts as new.
        kept = [(run, summary) for run, summary in kept if (start_time(summary.created) or limit) < limit]
    return kept[keep or 0 :]


def _named(output: Path, name: str) -> str:
    """Return the name of a run in the output folder. Raises: ModelError if it is not there."""
    run = find_run(output, name)
    if run.output is None or run.output.resolve() != output.resolve():
        raise ModelError(
            f"the run {name!r} is not in {str(output)!r}",
            hint=Call("runs prune", run.name, output_dir=str(run.output)),
        )
    return run.name


def _planned(run: RunDir, summary: RunSummary, output: Path, *, checkpoints_only: bool) -> PruneRow:
    found, problem = Contents(), None
    try:
        if run.is_held:
            problem = f"the run {run.name!r} is being trained"
        else:
            found = contents(run, checkpoints_only=checkpoints_only, exact=False)
    except StorageError as error:
        problem = error.message
    goes = summary.status == "completed" and any(path.parent == run.model_dir for path in found.files)
    return PruneRow(
        name=run.name,
        status=summary.status,
        checkpoints_only=checkpoints_only,
        bytes=found.bytes,
        freed_bytes=freed_bytes(found.files),
        deletes_model=goes and not is_published(run, summary.model_name, output),
        foreign=[str(path) for path in found.foreign],
        problem=problem,
    )


def _deleted(run: RunDir, row: PruneRow) -> PruneRow:
    """Delete what was planned; a failure does not stop the deletion of other runs."""
    try:
        if run.exists and (now := run.read().status) != row.status:
            return row.model_copy(update={"problem": f"the run {run.name!r} is {now} now", "freed_bytes": 0})
        found = delete(run, checkpoints_only=row.checkpoints_only)
    except StorageError as error:
        return row.model_copy(update={"problem": error.message, "freed_bytes": 0})
    return row.model_copy(update={"foreign": [str(path) for path in found.foreign]})
