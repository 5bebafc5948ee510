"""A training with a budget ends on time, with its schedule walked through to the end."""

from types import SimpleNamespace
from typing import Any

import pytest

from dialogkit.config.train import TrainConfig
from dialogkit.engine import budget as budget_module
from dialogkit.engine.arguments import UNPLANNED, StepCounts, resolve_schedule
from dialogkit.engine.budget import Budget, BudgetCallback, BudgetPlan
from dialogkit.engine.schedule import StepSchedule
from dialogkit.errors import ConfigError
from tests.conftest import typed


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Training:
    """Walks the callback through the events of HF's loop while a clock is moved on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float, **settings: Any) -> None:
        self.clock = Clock()
        monkeypatch.setattr(budget_module, "time", self.clock)
        self.config = TrainConfig(budget_s=seconds, **settings)
        budget = Budget(seconds, started=self.clock.now, evaluation_s=2.0, end_s=3.0)
        self.clock.now += 5.0  # imports, data, the model
        self.plan = BudgetPlan(self.config.schedule, self.config.warmup_fraction, budget)
        self.planned: list[StepCounts] = []
        self.callback = BudgetCallback(self.config, budget, self.plan, self.planned.append)
        self.state = SimpleNamespace(
            global_step=0, max_steps=UNPLANNED, eval_steps=UNPLANNED, save_steps=UNPLANNED, logging_steps=UNPLANNED
        )
        self.factors: list[float] = []
        self.evaluated: list[int] = []

    def begin(self) -> None:
        self.callback.on_train_begin(None, self.state, None)

    def run(self, step_s: Any, *, evaluation_s: float = 2.0, until: int | None = None) -> None:
        while self.state.global_step < min(self.state.max_steps, until or UNPLANNED):
            self.factors.append(self.plan(self.state.global_step))
            self.state.global_step += 1
            self.clock.now += step_s(self.state.global_step)
            self.callback.on_step_end(None, self.state, None)
            if (
                self.state.global_step % self.state.eval_steps == 0
                or self.state.global_step == self.state.max_steps
            ):
                self.evaluated.append(self.state.global_step)
                self.clock.now += evaluation_s
                self.callback.on_evaluate(None, self.state, None)
                self.callback.on_save(None, self.state, None)

    def whole_s(self) -> float:
        return self.clock.now - 100.0 + 3.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(
    "step_s",
    [
        lambda step: 0.1,
        lambda step: 5.0 if step == 1 else 0.1,
        lambda step: 0.1 if step < 300 else 0.25,
        lambda step: 0.25 if step < 300 else 0.1,
        lambda step: 0.05 + 0.1 * (step % 2),
    ],
)
def test_a_run_ends_within_five_percent_of_its_budget(
    monkeypatch: pytest.MonkeyPatch, step_s: Any, schedule: str
) -> None:
    training = Training(monkeypatch, 200.0, schedule=schedule)
    training.begin()
    training.run(step_s)
    assert training.whole_s() == pytest.approx(200.0, rel=0.05)
    assert 3 <= len(training.evaluated) <= 8
    assert training.evaluated[-1] == training.state.max_steps
    assert max(training.factors) == pytest.approx(1.0, abs=0.01)
    if schedule != "constant":
        assert training.factors[-1] < 0.02
    rises = [abs(b - a) for a, b in zip(training.factors, training.factors[1:], strict=False)]
    assert max(rises) < 0.05, "the learning rate jumps"
    assert min(training.factors) > 0, "a step learns nothing"


def test_an_evaluation_that_takes_long_is_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, 100.0)
    training.plan.evaluation_s = 14.0
    training.begin()
    training.run(lambda step: 0.1, evaluation_s=14.0)
    assert len(training.evaluated) == 1
    assert training.whole_s() == pytest.approx(100.0, rel=0.05)


def test_a_run_that_becomes_faster_ends_on_time_where_one_more_evaluation_would_take_more_than_it_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(monkeypatch, 100.0)
    training.plan.evaluation_s = 14.0
    training.begin()
    training.run(lambda step: 0.11 if step < 60 else 0.1, evaluation_s=14.0)
    assert len(training.evaluated) == 1
    assert training.whole_s() == pytest.approx(100.0, rel=0.05)


def test_a_number_of_steps_that_comes_first_ends_it_with_the_schedule_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(monkeypatch, 1000.0, max_steps=200)
    training.state.max_steps = 200
    training.begin()
    training.run(lambda step: 1.0)
    assert training.state.global_step == training.evaluated[-1] == 200
    assert training.factors[-1] < 0.02


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12, 20, 50, 1000])
def test_a_budget_that_does_not_bind_has_the_learning_rates_and_evaluations_of_a_run_without_one(
    monkeypatch: pytest.MonkeyPatch, steps: int, schedule: str
) -> None:
    training = Training(monkeypatch, 3600.0, schedule=schedule, max_steps=steps)
    training.begin()
    # The first step is slow, the others vary: more or less than what makes the speed believed.
    training.run(lambda step: 9.0 if step == 1 else 0.3 + 0.2 * (step % 3))
    plain = training.config.model_copy(update={"budget_s": None})
    assert training.factors == pytest.approx(factors_without_budget(plain, steps), abs=1e-9)
    expected = resolve_schedule(plain, 10**6)
    assert training.planned[0] == expected
    assert training.state.global_step == training.state.max_steps == steps
    assert training.evaluated == [*range(expected.eval_every_steps, steps, expected.eval_every_steps), steps]


def factors_without_budget(config: TrainConfig, steps: int) -> list[float]:
    return list(map(StepSchedule(config, steps), range(steps)))


@pytest.mark.parametrize("seconds", [60.0, 100.0, 200.0, 600.0])
@pytest.mark.parametrize("max_steps", [100, 1000, 10_000])
def test_more_steps_than_fit_end_on_time_with_the_schedule_at_its_end(
    monkeypatch: pytest.MonkeyPatch, seconds: float, max_steps: int
) -> None:
    training = Training(monkeypatch, seconds, max_steps=max_steps)
    training.begin()
    training.run(lambda step: seconds / 80)
    assert training.whole_s() == pytest.approx(seconds, rel=0.05)
    assert training.planned[0].total_steps == max_steps
    assert training.factors[-1] < 0.06
    assert max(training.factors) > 0.9
    assert training.evaluated[-1] == training.state.max_steps


@pytest.mark.parametrize("max_steps", [None, 4, 50])
@pytest.mark.parametrize("fitting", [2, 3, 4, 5, 8, 12])
def test_of_few_steps_that_fit_most_are_learned_from(
    monkeypatch: pytest.MonkeyPatch, fitting: int, max_steps: int | None
) -> None:
    training = Training(monkeypatch, 1000.0, max_steps=max_steps)
    training.begin()
    step_s = (1000.0 - 5.0 - 3.0) / (fitting + 0.4)
    training.run(lambda step: step_s)
    steps = training.state.global_step
    assert steps == min(fitting, max_steps or fitting)
    plain = factors_without_budget(TrainConfig(max_steps=steps), steps)
    # At most the first two steps go into measuring the speed.
    assert sum(training.factors) >= sum(sorted(plain)[:-2])
    assert sum(factor > 0.1 for factor in training.factors) >= max(1, steps - 2)
    assert training.factors[-1] == min(training.factors[2:], default=training.factors[-1]) < 0.7


def test_a_run_that_continues_before_its_speed_is_known_has_the_same_learning_rates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Training(monkeypatch, 3600.0, max_steps=12)
    whole.begin()
    whole.run(lambda step: 0.3)
    first = Training(monkeypatch, 3600.0, max_steps=12)
    first.begin()
    first.run(lambda step: 0.3, until=5)
    again = Training(monkeypatch, 3600.0, max_steps=12)
    again.plan.__dict__.update(first.plan.__dict__)  # as torch restores it from a checkpoint
    again.state.global_step = 5
    again.begin()
    again.run(lambda step: 0.3)
    assert first.factors + again.factors == whole.factors
    assert first.evaluated + again.evaluated == whole.evaluated


@pytest.mark.parametrize("fitted", [True, False])
def test_a_run_begun_by_an_older_version_continues(monkeypatch: pytest.MonkeyPatch, fitted: bool) -> None:
    again = Training(monkeypatch, 3600.0, max_steps=40)
    again.plan.from_zero = True  # as of any plan that is restored, unless its checkpoint says otherwise
    older = {  # what those kept of a plan at step 10
        "schedule": "linear", "warmup_fraction": 0.1, "step_s": 1.0, "measured": 9, "evaluation_s": 2.0,
        "end_s": 3.0, "spent_s": 60.0,
    } | (
        {"since": 10, "reached": 0.25, "end": 40, "eval_every": 10}
        if fitted
        else {"since": 10, "reached": 0.01, "end": UNPLANNED, "eval_every": 0}
    )  # fmt: skip
    again.plan.__dict__.update(older)
    again.state.global_step = 10
    again.begin()
    again.run(lambda step: 1.0)
    assert again.state.global_step == 40
    assert again.evaluated == [20, 30, 40]
    assert again.factors[0] == pytest.approx((1 - 0.25) / 0.9 if fitted else 0.1)
    assert again.factors[-1] < 0.05


def test_the_distance_of_evaluations_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(monkeypatch, 100.0, eval_every_steps=100, log_every_steps=7)
    training.begin()
    training.run(lambda step: 0.1)
    assert training.evaluated[:3] == [100, 200, 300]
    assert training.state.logging_steps == 7
    assert training.whole_s() == pytest.approx(100.0, rel=0.05)


def test_a_run_that_continues_has_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Training(monkeypatch, 200.0)
    first.begin()
    first.run(lambda step: 0.1, until=700)
    again = Training(monkeypatch, 200.0)
    again.plan.__dict__.update(first.plan.__dict__)  # as torch restores it from a checkpoint
    again.state.global_step = 700
    again.begin()
    assert again.state.max_steps == first.state.max_steps
    again.run(lambda step: 0.1)
    assert first.plan.spent_s + again.whole_s() == pytest.approx(200.0, rel=0.05)
    assert again.factors[0] == pytest.approx(first.plan(700))
    assert again.factors[-1] < 0.02


def test_a_budget_that_leaves_no_time_to_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a budget of 9 s is too short to train") as caught:
        Training(monkeypatch, 9.0).begin()
    assert typed(caught.value) == "--budget 20s"
