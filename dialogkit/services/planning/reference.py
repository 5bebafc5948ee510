"""Forecasts what a model learns from runs that were measured and ship with the package."""

import json
import math
from bisect import bisect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from dialogkit.config.base import Result
from dialogkit.config.run import RunConfig
from dialogkit.services.training.loss_bands import affecting_loss

RUNS = Path(__file__).with_name("reference_runs.json")
"""Written by `benchmarks/reference_runs.py`."""

_LENGTHS = ("train.epochs", "train.max_steps", "train.budget_s")
"""Settings of the length of a run, which is what the runs of a reference differ in."""


class ReferenceReply(Result):
    """A reply of a finished reference run to a held-out prompt."""

    prompt: str
    reply: str
    answer: str
    """The true answer."""


class ReferenceRun(Result):
    """A whole run, with the decay of its learning rate, and the model at its end."""

    steps: int
    dialogs: int
    """Dialogs seen: steps times the batch size."""
    tokens: int
    supervised_tokens: int
    bits_per_byte: float
    """Of the held-out dialogs."""
    right_answers: float | None = None
    """Fraction of the checked questions that were answered right; None for a dataset without checks."""
    reply: ReferenceReply | None = None
    revision: str
    """That of the dataset, as in the record of a run."""
    seed: int
    version: str
    """The version of the package that made the run."""
    date: str


class Forecast(Result):
    """What a model is expected to be after it has seen some dialogs."""

    bits_per_byte: float
    right_answers: float | None
    """None for a dataset without checks."""
    range: Literal["within", "below", "above"]
    """Whether the dialogs are within those of the reference runs, fewer or more; the figures are then of the
    nearest run: a run of fewer dialogs is worse, one of more is as good or better."""
    nearest: ReferenceRun


class Reference(BaseModel):
    """The reference runs of a model with a preset."""

    settings: dict[str, Any]
    """The settings that affect what is learned, by dotted names, without the length."""
    runs: list[ReferenceRun] = Field(min_length=1)
    """In the order of their lengths."""

    def forecast(self, dialogs: int) -> Forecast:
        """Return what the model is expected to be after this many dialogs.

        Runs of several lengths are compared at their ends, since each has decayed its learning rate to zero by
        then. Between two of them, the figures follow the logarithm of the dialogs.
        """
        seen = [run.dialogs for run in self.runs]
        at = bisect(seen, dialogs)
        if at == 0 or dialogs >= seen[-1]:
            run = self.runs[0 if at == 0 else -1]
            range_: Literal["within", "below", "above"] = "within"
            if dialogs != run.dialogs:
                range_ = "below" if at == 0 else "above"
            return Forecast(
                bits_per_byte=run.bits_per_byte, right_answers=run.right_answers, range=range_, nearest=run
            )
        shorter, longer = self.runs[at - 1], self.runs[at]
        part = math.log(dialogs / shorter.dialogs) / math.log(longer.dialogs / shorter.dialogs)
        right = None
        if shorter.right_answers is not None and longer.right_answers is not None:
            right = _between(shorter.right_answers, longer.right_answers, part)
        return Forecast(
            bits_per_byte=_between(shorter.bits_per_byte, longer.bits_per_byte, part),
            right_answers=right,
            range="within",
            nearest=longer if part > 0.5 else shorter,
        )

    def dialogs_for(self, share: float) -> int | None:
        """Return the dialogs after which a share of the questions is answered right; None if it is unknown."""
        before: ReferenceRun | None = None
        for run in self.runs:
            if (right := run.right_answers) is not None and right >= share:
                if before is None or (reached := before.right_answers) is None:
                    return run.dialogs
                part = (share - reached) / (right - reached)
                return int(before.dialogs * (run.dialogs / before.dialogs) ** part) + 1
            before = run
        return None


def _between(first: float, second: float, part: float) -> float:
    return first + (second - first) * part


@cache
def references() -> dict[str, Reference]:
    """Return the references that ship, by model and preset: `custom-nano/talk`."""
    return read_references(RUNS)


def read_references(path: Path) -> dict[str, Reference]:
    """Return the references of a file; none if there is no file."""
    if not path.exists():
        return {}
    return {name: Reference.model_validate(found) for name, found in json.loads(path.read_bytes()).items()}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that affect what is learned, by dotted names, without the length of the run."""
    return {name: value for name, value in affecting_loss(config).items() if name not in _LENGTHS}


def reference_of(config: RunConfig, known: Mapping[str, Reference] | None = None) -> Reference | None:
    """Return the reference of a training; None if there is none of exactly these settings."""
    found = (references() if known is None else known).get(f"{config.model.name}/{config.preset}")
    return found if found is not None and found.settings == settings_of(config) else None
