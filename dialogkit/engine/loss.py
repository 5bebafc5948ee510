"""The training loss: cross-entropy at supervised positions only, head and loss in chunks.

Shapes: S supervised tokens, D width, V vocabulary. The [S, V] matrix of logits is never held whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

CHUNK_TOKENS = 512
"""Rows of logits held at once; 512 x 32,768 in bf16 are 32 MB."""

_LEAST = torch.finfo(torch.float32).tiny
"""Least probability that has a logarithm; a target below it counts as this one, 87 nats."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of a linear head; the gradients are made in the forward pass, chunk by chunk.

    Logits and probabilities stay in the precision of the matrix products: turning each chunk to float32 and back
    takes as long as the products. In bf16 the sum differs by some 1e-4 nats a token, the gradients do not.
    """

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
        grad_weight: torch.Tensor | None = None
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        rows = min(CHUNK_TOKENS, hidden.shape[0])
        logits_buffer = hidden.new_empty(rows, weight.shape[0])
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            x, targets = hidden[chunk], targets_S[chunk]
            at_targets = (torch.arange(len(x), device=x.device), targets)
            logits = torch.mm(x, weight.t(), out=logits_buffer[: len(x)])
            probabilities = logits.softmax(1)
            total -= probabilities[at_targets].float().clamp_min(_LEAST).log().sum()
            grad_logits = probabilities
            grad_logits[at_targets] -= 1  # scatter_add_ copies the whole matrix twice
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            part = grad_logits.t() @ x
            # Summed in the precision of the weights: many small bf16 additions would lose most of it.
            grad_weight = part.to(weight_VD.dtype) if grad_weight is None else grad_weight.add_(part)
        ctx.save_for_backward(grad_hidden, torch.zeros_like(weight_VD) if grad_weight is None else grad_weight)
        ctx.hidden_dtype = hidden_SD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (grad_hidden.float() * grad_total).to(ctx.hidden_dtype), grad_weight.mul_(grad_total), None, None


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

    def metrics(self) -> dict[str, float]:
        """Return the counts under the names by which they are logged."""
        return {"train/tokens": self.all, "train/supervised_tokens": self.supervised}


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
