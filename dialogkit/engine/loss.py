"""The training loss: cross-entropy at supervised positions only, head and loss in chunks.

Shapes: S supervised tokens, D width, V vocabulary. The [S, V] matrix of logits is never held whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

CHUNK_TOKENS = 256
"""Rows of logits held at once; 256 x 32,768 in float32 are 32 MB."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of a linear head; the gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_S: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        hidden, weight = hidden_SD.to(dtype), weight_VD.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        # Summed in the precision of the weights: many small bf16 additions would lose most of it.
        grad_weight = torch.zeros_like(weight_VD)
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            x, targets = hidden[chunk], targets_S[chunk, None]
            logits = (x @ weight.t()).float()
            log_sum = logits.logsumexp(1, keepdim=True)
            total += (log_sum - logits.gather(1, targets)).sum()
            grad = logits.sub_(log_sum).exp_()
            grad.scatter_add_(1, targets, grad.new_full(targets.shape, -1.0))
            grad_logits = grad.to(dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            grad_weight += grad_logits.t() @ x
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.hidden_dtype = hidden_SD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (grad_hidden.float() * grad_total).to(ctx.hidden_dtype), grad_weight * grad_total, None, None


# Not part of a compiled model, which would be compiled again for the number of chunks of every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy(
    hidden_SD: torch.Tensor, weight_VD: torch.Tensor, targets_S: torch.Tensor, *, dtype: torch.dtype
) -> torch.Tensor:
    """Return the sum of -log p(target) in nats, a float32 scalar.

    Args:
        hidden_SD: hidden states that predict the targets.
        weight_VD: the output layer, without bias.
        targets_S: target ids.
        dtype: precision of the matrix products.

    Source: the maximum-likelihood objective of Radford et al. 2018, eq. 1, at supervised positions only.
    """
    with torch.autocast(hidden_SD.device.type, enabled=False):
        total: torch.Tensor = _ChunkedCrossEntropy.apply(hidden_SD, weight_VD, targets_S, dtype)
        return total


_INSTALLED = ("forward", "_original_forward")
"""Attributes of a model in training: our forward, and what accelerate keeps of it where it wraps it."""


class TokenCounter:
    """Counts what went through the model in training: supervised tokens and all tokens."""

    def __init__(self) -> None:
        self.supervised = 0
        self.all = 0


def install_dialog_loss(model: Any, *, dtype: torch.dtype, counter: TokenCounter) -> None:
    """Give a causal model a forward that takes padding-free batches and returns the loss alone.

    The loss is the sum of nats over `num_items_in_batch`, the supervised tokens of the whole optimizer step, so
    that accumulation changes nothing. A method on the instance, so that the Trainer, compilation and wrappers for
    several devices see an ordinary model; `remove_dialog_loss` takes it away.
    """
    head = model.get_output_embeddings()

    def forward(
        self: Any,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        label_positions: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        hidden = self.base_model(input_ids=input_ids, use_cache=False, **kwargs)[0][0]
        hidden = hidden.index_select(0, label_positions)
        if head.bias is None:
            total = chunked_cross_entropy(hidden, head.weight, labels, dtype=dtype)
        else:
            total = cross_entropy(linear(hidden, head.weight, head.bias).float(), labels, reduction="sum")
        counter.supervised += labels.numel()
        counter.all += input_ids.numel()
        return {"loss": total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)}

    model.forward = MethodType(forward, model)


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Give a model in training its own forward for a while, as generation needs it."""
    installed = {name: model.__dict__.pop(name) for name in _INSTALLED if name in model.__dict__}
    try:
        yield
    finally:
        model.__dict__.update(installed)


def remove_dialog_loss(model: Any) -> None:
    """Give the model its own forward back, whatever wrapped it in between."""
    for name in _INSTALLED:
        model.__dict__.pop(name, None)
