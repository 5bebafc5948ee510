"""Floating-point operations of training, and the peak of a device."""

PEAK_BF16 = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "A10G": 7.0e13,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
}
"""Dense bf16 operations per second by a part of the device's name, from the vendors' data sheets (SXM)."""


def flops_per_token(
    *,
    parameters: int,
    width: int,
    layers: int,
    vocabulary: int,
    supervised_share: float,
    context: float,
    adapter: int = 0,
) -> float:
    """Return the operations to train on one token.

    6 for each parameter used (forward 2, backward 4), with the output layer only at supervised tokens, and 6 L D
    for each previous token in attention (causal: half of 12 L D T in Chowdhery et al. 2022, appendix B).

    Args:
        parameters: without embeddings.
        width: of the model.
        layers: number of blocks.
        vocabulary: entries of the output layer.
        supervised_share: fraction of the tokens that have a loss.
        context: mean length of the dialog that a token is in.
        adapter: trained parameters of an adapter; the frozen weights then need no gradients, which are a third of
            their operations. 0: all weights are trained.
    """
    each = 4 if adapter else 6
    head = width * vocabulary * supervised_share
    return each * (parameters + head) + 6 * adapter + 6 * layers * width * context


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak operations per second of a device; None if unknown."""
    if precision != "bf16":
        return None
    return next((peak for part, peak in PEAK_BF16.items() if part in device_name), None)
