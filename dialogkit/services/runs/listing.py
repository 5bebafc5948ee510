"""The runs of an output folder, one row each: what `runs list` and `runs best` show."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.services.result import Result
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir, damaged_runs, list_runs

_FIGURES = ("bits_per_byte", "nats_per_token")


class RunRow(Result):
    """One run and its main figures; None for what it has not come to."""

    name: str
    status: str
    created: str
    duration_s: float | None
    model: str
    preset: str
    parameters: int | None
    dataset: str
    steps: int | None
    """Steps that were made, as far as they were logged."""
    total_steps: int | None
    bits_per_byte: float | None
    """On the held-out dialogs: of the finished model, or of the last evaluation where there is none."""
    nats_per_token: float | None
    success_rate: float | None
    stop_rate: float | None
    """Share of the replies to the test prompts that ended by themselves."""
    tokens_per_s: float | None
    """In training steps."""


def list_run_rows(*, output: str | Path = DEFAULT_OUTPUT) -> list[RunRow]:
    """Return the runs of an output folder, the newest first."""
    return [_row(run, record) for run, record in list_runs(Path(output))]


def passed_over(*, output: str | Path = DEFAULT_OUTPUT) -> list[str]:
    """Return the names of the runs that `list_run_rows` leaves out because their records cannot be read."""
    return [run.name for run in damaged_runs(Path(output))]


def best_runs(*, output: str | Path = DEFAULT_OUTPUT) -> list[RunRow]:
    """Return the finished run with the fewest bits per byte of each dataset; only on one can runs be compared."""
    best: dict[Any, RunRow] = {}
    for run, record in list_runs(Path(output)):
        row = _row(run, record)
        measured = held_out_identity(record)
        if record.status == "completed" and row.bits_per_byte is not None:
            known = best.get(measured)
            if known is None or row.bits_per_byte < (known.bits_per_byte or 0):
                best[measured] = row
    return list(best.values())


def held_out_identity(record: RunRecord) -> tuple[Any, Any]:
    """Return by what the held-out dialogs of a run are known: the same rows have the same of them."""
    return record.data.revision, record.data.eval_dialogs


def series_of(points: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return the steps at which a figure was logged with its values; what is no number is left out."""
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
        figures: Mapping[str, Any] = {name: record.metrics.get(f"final/{name}") for name in _FIGURES}
    else:
        points = run.metrics()
        steps = max((int(point["step"]) for point in points), default=None)
        evaluated = [point for point in points if "eval/nats_per_token" in point]
        figures = {name: evaluated[-1].get(f"eval/{name}") if evaluated else None for name in _FIGURES}
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
        **figures,
        success_rate=record.replies.get("success_rate"),
        stop_rate=record.replies.get("stop_rate"),
        tokens_per_s=speed,
    )
