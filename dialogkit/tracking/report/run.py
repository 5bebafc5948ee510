"""The data of a run for a page, and how values are formatted.

A folder may come from somebody else: a value of an unexpected type is skipped and never an error.
"""

import json
import math
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from dialogkit.text import byte_size, duration, known_from_training
from dialogkit.tracking.evaluation_files import best_evaluations, task_results
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir

COLOURS = 8
"""Number of run colours in the page's style sheet."""

LONGEST_TEXT = 1_500
"""Maximum number of characters shown of a prompt, a reply or a value."""

NOTHING = "–"  # noqa: RUF001 - an en dash for unknown values


class PageRun(NamedTuple):
    """A run with its letter and colour on the page."""

    letter: str
    colour: str
    dashed: bool
    """Whether another run has the same colour."""
    record: RunRecord
    points: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    tasks: list[dict[str, Any]]
    record_path: Path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.record.name

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.record.model_name or "a model"

    @property
    def preset(self) -> str:
        """The preset of its settings."""
        return str(self.record.config.get("preset") or "custom")

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.record.data.dataset or self.record.settings("data").get("dataset") or "")

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Return steps and values of a metric, including non-finite values."""
        found = [(number(point["step"]), number(point.get(name))) for point in self.points]
        known = [(step, value) for step, value in found if step is not None and value is not None]
        return [step for step, _ in known], [value for _, value in known]

    def finite(self, name: str) -> list[float]:
        """Return the finite values of a metric."""
        return [value for value in self.series(name)[1] if math.isfinite(value)]

    def before(self, metric: str) -> float | None:
        """Return a metric of the untrained model on the held-out dialogs."""
        return self.record.metrics.get(f"before/{metric}")

    def after(self, metric: str) -> float | None:
        """Return a metric of the trained model, or of the last evaluation."""
        steps, evaluated = self.series(f"eval/{metric}")
        last = evaluated[-1] if steps and steps[-1] > 0 else None
        return self.record.metrics.get(f"final/{metric}", last)

    @property
    def steps(self) -> float | None:
        """Completed optimizer steps, as far as they were logged."""
        logged = [step for point in self.points if (step := number(point["step"])) is not None]
        return self.record.metrics.get("train/steps", max(logged, default=None))

    @property
    def tokens(self) -> float | None:
        """Tokens seen in training."""
        return self.record.metrics.get("train/tokens", max(self.finite("train/tokens"), default=None))

    @property
    def speed(self) -> float | None:
        """Tokens per second in training."""
        logged = self.finite("perf/tokens_per_s")
        return self.record.metrics.get("perf/tokens_per_s", median(logged) if logged else None)

    @property
    def memory(self) -> float | None:
        """Peak bytes on the GPU or, without one, of the process."""
        held = self.finite("gpu/memory_peak_bytes") or self.finite("system/memory_bytes")
        return max(held, default=None)

    @property
    def took(self) -> str:
        """Duration of the run, as people say it."""
        seconds = self.record.duration_s
        return NOTHING if seconds is None or not math.isfinite(seconds) else duration(seconds)


class Text(NamedTuple):
    """An untrusted text, shortened if it is long."""

    text: str
    more: int = 0
    """Number of omitted characters."""


def read_run(run: RunDir, order: int) -> PageRun:
    """Read a run; `order` is its position on the page. Raises: ModelError if its record cannot be read."""
    record = run.read()
    return PageRun(
        letter=chr(ord("A") + order) if order < 26 else str(order + 1),
        colour=f"--s{order % COLOURS + 1}",
        dashed=order >= COLOURS,
        record=record,
        points=run.metrics(),
        samples=run.samples(),
        evaluations=best_evaluations(run),
        tasks=task_results(run),
        record_path=run.record_path,
    )


def number(value: object) -> float | None:
    """Return a number read from a file, where non-finite numbers are text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def text_of(value: object, longest: int = LONGEST_TEXT) -> Text:
    """Return a value as text of limited length."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return Text(text[:longest].rstrip(), max(0, len(text) - longest))


def date(text: object) -> str:
    """Format a time of a record; return anything else unchanged."""
    with suppress(ValueError):
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M} UTC"
    return str(text)


def written(value: float | None, form: str) -> str:
    """Format a number, or return the placeholder for unknown values."""
    return NOTHING if value is None else format(value, form)


def short(value: float | None) -> str:
    """Format a large number with three digits: 4.79M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}" if abs(value) < 999.5 * size else f"{value / size:,.0f}{letter}"
    return f"{value:,.0f}"


def in_bytes(value: float | None) -> str:
    """Format bytes as MiB or GiB."""
    return NOTHING if value is None or not math.isfinite(value) else byte_size(value)


def headline_of(run: PageRun) -> dict[str, Any]:
    """Return bits per byte before and after, the fraction that remains, and what training knows of the dialogs."""
    before, after = run.before("bits_per_byte"), run.after("bits_per_byte")
    share = None
    if before is not None and after is not None and math.isfinite(before) and math.isfinite(after) and before > 0:
        share = after / before
    data = run.record.data
    known = known_from_training(f"{data.eval_dialogs or 0:,} held-out", data.known_prompts, data.known_answers)
    return {"before": written(before, ".2f"), "after": written(after, ".2f"), "share": share, "known": known}


def tiles_of(run: PageRun) -> list[tuple[str, str, str]]:
    """Return name, value and remark of the main metrics of a run; skip unknown ones."""
    parameters = run.record.model.parameters
    right = run.after("right_answers")
    loss_before, accuracy_before = run.before("nats_per_token"), run.before("accuracy")
    tiles = [
        ("loss", written(run.after("nats_per_token"), ".3f"), f"from {written(loss_before, '.3f')}"),
        ("accuracy", written(run.after("accuracy"), ".1%"), f"from {written(accuracy_before, '.1%')}"),
        ("right answers", written(right, ".1%"), f"from {written(run.before('right_answers'), '.1%')}"),
        ("ends by itself", written(run.record.replies.get("stop_rate"), ".1%"), "of the test replies"),
        ("parameters", short(parameters), written(parameters, ",.0f")),
        ("steps", written(run.steps, ",.0f"), _of_steps(run)),
        ("tokens", short(run.tokens), "seen in training"),
        ("speed", short(run.speed), "tokens/s"),
        ("time", run.took, "since it was resumed" if run.record.resumed else "in all"),
        ("memory", in_bytes(run.memory), "at most"),
    ]
    return [tile for tile in tiles if tile[1] != NOTHING]


def _of_steps(run: PageRun) -> str:
    """Return how many steps were planned, and which one was kept, where these are others."""
    planned, kept = run.record.schedule.total_steps, run.record.metrics.get("train/kept_step")
    of_planned = "" if planned in (None, run.steps) else f"of {planned:,}"
    of_kept = "" if kept in (None, run.steps) else f"that of {kept:,.0f} kept"
    return ", ".join(filter(None, (of_planned, of_kept)))
