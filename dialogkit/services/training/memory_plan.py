"""How much memory a training step takes on the CPU, and how to split a batch so that it fits."""

from collections.abc import Callable

_LAYER_BYTES, _WIDTH_BYTES = 55, 224
"""Bytes kept for the backward pass: for each token, layer and unit of width, and for each token and unit of width.

Fitted to the peak memory of custom-nano, -tiny and -small in bf16 with 1,000 to 6,000 tokens (within 10%).
"""

_OPTIMIZER_BYTES = 12
"""A parameter's gradient and Adam's two moments, in float32; the weights themselves are there already."""


def step_bytes(*, parameters: int, layers: int, width: int, tokens: int, precision: str) -> int:
    """Return about how many bytes a training takes beyond the model itself.

    Args:
        parameters: number of weights.
        layers: number of layers.
        width: width of the hidden states.
        tokens: tokens of the largest part of a batch.
        precision: bf16 or fp32; the latter keeps twice as much.
    """
    kept = tokens * width * (_LAYER_BYTES * layers + _WIDTH_BYTES)
    return _OPTIMIZER_BYTES * parameters + kept * (1 if precision == "bf16" else 2)


def parts_that_fit(batch_size: int, begin: int, fits: Callable[[int], bool]) -> int | None:
    """Return the fewest equal parts of a batch, from `begin` on, that fit; None if single dialogs do not."""
    return next((n for n in range(begin, batch_size + 1) if batch_size % n == 0 and fits(n)), None)
