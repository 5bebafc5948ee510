"""The runs of an output folder, one row each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dialogkit.config.base import Result
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import damaged_runs, list_runs

_METRICS = ("bits_per_byte", "nats_per_token")


class RunRow(Result):
    """One run and its main metrics; None if not reached yet."""

    name: str
    status: str
    created: str
    duration_s: float | None
    model: str
    preset: str
    parameters: int | None
    dataset: str
    steps: int | None
    """Completed steps, as far as they were logged."""
    total_steps: int | None
    bits_per_byte: float | None
    """On the held-out dialogs: of the finished model, or of the last evaluation."""
    nats_per_token: float | None
    success_rate: float | None
    stop_rate: float | None
    """Fraction of the replies to the test prompts that ended by themselves."""
    tokens_per_s: float | None
    """In training steps."""


def list_run_rows(*, output: str | Path = DEFAULT_OUTPUT) -> list[RunRow]:
    """Return the runs of an output folder, newest first."""
    return [_row(run, record) for run, record in list_runs(Path(output))]


def skipped_runs(*, output: str | Path = DEFAULT_OUTPUT) -> list[str]:
    """Return the names of the runs that `list_run_rows` skips because of unreadable records."""
    return [run.name for run in damaged_runs(Path(output))]


def best_runs(*, output: str | Path = DEFAULT_OUTPUT) -> list[RunRow]:
    """Return the finished run with the fewest bits per byte on each dataset."""
    best: dict[Any, RunRow] = {}
    for run, record in list_runs(Path(output)):
        row = _row(run, record)
        dataset = held_out_identity(record)
        if record.status == "completed" and row.bits_per_byte is not None:
            known = best.get(dataset)
            if known is None or row.bits_per_byte < (known.bits_per_byte or 0):
                best[dataset] = row
    return list(best.values())


def held_out_identity(record: RunRecord) -> tuple[Any, Any]:
    """Return a key of the held-out dialogs of a run: equal keys mean the same dialogs."""
    return record.data.revision, record.data.eval_dialogs


def series_of(points: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return the steps and values of a logged metric; skip non-finite values."""
    found = [(point.get("step"), point.get(name)) for point in points]
    return [
        (step, float(value))
        for step, value in found
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value)
    ]


def _row(run: RunDir, record: RunRecord) -> RunRow:
    total = steps = record.schedule.total_steps
    speed = record.metrics.get("perf/tokens_per_s")
    if record.status == "completed":
        total = steps = int(record.metrics.get("train/steps", total or 0))  # early stopping makes fewer
        metrics: Mapping[str, Any] = {name: record.metrics.get(f"final/{name}") for name in _METRICS}
    else:
        points = run.metrics()
        steps = max((int(point["step"]) for point in points), default=None)
        evaluated = [point for point in points if "eval/nats_per_token" in point]
        metrics = {name: evaluated[-1].get(f"eval/{name}") if evaluated else None for name in _METRICS}
        speed = next((value for _, value in reversed(series_of(points, "perf/tokens_per_s"))), None)
    return RunRow(
        name=run.name,
        status=record.status,
        created=record.created,
        duration_s=record.duration_s,
        model=record.model_name,
        preset=str(record.config.get("preset", "")),
        parameters=record.model.parameters,
        dataset=record.data.dataset or "",
        steps=steps,
        total_steps=total,
        **metrics,
        success_rate=record.replies.get("success_rate"),
        stop_rate=record.replies.get("stop_rate"),
        tokens_per_s=speed,
    )
