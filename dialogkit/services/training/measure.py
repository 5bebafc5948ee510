"""Metrics and replies of the model before its first step and after its last one."""

import time
from typing import TYPE_CHECKING, NamedTuple

from dialogkit.distributed import process_group
from dialogkit.errors import ConfigError
from dialogkit.hints import Change
from dialogkit.inference.results import ReplyResult
from dialogkit.services.training.lifecycle import TrainingRun
from dialogkit.services.training.samples import answer_checked, reply_to_all
from dialogkit.services.training.summary import ledger_line
from dialogkit.text import counted

if TYPE_CHECKING:
    from dialogkit.engine.budget import Budget
    from dialogkit.engine.fit import FitResult
    from dialogkit.services.training.recorder import Recorder
    from dialogkit.services.training.setup import TrainingSetup


class Measurements(NamedTuple):
    """What is known about a trained model.

    Attributes:
        metrics: of the run, and on the held-out dialogs before and after it.
        replies: to the test prompts.
        held_out_replies: to held-out prompts, with the answers of the dataset.
    """

    metrics: dict[str, float]
    replies: list[ReplyResult]
    held_out_replies: list[ReplyResult]


def measure_untrained(run: TrainingRun, setup: "TrainingSetup", recorder: "Recorder") -> float:
    """Record the metrics before the first step; return the seconds this took, which it will take again at the end.

    Raises: ConfigError if a budget is too short to train.
    """
    import numpy as np

    from dialogkit.engine.histograms import Histogram

    budget_s = setup.config.train.budget_s
    spent_s = process_group.broadcast(time.perf_counter() - run.started)
    if budget_s is not None and spent_s >= budget_s:
        raise ConfigError(
            f"a budget of {budget_s:,.0f} s is too short to train: startup alone took {spent_s:,.0f} s",
            hint=Change({"train.budget_s": max(60, round(10 * spent_s))}),
        )
    run.reporter.activity(f"measuring the untrained model on {_held_out(setup)}")
    lengths = Histogram(*np.histogram(setup.data.sample.lengths, bins=32))
    recorder.histograms(0, {"data/dialog_tokens": lengths})
    measured = time.perf_counter()
    before = setup.score(autocast=False) | answer_checked(setup).metrics
    if budget_s is not None:
        run.reporter.activity("answering the test prompts to measure the time this takes")
        reply_to_all(setup)
    took_s = time.perf_counter() - measured
    untrained = {"train/tokens": 0.0, "train/supervised_tokens": 0.0}
    recorder.point(0, {f"eval/{name}": value for name, value in before.items()} | untrained)
    run.record.metrics = {f"before/{name}": value for name, value in before.items()}
    run.folder.write(run.record)
    return took_s


def plan_budget(run: TrainingRun, setup: "TrainingSetup", evaluation_s: float) -> "Budget | None":
    """Return the wall-clock budget of a run, the same on every rank; None if it is unlimited."""
    from dialogkit.engine.budget import Budget

    budget_s = setup.config.train.budget_s
    if budget_s is None:
        return None
    if warning := costly_evaluations(budget_s, evaluation_s, len(setup.data.evaluation)):
        dialogs, text = warning
        change = run.reporter.advice(Change({"data.eval_max_dialogs": dialogs}))
        run.note(f"{text}: {change} leaves more time for training")
    return process_group.broadcast(Budget(budget_s, run.started, evaluation_s=evaluation_s, end_s=evaluation_s))


def costly_evaluations(budget_s: float, evaluation_s: float, dialogs: int) -> tuple[int, str] | None:
    """Return fewer held-out dialogs and a warning, if three evaluations take much of a budget; else None."""
    fraction = 3 * evaluation_s / budget_s
    if fraction < 0.25:
        return None
    fewer = max(50, 50 * round(dialogs * 0.1 / fraction / 50))  # a tenth of the budget, in steps of fifty
    if fewer >= dialogs:
        return None
    return fewer, f"three evaluations of {dialogs:,} dialogs take {min(fraction, 1):.0%} of the budget"


def measure_trained(
    run: TrainingRun, setup: "TrainingSetup", recorder: "Recorder", fitted: "FitResult"
) -> Measurements:
    """Return the metrics of the trained model and its replies."""
    if setup.config.data.streaming:
        run.note(ledger_line(setup))
    recorder.gpu_use()
    if fitted.skipped_steps:
        changed = f"{fitted.skipped_steps:,} of {counted(fitted.steps, 'step')} changed no weight"
        run.note(f"{changed}: their gradients overflowed in fp16, and the scale of the loss was halved after each")
    run.reporter.activity(f"measuring the trained model on {_held_out(setup)}")
    limited = setup.config.train.budget_s is not None
    run.record.schedule.total_steps = fitted.steps if limited else setup.schedule.total_steps
    likelihood = setup.likelihood(autocast=False)
    right = answer_checked(setup, final=True)
    final = likelihood.figures() | right.metrics
    bounds = likelihood.intervals() | right.intervals
    run.record.intervals = {f"final/{name}": bound for name, bound in bounds.items()}
    metrics = {
        **{name: value for name, value in run.record.metrics.items() if name.startswith("before/")},
        **{f"final/{name}": value for name, value in final.items()},
        "train/steps": fitted.steps,
        "train/kept_step": fitted.kept_step,
        "train/tokens": fitted.tokens,
        "train/supervised_tokens": fitted.supervised_tokens,
        **({} if fitted.skipped_steps is None else {"train/skipped_steps": fitted.skipped_steps}),
        "train/seconds": fitted.train_s,
        "perf/tokens_per_s": fitted.tokens / max(fitted.train_s, 1e-9),
    }
    run.reporter.activity("answering the test prompts")
    replies, held_out = reply_to_all(setup)
    recorder.replies(fitted.steps, replies + held_out, table="replies/final", of_step=fitted.kept_step)
    return Measurements(metrics, replies, held_out)


def _held_out(setup: "TrainingSetup") -> str:
    return counted(len(setup.data.evaluation), "held-out dialog")
