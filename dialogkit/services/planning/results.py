"""The result of a plan: the quality to expect from each model in the time, and which one to train."""

from collections.abc import Iterable
from typing import Any

from pydantic import Field, InstanceOf

from dialogkit.config.base import Result
from dialogkit.hints import Call
from dialogkit.services.planning.reference import Forecast


class PlanRow(Result):
    """The quality to expect from one model in the time."""

    model: str
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    tokens_per_s: float | None = None
    """Measured in a few steps on this machine; None if the model does not fit into its memory."""
    evaluation_s: float | None = None
    """Seconds of an evaluation with its replies."""
    steps: int = 0
    """Steps for which the time is enough; 0 if it is too short to train."""
    dialogs: int = 0
    """Dialogs that they see."""
    tokens: int = 0
    """Tokens of these dialogs, about."""
    epochs: float = 0.0
    """Passes over the training dialogs."""
    forecast: Forecast | None = None
    """None without reference runs of these settings."""
    half_right_s: float | None = None
    """Seconds on this machine after which half of the questions are answered right; None if it is unknown."""
    problem: str | None = None
    """Why the model cannot be trained here."""


class PlanResult(Result):
    """The quality to expect from each model in the time, and the one to train."""

    dataset: str
    preset: str
    budget_s: float
    device: str
    train_dialogs: int
    rows: list[PlanRow]
    chosen: str
    """The model to train."""
    remarks: list[str]
    training: InstanceOf[Call] = Field(exclude=True)
    """The call that trains the chosen model."""

    @property
    def row(self) -> PlanRow:
        """The row of the chosen model."""
        return next(row for row in self.rows if row.model == self.chosen)

    def facts(self) -> Iterable[tuple[str, Any]]:
        """Return the chosen model and its forecast."""
        yield "chosen", self.chosen
        yield "steps", self.row.steps
        if (forecast := self.row.forecast) is not None:
            yield "bits_per_byte", forecast.bits_per_byte
            yield "right_answers", forecast.right_answers
        yield from (("dataset", self.dataset), ("budget_s", self.budget_s))
