"""Ends a run on time: fits its steps, warm-up and decay to the measured speed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from dialogkit.config.train import TrainConfig
from dialogkit.distributed import process_group
from dialogkit.engine.arguments import EVALUATIONS_PER_RUN, UNPLANNED, StepCounts, default_log_interval
from dialogkit.engine.schedule import count_warmup_steps, decay_factor
from dialogkit.errors import ConfigError
from dialogkit.hints import Change

MEASURED_STEPS = 3
NEWEST_STEP_WEIGHT = 0.02
"""Minimum weight of the newest step in the mean, so that a slowdown is noticed within about 50 steps."""
EVALUATION_FRACTION = 0.1
"""Fraction of the budget that evaluations may take, with the one before the first step and the one at the end."""
MEASURED_FRACTION = 0.02
"""Fraction of the budget after which the measured speed is used, given enough steps."""
ASSUMED_FRACTION = 0.001
"""Fraction of the budget that the first step is assumed to take."""
FEW_STEPS = 5
"""If the first step shows that no more than this many fit, none is spent on measuring the speed."""


@dataclass(frozen=True)
class Budget:
    """The time limit of a whole run, and the time it needs besides training steps."""

    seconds: float
    started: float
    """`time.perf_counter()` when this process started the run."""
    evaluation_s: float = 0.0
    """Expected seconds of an evaluation during training, with its replies."""
    end_s: float = 0.0
    """Expected seconds from the last training step to the end of the run."""


def affordable_evaluations(budget_s: float, evaluation_s: float) -> int:
    """Return the number of evaluations during training: fewer than usual if they would take much of the budget."""
    affordable = int(EVALUATION_FRACTION * budget_s / max(evaluation_s, 1e-9))
    return max(1, min(EVALUATIONS_PER_RUN, affordable - 2))


def steps_within(budget_s: float, *, start_s: float, step_s: float, evaluation_s: float) -> int:
    """Return how many steps a budget leaves time for, beside the start and all evaluations; 0 if it is too short.

    There is one more evaluation before the first step, and one after the last.
    """
    evaluations = affordable_evaluations(budget_s, evaluation_s) + 2
    # Slightly more, so that the result of `budget_for` is enough in spite of rounding.
    return max(0, int((budget_s - start_s - evaluations * evaluation_s) / step_s + 1e-6))


def budget_for(steps: int, *, start_s: float, step_s: float, evaluation_s: float) -> float:
    """Return a budget in which a training makes these steps, with as many evaluations as there can be."""
    return start_s + steps * step_s + (EVALUATIONS_PER_RUN + 2) * evaluation_s


class BudgetPlan:
    """The factor of the learning rate at each step, with a number of steps that is fitted during training.

    `progress` through the schedule goes from 0 to 1. It grows linearly between two fits; a fit keeps the progress
    reached at its step and spreads the rest over the remaining steps, so the factor never jumps.
    All attributes are plain numbers or strings, so torch's `LambdaLR` saves and restores them with a checkpoint.
    """

    def __init__(self, schedule: str, warmup_fraction: float, budget: Budget, *, from_zero: bool = False) -> None:
        self.schedule, self.warmup_fraction = schedule, warmup_fraction
        self.from_zero = from_zero
        """As in `StepSchedule`."""
        self.step_fraction = ASSUMED_FRACTION
        """Fraction of the schedule that a step takes, until the first fit."""
        self.since, self.reached, self.end = 0, 0.0, UNPLANNED
        self.eval_every = 0
        """Steps between evaluations; 0 before the first fit."""
        self.unfitted_eval_every = 0
        """Steps between evaluations before the first fit, if `max_steps` sets the number of steps."""
        self.step_s, self.measured = 0.0, 0
        self.evaluation_s, self.end_s = budget.evaluation_s, budget.end_s
        self.spent_s = 0.0
        """Seconds since the run began, including earlier processes."""

    def progress(self, step: int) -> float:
        """Return the completed fraction of the schedule at a step."""
        fraction = (step - self.since) / max(1, self.end - self.since)
        return min(1.0, self.reached + (1.0 - self.reached) * fraction)

    def plan_known_steps(self, step: int, end: int) -> None:
        """Plan a known number of steps; from step 0, this is the schedule of a run without a budget."""
        self.warmup_fraction = count_warmup_steps(self.warmup_fraction, end) / end
        self.respread(step, end)

    def respread(self, step: int, end: int) -> None:
        """Respread the rest of the schedule over the steps up to `end`."""
        if end != self.end:
            self.since, self.reached, self.end = step, self.progress(step), end

    def __call__(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        progress = self.progress(step)
        if progress < self.warmup_fraction:
            if not self.from_zero:
                # As the other steps of the warm-up, the first one has the factor of its end.
                is_planned = self.end != UNPLANNED
                progress = self.progress(step + 1) if is_planned else progress + self.step_fraction
            return min(1.0, progress / self.warmup_fraction)
        return decay_factor(self.schedule, progress - self.warmup_fraction, 1.0 - self.warmup_fraction)


class BudgetCallback(TrainerCallback):
    """Fits the steps to the remaining time: once when the speed is known, then after every step."""

    def __init__(
        self, config: TrainConfig, budget: Budget, plan: BudgetPlan, on_step_counts: Callable[[StepCounts], None]
    ) -> None:
        self._config, self._budget, self._plan, self._on_step_counts = config, budget, plan, on_step_counts
        self._spent_before = 0.0
        self._began = self._step_began = self._step_ended = 0.0
        self._first = True
        if config.max_steps:  # before the scheduler reads the rate of the first step
            plan.plan_known_steps(0, config.max_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; a resumed run keeps its plan. Raises: ConfigError if no time is left."""
        plan, self._began = self._plan, time.perf_counter()
        self._step_began = self._step_ended = self._began
        self._spent_before = plan.spent_s
        self._read_clock()
        needed = plan.spent_s + plan.evaluation_s + plan.end_s
        if plan.eval_every:
            self._set(state)
            return
        if needed >= self._budget.seconds and not state.global_step and process_group.is_main_process():
            raise ConfigError(
                f"a budget of {self._budget.seconds:,.0f} s is too short to train: "
                f"startup, evaluations and saving take {needed:,.0f} s",
                hint=Change({"train.budget_s": math.ceil(needed / 5) * 10}),
            )
        if self._config.max_steps:
            if plan.end == UNPLANNED:  # older versions did not set it while measuring
                plan.plan_known_steps(state.global_step, self._config.max_steps)
            plan.unfitted_eval_every = plan.unfitted_eval_every or self._eval_every(plan.end)
            self._set(state)

    def _read_clock(self) -> float:
        now = time.perf_counter()
        self._plan.spent_s = self._spent_before + now - self._budget.started
        return now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the step and fit the rest; rank 0's clock decides for all ranks."""
        if process_group.is_main_process():
            self._fit_to_clock(state)
        if process_group.world_size() > 1:
            vars(self._plan).update(process_group.broadcast(vars(self._plan)))
            if not process_group.is_main_process() and self._plan.eval_every:
                self._set(state)

    def _fit_to_clock(self, state: Any) -> None:
        plan, step, now = self._plan, state.global_step, self._read_clock()
        took = now - self._step_began
        self._step_began = self._step_ended = now
        if self._first:  # includes one-time preparations
            self._first, self._began = False, now
        else:
            plan.measured += 1
            plan.step_s += (took - plan.step_s) * max(1 / plan.measured, NEWEST_STEP_WEIGHT)
        plan.step_s = plan.step_s or took
        if plan.eval_every:
            if step < plan.end:
                plan.respread(step, self._no_more_than_allowed(self._end_in_time(step)))
                self._set(state)
            return
        total, known = self._total(step), plan.end
        few = step == 1 and total < known and total <= FEW_STEPS
        enough = plan.measured >= MEASURED_STEPS and now - self._began >= MEASURED_FRACTION * self._budget.seconds
        if few or enough or plan.spent_s + plan.evaluation_s + plan.end_s >= self._budget.seconds:
            plan.eval_every = plan.unfitted_eval_every if total == known else self._eval_every(total)
            if few:
                plan.plan_known_steps(0, total)
            else:
                plan.respread(step, total)
            self._set(state)
        elif total < known:  # until the speed is known, the schedule follows the clock
            plan.since, plan.reached = step, max(plan.progress(step), (now - self._began) / self._budget.seconds)
            if plan.measured:  # the first step says nothing about the others
                plan.step_fraction = plan.step_s / self._budget.seconds

    def _eval_every(self, total: int) -> int:
        return self._config.eval_every_steps or max(1, math.ceil(total / self._evaluations()))

    def _total(self, step: int) -> int:
        plan, every = self._plan, self._config.eval_every_steps
        evaluations = 1 if every else self._evaluations()
        left = self._budget.seconds - plan.spent_s - plan.end_s - evaluations * plan.evaluation_s
        step_s = plan.step_s + (plan.evaluation_s / every if every else 0.0)
        return self._no_more_than_allowed(step + max(1, round(left / step_s)))

    def _no_more_than_allowed(self, end: int) -> int:
        return min(end, self._config.max_steps or UNPLANNED)

    def _evaluations(self) -> int:
        """Return the number of evaluations: fewer than usual if they would take much of the budget."""
        return affordable_evaluations(self._budget.seconds, self._plan.evaluation_s)

    def _end_in_time(self, step: int) -> int:
        """Return the last step that the remaining time allows, at least the next one.

        More steps mean more evaluations before the last one. If one more would take more time than remains after
        it, it is postponed to the end; if `eval_every_steps` is set, the run ends with the one before.
        """
        plan = self._plan
        left = self._budget.seconds - plan.spent_s - plan.end_s
        begun = step // plan.eval_every
        # A lower bound of the evaluations before the last one: counting from 0 would take long at each step.
        cycle_s = plan.evaluation_s + plan.eval_every * plan.step_s
        between = max(0, int((left + (step - begun * plan.eval_every) * plan.step_s) / cycle_s) - 3)
        while True:
            end, end_with_one_more = (
                step + max(1, round((left - number * plan.evaluation_s) / plan.step_s))
                for number in (between + 1, between + 2)
            )
            latest = (begun + between + 1) * plan.eval_every
            if end <= latest:
                return end
            if end_with_one_more <= latest:
                if between or self._config.eval_every_steps:
                    return latest
                plan.eval_every = end
                return end
            between += 1

    def _set(self, state: Any) -> None:
        state.max_steps = self._plan.end
        state.eval_steps = state.save_steps = self._plan.eval_every or self._plan.unfitted_eval_every
        state.logging_steps = self._config.log_every_steps or default_log_interval(self._plan.end)
        self._on_step_counts(StepCounts(state.max_steps, state.logging_steps, state.eval_steps))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the evaluation; the next step's time starts after it."""
        self._step_began = self._read_clock()
        self._plan.evaluation_s = self._step_began - self._step_ended

    on_save = on_evaluate  # the time of saving counts with the evaluation before it
