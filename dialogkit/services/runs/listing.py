"""The runs of an output folder, one row each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from dialogkit.config.base import Result
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_index import RunSummary, read_runs
from dialogkit.tracking.run_list import damaged_runs, list_runs, newest_first

if TYPE_CHECKING:
    from dialogkit.services.evaluation.results import Scores
    from dialogkit.services.runs.verdict import Verdict


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
    reply_rate: float | None
    """Fraction of the test prompts with a non-empty reply, right or wrong."""
    stop_rate: float | None
    """Fraction of the replies to the test prompts that ended by themselves."""
    tokens_per_s: float | None
    """In training steps."""
    interval: tuple[float, float] | None = None
    """95% interval of the bits per byte of the finished model."""
    tied_with: list[str] = Field(default_factory=list)
    """Of the best run: the others on the same held-out dialogs that it may not be better than."""
    not_paired: list[str] = Field(default_factory=list)
    """Of these, those that no evaluation has compared dialog by dialog: their intervals overlap its own."""


class RunList(NamedTuple):
    """The runs of an output folder, newest first, and the names of those whose records cannot be read."""

    rows: list[RunRow]
    skipped: list[str]


def list_run_rows(*, output: str | Path = DEFAULT_OUTPUT) -> RunList:
    """Return the runs of an output folder."""
    found = read_runs(Path(output))
    rows = [_row(run, summary) for run, summary in newest_first(found.readable)]
    return RunList(rows, [run.name for run in found.damaged])


def skipped_runs(*, output: str | Path = DEFAULT_OUTPUT) -> list[str]:
    """Return the names of the runs that `list_run_rows` skips because of unreadable records."""
    return [run.name for run in damaged_runs(Path(output))]


def best_runs(*, output: str | Path = DEFAULT_OUTPUT) -> list[RunRow]:
    """Return the finished run with the fewest bits per byte on each dataset, and those it may not beat."""
    from dialogkit.tracking.evaluation_files import dialog_scores

    by_data: dict[Any, list[tuple[RunDir, RunRow]]] = {}
    for run, summary in list_runs(Path(output)):
        row = _row(run, summary)
        if summary.status == "completed" and row.bits_per_byte is not None:
            by_data.setdefault((summary.revision, summary.eval_dialogs), []).append((run, row))
    best = []
    for (_, dialogs), found in by_data.items():
        (best_run, first), *others = sorted(found, key=lambda pair: pair[1].bits_per_byte or 0)
        near = [(run, row) for run, row in others if not _is_below(first.interval, row.interval)]
        scores = dialog_scores(best_run, first.dataset, dialogs) if near and dialogs else {}
        tied, not_paired = [], []
        for run, row in near:
            verdict = _by_dialog(first, scores, row, dialog_scores(run, row.dataset, dialogs) if scores else {})
            if verdict is None or verdict.clearly_best != first.name:
                tied.append(row.name)
            if verdict is None:
                not_paired.append(row.name)
        best.append(first.model_copy(update={"tied_with": tied, "not_paired": not_paired}))
    return best


def _by_dialog(first: RunRow, scores: "Scores", other: RunRow, its_scores: "Scores") -> "Verdict | None":
    """Return which of two runs predicts better on the dialogs that both have stored scores of; None if on none."""
    from dialogkit.services.runs.verdict import Contender, judge  # `runs list` needs neither

    if not scores.keys() & its_scores.keys():
        return None
    contenders = [
        Contender(row.name, row.bits_per_byte, scores=of) for row, of in ((first, scores), (other, its_scores))
    ]
    return judge(contenders, dialogs=None)


def _is_below(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    """Return whether an interval is known to be below another."""
    return one is not None and other is not None and one[1] < other[0]


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


def _row(run: RunDir, summary: RunSummary) -> RunRow:
    same = summary.model_dump(include=RunRow.model_fields.keys() - {"dataset"})
    return RunRow(name=run.name, model=summary.model_name, dataset=summary.dataset or "", **same)
