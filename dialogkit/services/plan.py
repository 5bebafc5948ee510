"""Plans a training: which model to train in the given time, and the quality to expect from it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dialogkit.config.load import load_run_config, require_overrides
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError, OutOfMemoryError
from dialogkit.hints import Call, Change
from dialogkit.services.inspection.remarks import FEW_STEPS, MOST_EPOCHS, enough_epochs
from dialogkit.services.planning.measuring import Measured, SharedData, measure
from dialogkit.services.planning.reference import reference_of
from dialogkit.services.planning.remarks import HALF, older, poor, unknown
from dialogkit.services.planning.results import PlanResult, PlanRow
from dialogkit.system.compute_lock import alone, require_threads
from dialogkit.text import duration

__all__ = ["PlanResult", "plan"]

CANDIDATES = ("custom-pico", "custom-nano", "custom-tiny", "custom-small")
"""Models that are compared, the smallest first; larger ones take days on a CPU."""
TALK, OTHER = "talk", "production"
"""The preset whose dataset is planned for by default, and the one for all other datasets: it takes all dialogs."""

ProgressSink = Callable[[str, float], None]
"""Receives the current stage and the fraction of the work that is done."""


@alone()
def plan(
    budget_s: float = 1200.0,
    *,
    dataset: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_progress: ProgressSink = lambda stage, fraction: None,
) -> PlanResult:
    """Measure this machine for a few steps, and return the model to train in a time and the quality to expect.

    Args:
        budget_s: seconds for the whole run, as `train.budget_s`.
        dataset: a dataset as `train` takes it; None is that of the preset talk.
        overrides: further settings by dotted names, such as `{"data.max_bad_rows": 5}`.
        on_progress: receives the current stage and the fraction of the work that is done.

    Raises: what `train` raises for the same data; ConfigError for a stream, or too short a time.
    """
    require_overrides(overrides)
    given, usual = dict(overrides or {}), load_run_config(preset=TALK).data.dataset
    name = str(dataset or given.pop("data.dataset", usual))
    preset = TALK if name == usual else OTHER
    changed = {**given, "data.dataset": name, "train.budget_s": budget_s}
    configs = [load_run_config(model, preset=preset, overrides=changed) for model in CANDIDATES]
    require_threads(configs[0].runtime.threads)
    if configs[0].data.streaming:
        problem = "a plan needs the number of dialogs, which a stream (data.streaming) does not know"
        raise ConfigError(problem, hint=Change({"data.streaming": False}))
    data, rows, known = SharedData(), list[PlanRow](), list[Measured]()
    for number, config in enumerate(configs):
        on_progress(f"measuring {config.model.name} on {name}", number / len(configs))
        try:
            measured = measure(config, data)
        except OutOfMemoryError as error:
            if number == 0:  # the larger ones fit even less
                raise
            rows.append(PlanRow(model=config.model.name, problem=error.message))
        else:
            known.append(measured)
            rows.append(_row(config, measured))
    if not any(row.steps for row in rows):
        raise _too_short(budget_s, known)
    first = known[0]
    forecast = any(row.forecast for row in rows)
    chosen = _best(rows) if forecast else _fitting(rows, first.train_dialogs, configs[0].train.batch_size)
    other = {"data.dataset": name} if load_run_config(preset=preset).data.dataset != name else {}
    length: dict[str, float] = {"train.budget_s": budget_s}
    if not forecast and chosen.epochs > MOST_EPOCHS:
        length = {"train.epochs": MOST_EPOCHS}
    remarks = [
        *([] if forecast else unknown(name, chosen)),
        *poor(rows, chosen),
        *older(name, first.revision, chosen),
        *(f"{row.model} is left out: {row.problem}" for row in rows if row.problem),
    ]
    return PlanResult(
        dataset=name,
        preset=preset,
        budget_s=budget_s,
        device=first.device,
        train_dialogs=first.train_dialogs,
        rows=rows,
        chosen=chosen.model,
        remarks=remarks,
        training=Call("train", chosen.model, preset=preset, settings={**other, **given, **length}),
    )


def _row(config: RunConfig, measured: Measured) -> PlanRow:
    from dialogkit.engine.budget import budget_for, steps_within

    budget_s, batch = config.train.budget_s or 0.0, config.train.batch_size
    steps, reference = steps_within(budget_s, **measured.costs), reference_of(config)
    forecast = reference.forecast(steps * batch) if reference is not None and steps else None
    enough = None if reference is None else reference.dialogs_for(HALF)
    return PlanRow(
        model=config.model.name,
        parameters=measured.parameters,
        parameters_without_embeddings=measured.parameters_without_embeddings,
        tokens_per_s=measured.tokens_per_s,
        evaluation_s=measured.evaluation_s,
        steps=steps,
        dialogs=steps * batch,
        tokens=round(steps * measured.step_s * measured.tokens_per_s),
        epochs=steps * batch / measured.train_dialogs,
        forecast=forecast,
        half_right_s=None if enough is None else budget_for(math.ceil(enough / batch), **measured.costs),
    )


def _too_short(budget_s: float, measured: Sequence[Measured]) -> ConfigError:
    from dialogkit.engine.budget import budget_for

    needed, enough = (min(budget_for(steps, **one.costs) for one in measured) for steps in (1, FEW_STEPS))
    return ConfigError(
        f"{duration(budget_s)} is too short to train on this machine: the start and the evaluations of the "
        f"fastest model take {duration(needed)}",
        hint=Change({"train.budget_s": 60.0 * math.ceil(enough / 60)}),
    )


def _best(rows: Sequence[PlanRow]) -> PlanRow:
    """Return the row with the best forecast: by right answers where there are checks, else by bits per byte.

    The figures of a model that would see fewer dialogs than its reference runs are too good, so it comes last.
    """

    def order(row: PlanRow) -> tuple[bool, float, float]:
        assert row.forecast is not None
        right = row.forecast.right_answers or 0.0
        return row.forecast.range == "below", -round(right, 2), row.forecast.bits_per_byte

    return min((row for row in rows if row.forecast is not None), key=order)


def _fitting(rows: Sequence[PlanRow], train_dialogs: int, batch_size: int) -> PlanRow:
    """Return the largest model for which both the time and the data are enough; else the smallest.

    The time is enough for the passes that an inspection of the data suggests, and the data if a training sees at
    least a token for each parameter that is no embedding.
    """
    trained = [row for row in rows if row.steps]
    wanted = enough_epochs(math.ceil(train_dialogs / batch_size))

    def fits(row: PlanRow) -> bool:
        tokens = row.tokens * min(1.0, MOST_EPOCHS / row.epochs)
        return row.epochs >= wanted and tokens >= (row.parameters_without_embeddings or 0)

    return next((row for row in reversed(trained) if fits(row)), trained[0])
