"""Histograms of weights and gradients, taken just before the optimizer steps.

W&B's own `watch` counts micro-batches and not steps, sees gradients before they are accumulated, runs in forward
hooks that break compiled graphs, and copies every tensor. These are of the gradients that the optimizer uses,
touch no random state, and read at most 4,096 elements of a tensor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

SAMPLE = 4_096
BINS = 64


class Histogram(NamedTuple):
    """Counts [BINS] between edges [BINS + 1]."""

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]


HistogramSink = Callable[[int, dict[str, Histogram]], None]
"""Receives the optimizer step and histograms by name (`gradients/...`, `weights/...`)."""


def histogram(tensor: torch.Tensor) -> Histogram | None:
    """Return the histogram of a tensor's finite values, or of evenly spaced ones of many; None without any."""
    flat = tensor.detach().reshape(-1)
    values = flat[:: max(1, -(-flat.numel() // SAMPLE))].cpu().double().numpy()
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    # Values that hardly differ, such as those of a norm at the start, leave no room for bins between them.
    least = 1e-3 * max(abs(low), abs(high), 1e-30)
    if high - low < least:
        low, high = low - least, high + least
    return Histogram(*np.histogram(values, bins=BINS, range=(low, high)))


class HistogramCallback(TrainerCallback):
    """Sends histograms of all trained parameters to a sink every N optimizer steps."""

    def __init__(self, sink: HistogramSink, *, every: int) -> None:
        self._sink = sink
        self._every = every

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Take histograms at the first step and at every N-th."""
        step = state.global_step + 1
        if not state.is_world_process_zero or (step != 1 and step % self._every):
            return
        taken: dict[str, Histogram] = {}
        for name, parameter in model.named_parameters():
            for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
                if tensor is not None and parameter.requires_grad and (found := histogram(tensor)) is not None:
                    taken[f"{kind}/{name}"] = found
        self._sink(step, taken)
