"""What a training tells while it runs. The command line draws it; a notebook logs it."""

import logging
from collections.abc import Mapping
from typing import Protocol

logger = logging.getLogger("dialogkit")


class TrainReporter(Protocol):
    """Takes the events of a training in their order."""

    def header(self, facts: Mapping[str, str]) -> None:
        """Facts about the run, once before the first step."""

    def note(self, text: str) -> None:
        """One line that is worth knowing."""

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """A logged point: `train/...`, `perf/...` or `eval/...` metrics."""


class LogReporter:
    """Writes to the logger `dialogkit` at level INFO."""

    def header(self, facts: Mapping[str, str]) -> None:
        """Log the facts in one line."""
        logger.info("; ".join(f"{name} {value}" for name, value in facts.items()))

    def note(self, text: str) -> None:
        """Log the line."""
        logger.info(text)

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Log the point."""
        logger.info("step %d/%d %s", step, total, {k: round(v, 4) for k, v in metrics.items()})
