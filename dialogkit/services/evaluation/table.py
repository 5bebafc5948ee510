"""The table of an evaluation, for a terminal and for a notebook: its columns, its lines, and what is in a cell."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dialogkit.tracking.metric_specs import ANCHORS, Metric

if TYPE_CHECKING:
    from dialogkit.services.evaluation.results import EvaluateRow

Column = tuple[str, "EvaluateRow"]
"""A title, and the model or baseline below it."""


def columns_of(rows: "Sequence[EvaluateRow]", anchors: "Sequence[EvaluateRow]") -> list[Column]:
    """Return titles and models, each followed by its untrained self, and then the other baselines.

    A baseline that several models share is one column; its title names them unless it belongs to all.
    """
    shared: dict[tuple[object, ...], dict[str, EvaluateRow]] = {}
    for anchor in anchors:
        same = (anchor.anchor, anchor.dataset, anchor.dialogs, anchor.bits_per_byte, anchor.chrf)
        if anchor.anchor is not None:  # as in a foreign folder
            shared.setdefault(same, {}).setdefault(anchor.model, anchor)
    columns = [(row.model, row) for row in rows]
    kinds = list(ANCHORS)
    for (kind, *_), owners in sorted(shared.items(), key=lambda item: kinds.index(str(item[0][0]))):
        owner, anchor = next(iter(owners.items()))
        title = ANCHORS[str(kind)]
        column = (title if len(owners) >= len(rows) else f"{title}\nof {', '.join(owners)}", anchor)
        if kind == "untrained" and len(owners) == 1 and len(rows) > 1:
            after = next((n for n, (_, row) in enumerate(columns) if row.model == owner), len(columns) - 1)
            columns.insert(after + 1, column)
        else:
            columns.append(column)
    return columns


def measured(metrics: Sequence[Metric], rows: "Sequence[EvaluateRow]") -> list[Metric]:
    """Return the metrics that a model has: one of the baselines alone, such as their speed, says nothing."""
    return [metric for metric in metrics if any(getattr(row, metric.name) is not None for row in rows)]


def legend_of(rows: "Iterable[EvaluateRow]") -> str:
    """Return what the brackets in the cells of these rows mean; empty if there are none."""
    return "95% interval in brackets" if any(row.intervals for row in rows if not row.anchor) else ""


def figure_of(metric: Metric, row: "EvaluateRow", *, short: bool = False) -> str:
    """Return a metric of a model with its interval in brackets, or of a baseline; empty if it was not measured."""
    value = getattr(row, metric.name)
    if value is None:
        return ""
    # Decimals of thousands do not matter, and do not fit.
    form = ",.0f" if metric.name == "perplexity" and value >= 1000 else metric.form
    if short and form == ".4f":
        form = ".3f"
    low, high = row.intervals.get(metric.name, (0.0, 0.0))
    bounds = f" [{format(low, form)}, {format(high, form)}]" if not row.anchor and low < high else ""
    return format(value, form) + bounds
