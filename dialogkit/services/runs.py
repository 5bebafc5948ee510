"""What was trained here, read from the run folders alone, and the upload of offline W&B runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dialogkit.errors import ModelError
from dialogkit.services.models import DEFAULT_OUTPUT
from dialogkit.services.result import Result
from dialogkit.tracking.rundir import RunDir, RunRecord, find_run, list_runs
from dialogkit.tracking.wandb_run import find_credentials, offline_folders, sync_folder

_FIGURES = ("bits_per_byte", "nats_per_token")


class RunRow(Result):
    """One run and its main figures; None for what it has not come to."""

    name: str
    status: str
    created: str
    duration_s: float | None
    model: str
    parameters: int | None
    dataset: str
    steps: int | None
    """Steps that were made, as far as they were logged."""
    total_steps: int | None
    bits_per_byte: float | None
    """On the held-out dialogs: of the finished model, or of the last evaluation where there is none."""
    nats_per_token: float | None
    success_rate: float | None


class SyncRow(Result):
    """What became of one offline W&B run."""

    folder: str
    uploaded: bool
    reason: str
    """Why it was not; empty if it was."""


def list_run_rows(*, output: str | Path = DEFAULT_OUTPUT) -> list[RunRow]:
    """Return the runs of an output folder, the newest first."""
    return [_row(run, record) for run, record in list_runs(Path(output))]


def show_run(name: str, *, output: str | Path = DEFAULT_OUTPUT) -> RunRecord:
    """Return the whole record of a run. Raises: ModelError if there is none."""
    return find_run(Path(output), name).read()


def sync_runs(names: list[str] | None = None, *, output: str | Path = DEFAULT_OUTPUT) -> list[SyncRow]:
    """Upload offline W&B runs one by one; one that cannot be read does not keep the others.

    Args:
        names: runs to upload; None are all of the output folder.
        output: folder of models and runs.

    Raises: UnavailableError without a key; ModelError for an unknown run or one that has no offline record.
    """
    credentials = find_credentials(Path.cwd())
    credentials.require_key()
    folders = offline_folders(Path(output))
    if names:
        chosen = []
        for name in names:
            run = find_run(Path(output), name)
            chosen += _folders_of(run, folders)
        folders = chosen
    rows = []
    for folder in folders:
        reason = sync_folder(folder, credentials)
        rows.append(SyncRow(folder=str(folder), uploaded=reason is None, reason=reason or ""))
    return rows


def _folders_of(run: RunDir, folders: list[Path]) -> list[Path]:
    wandb_id = run.read().wandb.get("id")
    found = [folder for folder in folders if wandb_id and folder.name.endswith(f"-{wandb_id}")]
    if not found:
        raise ModelError(f"the run {run.name!r} has no offline W&B record", hint="dialogkit runs list")
    return found


def _row(run: RunDir, record: RunRecord) -> RunRow:
    total = steps = record.schedule.get("total_steps")
    if record.status == "completed":
        total = steps = int(record.metrics.get("train/steps", total or 0))  # early stopping makes fewer
        figures: Mapping[str, Any] = {name: record.metrics.get(f"final/{name}") for name in _FIGURES}
    else:
        points = run.metrics()
        steps = max((int(point["step"]) for point in points), default=None)
        evaluated = [point for point in points if "eval/nats_per_token" in point]
        figures = {name: evaluated[-1].get(f"eval/{name}") if evaluated else None for name in _FIGURES}
    return RunRow(
        name=record.name,
        status=record.status,
        created=record.created,
        duration_s=record.duration_s,
        model=str(record.model.get("name") or record.config.get("model", {}).get("name", "")),
        parameters=record.model.get("parameters"),
        dataset=str(record.data.get("dataset", "")),
        steps=steps,
        total_steps=total,
        **figures,
        success_rate=record.replies.get("success_rate"),
    )
