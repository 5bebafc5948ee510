"""Makes a training end on time: its steps, warm-up and decay are fitted to the speed that it has."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from dialogkit.config.train import TrainConfig
from dialogkit.distributed import process_group
from dialogkit.engine.arguments import EVALUATIONS_PER_RUN, UNPLANNED, Schedule, points_apart
from dialogkit.errors import ConfigError
from dialogkit.hints import Change

MEASURED_STEPS = 3
NEWEST_STEP_WEIGHT = 0.02
"""Least weight of the newest step in the mean: a machine that slows down is noticed within about 50 steps."""
EVALUATED_SHARE = 0.15
"""Part of the time that evaluations may take."""
MEASURED_SHARE = 0.02
"""Part of the time after which the speed is believed, if there were enough steps."""
FEW_STEPS = 5
"""If the first step alone shows that no more than this many fit, none is spent on measuring the speed."""


@dataclass(frozen=True)
class Budget:
    """The time that a whole run may take, and what of it does not go into training steps."""

    seconds: float
    started: float
    """`time.perf_counter()` at which this process began to work on the run."""
    evaluation_s: float = 0.0
    """Expected seconds of an evaluation in the midst of the training, with its replies."""
    end_s: float = 0.0
    """Expected seconds from the last training step to the end of the run."""


class BudgetPlan:
    """The factor of the learning rate at each step, where the number of steps is fitted while the training runs.

    The schedule is walked through by `progress`, from 0 to 1. Between two fits it grows evenly; a fit at a step
    keeps what was reached there and spreads the rest over the steps that are left, so the factor never jumps.
    Everything here is a plain number or name: torch's `LambdaLR` keeps it with a checkpoint and restores it.
    """

    def __init__(self, schedule: str, warmup_fraction: float, budget: Budget) -> None:
        self.schedule, self.warmup_fraction = schedule, warmup_fraction
        self.since, self.reached, self.end = 0, 0.0, UNPLANNED
        self.eval_every = 0
        """Steps between evaluations; 0 before the first fit."""
        self.unfitted_eval_every = 0
        """Steps between evaluations before the first fit, where `max_steps` says how many steps there are."""
        self.step_s, self.measured = 0.0, 0
        self.evaluation_s, self.end_s = budget.evaluation_s, budget.end_s
        self.spent_s = 0.0
        """Seconds since the run began, those of earlier processes included."""

    def progress(self, step: int) -> float:
        """Return the part of the schedule that is behind at a step."""
        share = (step - self.since) / max(1, self.end - self.since)
        return min(1.0, self.reached + (1.0 - self.reached) * share)

    def begin(self, step: int, end: int) -> None:
        """Plan a known number of steps; from step 0 on, this is the schedule of a run without a budget."""
        self.warmup_fraction = round(self.warmup_fraction * end) / end
        self.fit(step, end)

    def fit(self, step: int, end: int) -> None:
        """Spread what is left of the schedule over the steps up to `end`."""
        if end != self.end:
            self.since, self.reached, self.end = step, self.progress(step), end

    def __call__(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        progress = self.progress(step)
        if progress < self.warmup_fraction:
            return progress / self.warmup_fraction
        fallen = (progress - self.warmup_fraction) / max(1e-9, 1.0 - self.warmup_fraction)
        match self.schedule:
            case "linear":
                return 1.0 - fallen
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * fallen))
            case _:
                return 1.0


class BudgetCallback(TrainerCallback):
    """Fits the steps to the time that is left: once when the speed is known, then after every step."""

    def __init__(
        self, config: TrainConfig, budget: Budget, plan: BudgetPlan, planned: Callable[[Schedule], None]
    ) -> None:
        self._config, self._budget, self._plan, self._planned = config, budget, plan, planned
        self._spent_before = 0.0
        self._began = self._step_began = self._step_ended = 0.0
        self._first = True
        if config.max_steps:  # before the scheduler takes the rate of the first step from it
            plan.begin(0, config.max_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; a training that goes on keeps its plan. Raises: ConfigError if no time is left."""
        plan, self._began = self._plan, time.perf_counter()
        self._step_began = self._step_ended = self._began
        self._spent_before = plan.spent_s
        self._look_at_clock()
        needed = plan.spent_s + plan.evaluation_s + plan.end_s
        if plan.eval_every:
            self._set(state)
            return
        if needed >= self._budget.seconds and not state.global_step and process_group.is_main_process():
            raise ConfigError(
                f"a budget of {self._budget.seconds:,.0f} s leaves no time to train: "
                f"start, evaluations and saving take {needed:,.0f} s",
                hint=Change({"train.budget_s": math.ceil(needed / 5) * 10}),
            )
        if self._config.max_steps:
            if plan.end == UNPLANNED:  # an older version left it open while it measured
                plan.begin(state.global_step, self._config.max_steps)
            plan.unfitted_eval_every = plan.unfitted_eval_every or self._eval_every(plan.end)
            self._set(state)

    def _look_at_clock(self) -> float:
        now = time.perf_counter()
        self._plan.spent_s = self._spent_before + now - self._budget.started
        return now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the step and fit the rest; of several processes the first one's clock decides for all."""
        if process_group.is_main_process():
            self._fit_to_clock(state)
        if process_group.world_size() > 1:
            vars(self._plan).update(process_group.broadcast(vars(self._plan)))
            if not process_group.is_main_process() and self._plan.eval_every:
                self._set(state)

    def _fit_to_clock(self, state: Any) -> None:
        plan, step, now = self._plan, state.global_step, self._look_at_clock()
        took = now - self._step_began
        self._step_began = self._step_ended = now
        if self._first:  # it prepares what later ones find
            self._first, self._began = False, now
        else:
            plan.measured += 1
            plan.step_s += (took - plan.step_s) * max(1 / plan.measured, NEWEST_STEP_WEIGHT)
        plan.step_s = plan.step_s or took
        if plan.eval_every:
            if step < plan.end:
                plan.fit(step, self._no_more_than_allowed(self._end_in_time(step)))
                self._set(state)
            return
        total, known = self._total(step), plan.end
        few = step == 1 and total < known and total <= FEW_STEPS
        enough = plan.measured >= MEASURED_STEPS and now - self._began >= MEASURED_SHARE * self._budget.seconds
        if few or enough or plan.spent_s + plan.evaluation_s + plan.end_s >= self._budget.seconds:
            plan.eval_every = plan.unfitted_eval_every if total == known else self._eval_every(total)
            if few:
                plan.begin(0, total)
            else:
                plan.fit(step, total)
            self._set(state)
        elif total < known:  # until the speed is known, the schedule follows the clock
            plan.since, plan.reached = step, max(plan.progress(step), (now - self._began) / self._budget.seconds)

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
        """Return how many evaluations are made: fewer than usual where they would take much of the time."""
        affordable = EVALUATED_SHARE * self._budget.seconds / max(self._plan.evaluation_s, 1e-9)
        return max(1, min(EVALUATIONS_PER_RUN, int(affordable)))

    def _end_in_time(self, step: int) -> int:
        """Return the last step that the time allows, at least the next one.

        The more steps, the more evaluations come before the last one. Where one more would take more time than is
        left beyond it, it is put off to the end, or if its place was asked for, the training ends with it.
        """
        plan = self._plan
        left = self._budget.seconds - plan.spent_s - plan.end_s
        begun = step // plan.eval_every
        # About so many evaluations fit before the last one; counting up to them would take long at each step.
        whole_s = plan.evaluation_s + plan.eval_every * plan.step_s
        between = max(0, int((left + (step - begun * plan.eval_every) * plan.step_s) / whole_s) - 3)
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
        state.logging_steps = self._config.log_every_steps or points_apart(self._plan.end)
        self._planned(Schedule(state.max_steps, state.logging_steps, state.eval_steps))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the evaluation; the time of the next step begins after it."""
        self._step_began = self._look_at_clock()
        self._plan.evaluation_s = self._step_began - self._step_ended

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the time of saving to that of the evaluation before it."""
        self.on_evaluate(args, state, control)
