"""Frees the disk of runs that are of no more use, or of what in them is not."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.errors import ModelError, StorageError
from dialogkit.hints import Call
from dialogkit.services.result import Result
from dialogkit.services.runs.resolve import call_on, is_published
from dialogkit.system.ownership import Contents
from dialogkit.tracking.pruning import contents, delete, freed_bytes, half_deleted
from dialogkit.tracking.record import RunRecord, Status
from dialogkit.tracking.run_dir import RunDir, began, find_run, list_runs


class PruneRow(Result):
    """What is deleted of one run."""

    name: str
    status: str
    checkpoints_only: bool
    bytes: int
    """Of the files."""
    freed_bytes: int
    """Without what another link keeps, such as a published model."""
    deletes_model: bool
    """Whether a finished model goes with it that is published nowhere in the output folder."""
    foreign: list[str]
    """What dialogkit did not write, and so leaves where it is."""
    problem: str | None = None
    """Why nothing is deleted, or not all."""


class PruneResult(Result):
    """What was deleted, or would be."""

    rows: list[PruneRow]
    freed_bytes: int
    pruned: bool
    """Whether it was."""


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
    """Delete runs, or their checkpoints alone. Without a choice: the checkpoints of the finished runs.

    What dialogkit did not write stays. Runs that are not finished can be gone on with: they are chosen only by
    name or status. Runs that are being trained are never touched. A deletion that was cut short is ended.

    Args:
        names: the runs to choose from; None are all.
        keep: choose all but so many, the newest.
        older_than_s: choose those that began longer ago.
        status: choose those of these statuses.
        checkpoints_only: leave the runs with their models, and delete the checkpoints.
        output: folder of models and runs.
        agreed: is given what would be deleted, and says whether to.

    Raises: ModelError for an unknown run; StorageError for a named one that is being trained, or is a link.
    """
    output = Path(output)
    chosen = _chosen(output, names, keep, older_than_s, status)
    by_default = not names and keep is None and older_than_s is None and not status
    alone = checkpoints_only or by_default
    planned = [_planned(run, record, output, checkpoints_only=alone) for run, record in chosen]
    if names:
        for row in planned:
            if row.problem is not None:
                raise StorageError(row.problem, hint=Call("runs show", row.name))
    for run, record in half_deleted(output):
        if not names or run.name in names:
            chosen.append((run, record))
            planned.append(_planned(run, record, output, checkpoints_only=False))
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
) -> list[tuple[RunDir, RunRecord]]:
    half = {run.name for run, _ in half_deleted(output)}
    named = {_named(output, name) for name in names or () if name not in half}
    runs: Iterator[tuple[RunDir, RunRecord]] = list_runs(output)
    kept = [(run, record) for run, record in runs if not names or run.name in named]
    if status:
        kept = [(run, record) for run, record in kept if record.status in status]
    elif not names:
        kept = [(run, record) for run, record in kept if record.status == "completed"]
    if older_than_s is not None:
        limit = datetime.now(UTC) - timedelta(seconds=older_than_s)
        # A run that does not say when it began is taken to be young.
        kept = [(run, record) for run, record in kept if (began(record.created) or limit) < limit]
    return kept[keep or 0 :]


def _named(output: Path, name: str) -> str:
    """Return the name of a run of the output folder. Raises: ModelError if there is none."""
    run = find_run(output, name)
    if run.output is None or run.output.resolve() != output.resolve():
        raise ModelError(f"the run {name!r} does not lie in {str(output)!r}", hint=call_on(run, "runs prune"))
    return run.name


def _planned(run: RunDir, record: RunRecord, output: Path, *, checkpoints_only: bool) -> PruneRow:
    found, problem = Contents(), None
    try:
        if run.is_held:
            problem = f"the run {run.name!r} is being trained"
        else:
            found = contents(run, checkpoints_only=checkpoints_only, exact=False)
    except StorageError as error:
        problem = error.message
    goes = record.status == "completed" and any(path.parent == run.model_dir for path in found.files)
    return PruneRow(
        name=run.name,
        status=record.status,
        checkpoints_only=checkpoints_only,
        bytes=found.bytes,
        freed_bytes=freed_bytes(found.files),
        deletes_model=goes and not is_published(run, record, output),
        foreign=[str(path) for path in found.foreign],
        problem=problem,
    )


def _deleted(run: RunDir, row: PruneRow) -> PruneRow:
    """Delete what was planned; what cannot be deleted does not keep the other runs."""
    try:
        if run.exists and (now := run.read().status) != row.status:
            return row.model_copy(update={"problem": f"the run {run.name!r} is {now} by now", "freed_bytes": 0})
        found = delete(run, checkpoints_only=row.checkpoints_only)
    except StorageError as error:
        return row.model_copy(update={"problem": error.message, "freed_bytes": 0})
    return row.model_copy(update={"foreign": [str(path) for path in found.foreign]})
