"""Compare the loss of a run with measured bands for its model and preset."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dialogkit.config.load import flatten
from dialogkit.config.run import RunConfig

CURVES = Path(__file__).with_name("reference_curves.json")
"""Written by `benchmarks/reference_curves.py`."""

WINDOW_STEPS = 10
"""Steps whose losses are averaged: the loss of a single step of two dialogs is too noisy."""

_SAME = ("model.", "data.", "train.batch_size", "train.budget_s", "train.epochs", "train.max_steps")
"""If one of these differs, a different loss is expected."""
_WITHOUT_EFFECT = (
    *("accumulation", "activation_checkpointing", "eval_", "every_steps", "fit_batch", "keep", "max_bad_rows"),
    *("merge", "micro_batch", "model.name", "patience", "seed"),
    *("lora_", "shuffle_dialogs"),  # no band is of an adapter or a stream
)


class Band(BaseModel):
    """The range of the training loss of a model and preset, over several seeds."""

    settings: dict[str, Any]
    """The settings that affect the loss, by dotted names."""
    steps: list[int]
    """Last step of each window."""
    low: list[float]
    high: list[float]
    """Nats per token, with a margin of four standard deviations and 0.2 nats."""


@cache
def reference_curves() -> dict[str, Band]:
    """Return the bands that ship, by model and preset."""
    if not CURVES.exists():
        return {}
    return {name: Band.model_validate(band) for name, band in json.loads(CURVES.read_bytes()).items()}


def affecting_loss(config: RunConfig) -> dict[str, Any]:
    """Return the settings that affect the loss, by dotted names."""
    sections = config.model_dump(mode="json", include={"model", "data", "train"})
    return {name: value for name, value in flatten(sections) if not any(part in name for part in _WITHOUT_EFFECT)}


class LossMonitor:
    """Compares the losses of a run with the band of its model and preset, and warns once if they leave it."""

    def __init__(self, config: RunConfig, bands: Mapping[str, Band] | None = None) -> None:
        self._name = f"{config.model.name}, preset {config.preset}"
        self._band = (reference_curves() if bands is None else bands).get(f"{config.model.name}/{config.preset}")
        self._losses: list[float] = []
        self._differing: dict[str, str] = {}
        if self._band is not None:
            chosen, usual = affecting_loss(config), self._band.settings
            self._differing = {
                name: f"{name} is {chosen.get(name)} instead of {usual.get(name)}"
                for name in sorted(chosen.keys() | usual.keys())
                if chosen.get(name) != usual.get(name)
            }
            if any(name.startswith(_SAME) for name in self._differing):
                self._band = None

    def point(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Check a logged point; return a warning if the loss has left the band."""
        if self._band is None or (loss := metrics.get("train/loss")) is None:
            return None
        self._losses = [*self._losses[1 - WINDOW_STEPS :], loss]
        if step not in self._band.steps or len(self._losses) < WINDOW_STEPS:
            return None
        at, mean = self._band.steps.index(step), sum(self._losses) / WINDOW_STEPS
        low, high = self._band.low[at], self._band.high[at]
        if low <= mean <= high:
            return None
        self._band = None
        side = "above" if mean > high else "below"
        cause = "; ".join(self._differing.values()) or "the data or the machine (no setting differs)"
        return (
            f"step {step}: a loss of {mean:.2f} is {side} the usual {low:.2f} to {high:.2f} of {self._name}; "
            f"likely cause: {cause}"
        )
