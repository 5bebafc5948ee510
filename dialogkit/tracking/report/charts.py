"""The curves of a page."""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from dialogkit.tracking.plots import Curve, draw, smoothed
from dialogkit.tracking.report.run import PageRun

if TYPE_CHECKING:
    from markupsafe import Markup

SMOOTHED_FROM = 30
"""Minimum number of points for a smoothed line."""


class Legend(NamedTuple):
    """Meaning of a line with this look and colour."""

    look: str
    colour: str
    text: str


class Chart(NamedTuple):
    """Curves with their title, unit and legend."""

    title: str
    unit: str
    remark: str
    """One number of it, with a word."""
    narrow: "Markup"
    wide: "Markup | None" = None
    """The same for screens wider than a phone."""
    legend: Sequence[Legend] = ()


def charts_of(runs: Sequence[PageRun]) -> list[Chart]:
    """Return the charts that have data."""
    gpu = any(run.finite("gpu/memory_allocated_bytes") for run in runs)
    held = "gpu/memory_allocated_bytes" if gpu else "system/memory_bytes"
    large = any(value >= 2**30 for run in runs for value in run.finite(held))
    unit, size = ("GiB", 2**30) if large else ("MiB", 2**20)
    where = "on the GPU" if gpu else "of the process"
    charts = [
        _loss(runs),
        _metric(runs, "train/learning_rate", "Learning rate", "", ("peak", max, "{:.3g}")),
        _metric(runs, "train/grad_norm", "Gradient norm", "before clipping", ("median", median, "{:.3g}")),
        _metric(
            runs, "perf/tokens_per_s", "Throughput", "tokens per second", ("median", median, "{:,.0f}"), "{:,.0f}"
        ),
        _metric(runs, held, "Memory", f"{unit} {where}", ("most", max, "{:,.3g}"), scale=1 / size),
        _percentage(runs, "eval/right_answers", "Right answers", "of checked held-out questions"),
        _percentage(runs, "talk/stop_rate", "Replies that end by themselves", ""),
        _percentage(runs, "talk/mean_repetition", "Repetition", "of three words in a row"),
    ]
    return [chart for chart in charts if chart is not None]


def _percentage(runs: Sequence[PageRun], metric: str, title: str, unit: str) -> Chart | None:
    """Return a chart of a fraction, in per cent."""
    return _metric(runs, metric, title, unit, ("last", _last, "{:.1f}%"), "{:g}%", scale=100)


def _last(values: list[float]) -> float:
    return values[-1]


def _loss(runs: Sequence[PageRun]) -> Chart | None:
    """Return training and held-out loss: two colours for one run, one colour per run for several."""
    one = len(runs) == 1
    curves: list[Curve] = []
    for run in runs:
        steps, values = run.series("train/loss")
        if one and len(values) >= SMOOTHED_FROM:
            curves.append(Curve(steps, values, run.colour, "faint"))
        if len(values) >= SMOOTHED_FROM:
            values = smoothed(values, max(3, len(values) // 25))
        curves.append(Curve(steps, values, run.colour, "line" if one else "faint", run.dashed))
        steps, values = run.series("eval/nats_per_token")
        curves.append(Curve(steps, values, "--s2" if one else run.colour, "marks", run.dashed))
    legend = [Legend("line", "--s1", "training"), Legend("marks", "--s2", "held-out dialogs")]
    if not one:
        legend = [Legend("line", run.colour, f"{run.letter}  {run.name}") for run in runs]
        legend += [Legend("faint", "--muted", "training"), Legend("marks", "--muted", "held-out dialogs")]
    final = runs[0].record.metrics.get("final/nats_per_token") if one else None
    remark = "" if final is None else f"finished model, held out: {final:.3f}"
    return _drawn(("Loss", "nats per token", remark), curves, wide=True, legend=legend)


def _metric(
    runs: Sequence[PageRun],
    metric: str,
    title: str,
    unit: str,
    summary: tuple[str, Callable[[list[float]], float], str],
    form: str = "{:g}",
    *,
    scale: float = 1.0,
) -> Chart | None:
    """Return a chart of a metric from zero; `summary` is a word, a function and a format for a single run."""
    curves, known = [], []
    for run in runs:
        steps, values = run.series(metric)
        curves.append(Curve(steps, [value * scale for value in values], run.colour, "line", run.dashed))
        known += [value * scale for value in values if math.isfinite(value)]
    word, chosen, shown = summary
    remark = f"{word} {shown.format(chosen(known))}" if known and len(runs) == 1 else ""
    return _drawn((title, unit, remark), curves, form=form, from_zero=True)


def _drawn(
    words: tuple[str, str, str],
    curves: Sequence[Curve],
    *,
    form: str = "{:g}",
    from_zero: bool = False,
    wide: bool = False,
    legend: Sequence[Legend] = (),
) -> Chart | None:
    """Return a chart with this title, unit and remark; None without data."""
    from markupsafe import Markup

    drawable = [curve for curve in curves if curve.drawable]
    if not drawable:
        return None

    def picture(width: int, height: int, title: str) -> Markup:
        # Not escaped: the title is a constant, and everything else in it is a number.
        drawn = draw(drawable, title=title, width=width, height=height, form=form.format, from_zero=from_zero)
        return Markup(drawn)

    title = words[0]
    return Chart(*words, picture(460, 250, title), picture(980, 330, f"{title}, wide") if wide else None, legend)
