"""The factor of the learning rate at each step of a run whose number of steps is known."""

import math

from dialogkit.config.train import TrainConfig


def count_warmup_steps(fraction: float, total_steps: int) -> int:
    """Return the number of warm-up steps of a run."""
    return round(fraction * total_steps)


def decay_factor(schedule: str, done: float, length: float) -> float:
    """Return the factor of the learning rate after `done` of the `length` of the decay, in any unit."""
    length = max(length, 1e-9)
    match schedule:
        case "linear":
            return max(0.0, (length - done) / length)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * (done / length)))
        case _:
            return 1.0


class StepSchedule:
    """Warm-up over W steps, 1/W at the first and 1 at the last, then decay towards 0 after the last step.

    torch's `LambdaLR` keeps the attributes in `__dict__` with a checkpoint and restores them. Only `from_zero` is
    there: the other settings are those of the run.
    """

    __slots__ = ("__dict__", "_schedule", "_total", "_warmup")

    def __init__(self, config: TrainConfig, total_steps: int, *, from_zero: bool = False) -> None:
        self._schedule, self._total = config.schedule, total_steps
        self._warmup = count_warmup_steps(config.warmup_fraction, total_steps)
        self.from_zero = from_zero
        """Whether the first step has a factor of 0, as in a run that dialogkit 0.2.0 or an older version began."""

    def __call__(self, step: int) -> float:
        """Return the factor after `step` completed steps."""
        if step < self._warmup:
            return (step if self.from_zero else step + 1) / self._warmup
        return decay_factor(self._schedule, step - self._warmup, self._total - self._warmup)
