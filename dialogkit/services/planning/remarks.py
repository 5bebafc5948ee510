"""The remarks of a plan: what is unknown, and what even the best model will not be able to do."""

from collections.abc import Sequence

from dialogkit.config.run import RunConfig
from dialogkit.services.inspection.remarks import MOST_EPOCHS
from dialogkit.services.planning.reference import reference_of, references
from dialogkit.services.planning.results import PlanRow
from dialogkit.text import counted, duration, listed, percent

HALF = 0.5
"""Share of right answers below which a model is poor."""
GOOD_BATCH = 32
"""Dialogs a step with which a model from scratch learned most in a fixed time on a CPU."""


def unknown(dataset: str, chosen: PlanRow) -> list[str]:
    """Return the lines shown when there is no forecast."""
    others = sorted({str(reference.settings["data.dataset"]) for reference in references().values()})
    of = f" (there are some on {listed(others)})" if others else ""
    lines = [
        f"there are no reference runs on {dataset} with these settings{of}, so what a model will be able to do is "
        "unknown; it is chosen by the size of the data"
    ]
    if chosen.epochs > MOST_EPOCHS:
        lines.append(
            f"the time allows {chosen.epochs:,.0f} passes; more than {MOST_EPOCHS} only memorise the dialogs"
        )
    return lines


def poor(rows: Sequence[PlanRow], chosen: PlanRow) -> list[str]:
    """Return what even the best model will not be able to do, and the time needed for more, if it is poor."""
    forecast = chosen.forecast
    if forecast is None or (right := forecast.right_answers) is None or right >= HALF:
        return []
    said = f"in this time even the best model answers more questions wrong than right ({percent(right)} right)"
    enough = [(row.half_right_s, row.model) for row in rows if row.half_right_s is not None]
    if not enough:
        return [f"{said}; the time needed is unknown: no reference run got half of them right"]
    seconds, model = min(enough)
    return [f"{said}; to answer half of them right, {model} takes {duration(seconds)} on this machine"]


def outlook(config: RunConfig, dialogs: int) -> str | None:
    """Return the quality to expect from training on this many dialogs, if it is poor."""
    reference = reference_of(config)
    forecast = None if reference is None else reference.forecast(dialogs)
    if forecast is None or forecast.range == "above" or (right := forecast.right_answers) is None or right >= HALF:
        return None
    most = "less than " if forecast.range == "below" else ""
    return (
        f"after about {counted(dialogs, 'dialog')}, {config.model.name} answers {most}{percent(right)} of the "
        "questions right"
    )


def larger_batch(config: RunConfig, steps: int) -> str | None:
    """Return what a larger batch would bring to a run from scratch with a time budget; None if it is large enough.

    benchmarks/README.md has the measurement: on a CPU, short dialogs leave most of a small step to overhead.
    """
    if config.model.source is not None or config.train.batch_size >= GOOD_BATCH:
        return None
    if steps * config.train.batch_size < 50 * GOOD_BATCH:  # too few steps would be left
        return None
    return (
        f"with {GOOD_BATCH} dialogs a step a model from scratch usually learns more in the same time (1.375 bits "
        "per byte instead of 1.596 with 8, measured after five minutes on a CPU)"
    )


def older(dataset: str, revision: str, chosen: PlanRow) -> list[str]:
    """Return a line if the dataset is no longer the one of the reference runs."""
    if chosen.forecast is None or chosen.forecast.nearest.revision == revision:
        return []
    return [f"{dataset} has changed since the runs behind this forecast, so it may be off"]
