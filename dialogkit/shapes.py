"""Lengths of batches that recur, for matrix products that are compiled for each shape."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def common_length(length: int) -> int:
    """Round a length up to a common one: multiples of 64, and from 512 on eight to each power of two.

    oneDNN compiles code for every new shape of a product, which takes longer than a product of short rows. Rows
    padded to few different lengths find that code in its cache.
    """
    step = max(64, (1 << length.bit_length()) // 16)
    return -(-length // step) * step


def pad_to_common_length(tokens: "torch.Tensor", dim: int) -> "torch.Tensor":
    """Return a batch with zeros after its tokens, up to a common length of this dimension."""
    from torch.nn.functional import pad

    missing = common_length(tokens.shape[dim]) - tokens.shape[dim]
    after = [0, 0] * (tokens.ndim - 1 - dim % tokens.ndim) + [0, missing]
    return pad(tokens, after) if missing else tokens
