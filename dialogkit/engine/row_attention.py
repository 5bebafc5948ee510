"""Attention inside each dialog in bf16 on a CPU, by products of matrices over dialogs of similar length.

The backward pass of torch's kernel for CPUs takes three to five times as long as these products.

Shapes: T tokens of all dialogs, H heads, D width of a head; a group of B dialogs in rows of L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

_MOST_SCORES = 2**24
"""Scores that a layer keeps for its backward pass; in bf16 they take 32 MB."""


def takes_rows(query: torch.Tensor, key: torch.Tensor, dialog_lengths: Sequence[int]) -> bool:
    """Return whether `attention_in_rows` is the faster way: in bf16 on a CPU, unless long dialogs need the memory.

    `query` is [1, H, T, D]; keys with fewer heads than queries are left to torch's kernel.
    """
    if query.device.type != "cpu" or key.shape[1] != query.shape[1] or product_dtype(query) != torch.bfloat16:
        return False
    return query.shape[1] * sum(_row_length(length) ** 2 for length in dialog_lengths) <= _MOST_SCORES


# Not part of a compiled model, which would be compiled again for the lengths of every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention_in_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dialog_lengths: Sequence[int],
    scaling: float | None,
) -> torch.Tensor:
    """Return causal attention inside each dialog, [1, T, H, D] in bf16; zeros for tokens after the last dialog.

    Scores and their softmax are in float32, as in torch's kernel. Query, key and value are [1, H, T, D].
    """
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    groups = _groups(tuple(dialog_lengths), query.shape[1], query.shape[2])
    with torch.autocast("cpu", enabled=False):
        attended: torch.Tensor = _AttentionInRows.apply(query, key, value, groups, scale)
    return attended


@dataclass(frozen=True)
class _Group:
    """Dialogs that are computed together."""

    index: torch.Tensor
    """The row of each of its tokens and heads among those of the batch, [B * H * L]; padding has the last one."""
    length: int


@lru_cache(maxsize=1)  # all layers share those of a batch
def _groups(lengths: tuple[int, ...], heads: int, tokens: int) -> tuple[_Group, ...]:
    starts: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for length in lengths:
        starts.setdefault(_row_length(length), []).append((start, length))
        start += length
    groups = []
    for row, dialogs in starts.items():
        begins_B, lengths_B = torch.tensor(dialogs).T
        within_L, head_H1 = torch.arange(row), torch.arange(heads)[:, None]
        index_BHL = (begins_B[:, None, None] + within_L) * heads + head_H1
        index_BHL = index_BHL.where(within_L < lengths_B[:, None, None], tokens * heads)
        groups.append(_Group(index_BHL.flatten(), row))
    return tuple(groups)


def _row_length(length: int) -> int:
    """Round up to 32, 48, 64, 96, 128 and so on: oneDNN compiles code for each new shape of a bf16 product."""
    power = max(32, 1 << (length - 1).bit_length())
    return power if length > power * 3 // 4 or power == 32 else power * 3 // 4


@lru_cache(maxsize=32)
def _mask(length: int) -> torch.Tensor:
    """Return what to add to the scores of a row: minus infinity for later tokens, else 0; [L, L]."""
    with torch.inference_mode(mode=False):  # an evaluation may make what the next step trains with
        return torch.full((length, length), float("-inf")).triu_(1)


def product_dtype(query: torch.Tensor) -> torch.dtype:
    """Return the dtype in which products of queries are computed."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


class _AttentionInRows(torch.autograd.Function):
    """softmax(Q K^T s + mask) V; the probabilities are kept, so that backward computes no scores again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        groups: tuple[_Group, ...],
        scale: float,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        ctx.groups, ctx.scale, ctx.shape, ctx.dtypes = groups, scale, query.shape, (query.dtype, value.dtype)
        rows = [_rows(query, torch.float32), _rows(key, torch.float32), _rows(value, torch.bfloat16)]
        attended = torch.zeros(tokens * heads + 1, width, dtype=torch.bfloat16)
        kept: list[torch.Tensor] = []
        for group in groups:
            index, length = group.index, group.length
            q, k, v = (_gather(part, index, length) for part in rows)
            scores = torch.baddbmm(_mask(length), q, k.mT, alpha=scale)
            probabilities = scores.softmax(-1).bfloat16()
            output = torch.bmm(probabilities, v)
            attended.index_copy_(0, index, output.view(-1, width))
            kept += [q.bfloat16(), k.bfloat16(), v, probabilities, output]
        ctx.save_for_backward(*kept)
        return attended[:-1].view(1, tokens, heads, width)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _, heads, tokens, width = ctx.shape
        rows = _rows(gradient.transpose(1, 2), torch.bfloat16)
        found = [torch.zeros(tokens * heads + 1, width, dtype=torch.bfloat16) for _ in range(3)]
        for number, group in enumerate(ctx.groups):
            index, length = group.index, group.length
            q, k, v, probabilities, output = ctx.saved_tensors[5 * number : 5 * number + 5]
            grad = _gather(rows, index, length)
            grad_value = torch.bmm(probabilities.mT, grad)
            # The gradient of a softmax: p (g - sum of p g), and that sum is the output times its gradient.
            mean = (output.float() * grad).sum(-1, keepdim=True)
            grad_scores = torch.bmm(grad, v.mT).sub_(mean).mul_(probabilities).mul_(ctx.scale)
            parts = torch.bmm(grad_scores, k), torch.bmm(grad_scores.mT, q), grad_value
            for whole, part in zip(found, parts, strict=True):
                whole.index_copy_(0, index, part.view(-1, width))
        query, key, value = (part[:-1].view(1, tokens, heads, width).transpose(1, 2) for part in found)
        of_scores, of_values = ctx.dtypes
        return query.to(of_scores), key.to(of_scores), value.to(of_values), None, None


def _rows(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a row for each token and head, and one of zeros, [T * H + 1, D], from [1, H, T, D]."""
    _, heads, tokens, width = part.shape
    rows = torch.empty(tokens * heads + 1, width, dtype=dtype)
    rows[:-1].view(tokens, heads, width).copy_(part[0].transpose(0, 1))
    rows[-1] = 0
    return rows


def _gather(rows: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
    return rows.index_select(0, index).view(-1, length, rows.shape[1])
