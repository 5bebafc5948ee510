"""The training loss: cross-entropy at supervised positions only, head and loss in chunks.

The functions return sums of nats; the forward of `install_dialog_loss` normalises them by the number of tokens.

Shapes: S supervised tokens, D width, V vocabulary. The [S, V] matrix of logits is never held whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import cross_entropy, embedding, linear
from torch.utils.checkpoint import checkpoint

from dialogkit.distributed import process_group
from dialogkit.distributed.sharding import inside
from dialogkit.logits import alters_logits, final_logits
from dialogkit.shapes import pad_to_common_length

CHUNK_TOKENS = 512
"""Rows of logits held at once; 512 x 32,768 in bf16 are 32 MB."""
_GPU_LOGITS = 2**27
"""Logits held at once on a GPU; 4,096 rows of 32,768 in bf16 are 256 MB."""

_SHIFT = 2.0**15
"""Factor of the gradients of logits in float16: they are at most 1, and its smallest normal number is 6e-5."""
_LEAST = torch.finfo(torch.float32).tiny
"""Smallest probability with a finite logarithm; a target below it counts as this, 87 nats."""


_INSTALLED = ("forward", "_original_forward")
"""Attributes of a model in training: our forward, and the copy that accelerate stores when it wraps it."""


def chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Return how many rows of logits are held at once.

    A GPU waits for the next kernel if there is too little to do in each.
    """
    return CHUNK_TOKENS if device.type != "cuda" else max(CHUNK_TOKENS, _GPU_LOGITS // vocabulary)


def _product_in_float32(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the product of two matrices in float16 as its sums are, in float32."""
    if a.device.type == "cuda" and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of a linear head; the gradients are computed in the forward pass, chunk by chunk.

    Logits and probabilities stay in the precision of the matrix products: converting chunks to float32 and back
    takes as long as the products. In bf16 the sum differs by some 1e-4 nats per token, the gradients do not.

    In float16 they are in float32, as most probabilities are below its smallest normal number. So are the
    gradients: what multiplies them in the backward pass, the scale of the loss included, comes after the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_S: torch.Tensor,
        dtype: torch.dtype,
        shared: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        hidden, weight = hidden_SD.to(dtype), weight_VD.to(dtype)
        if compiles_shapes(dtype, hidden.device):
            hidden = pad_to_common_length(hidden, 0)
        half = dtype == torch.float16
        product: Callable[..., torch.Tensor] = _product_in_float32 if half else torch.mm
        kept = torch.float32 if half else dtype
        grad_hidden = torch.empty_like(hidden, dtype=kept)
        learns = ctx.needs_input_grad[1]  # False if only an adapter is trained
        grad_weight: torch.Tensor | None = None
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        rows = chunk_tokens(len(weight), hidden.device)
        logits_buffer = hidden.new_empty(min(rows, len(hidden)), len(weight), dtype=kept)
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            x, targets = hidden[chunk], targets_S[chunk]
            at_targets = (torch.arange(len(targets), device=x.device), targets)
            logits = product(x, weight.t(), out=logits_buffer[: len(x)])
            probabilities = logits.softmax(1)
            total -= probabilities[at_targets].float().clamp_min(_LEAST).log().sum()
            grad_logits = probabilities
            grad_logits[at_targets] -= 1  # scatter_add_ copies the whole matrix twice
            grad_logits[len(targets) :] = 0  # padding rows
            if half:
                grad_logits = grad_logits.mul_(_SHIFT).to(dtype)
            product(grad_logits, weight, out=grad_hidden[chunk])
            if not learns:
                continue
            part = product(grad_logits.t(), x)
            # Summed in the precision of the weights: many small bf16 additions would lose most of it.
            grad_weight = part.to(weight_VD.dtype) if grad_weight is None else grad_weight.add_(part)
        if learns and grad_weight is None:
            grad_weight = torch.zeros_like(weight_VD)
        ctx.save_for_backward(grad_hidden[: len(hidden_SD)], grad_weight)
        ctx.hidden_dtype, ctx.shared, ctx.half = hidden_SD.dtype, shared, half
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if ctx.half:
            grad_total = grad_total / _SHIFT
        if grad_weight is not None:
            grad_weight.mul_(grad_total)
        if ctx.shared is not None:
            ctx.shared.append(grad_weight)
            grad_weight = None
        return (grad_hidden.float() * grad_total).to(ctx.hidden_dtype), grad_weight, None, None, None


class _SharedEmbedding(torch.autograd.Function):
    """Looks up rows of a weight tied to the output layer, and adds its gradient to that of the output layer.

    Autograd would make two matrices of the whole vocabulary, one of them zero but for the few rows of the batch,
    and then add them.
    """

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, weight_VD: torch.Tensor, shared: list[torch.Tensor], padding: int | None
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.shared, ctx.padding = shared, padding
        return embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, grad_rows: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        (grad_weight,) = ctx.shared  # put there by the loss, whose backward pass comes first
        if ctx.padding is not None:
            grad_rows = grad_rows.masked_fill((ids == ctx.padding)[..., None], 0)
        grad_weight.index_add_(0, ids.flatten(), grad_rows.flatten(0, -2).to(grad_weight.dtype))
        ctx.shared.clear()
        return None, grad_weight, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _embed(module: torch.nn.Embedding, ids: torch.Tensor, shared: list[torch.Tensor]) -> torch.Tensor:
    rows: torch.Tensor = _SharedEmbedding.apply(ids, module.weight, shared, module.padding_idx)
    return rows


def _is_tied_embedding(module: Any, head: Any) -> bool:
    """Return whether an embedding is tied to the output layer and only looks rows up."""
    return (
        type(module) is torch.nn.Embedding
        and module.weight is head.weight
        and module.weight.requires_grad
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module._forward_hooks
    )


# Not part of a compiled model, which would be compiled again for the number of chunks of every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_cross_entropy(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_S: torch.Tensor,
    *,
    dtype: torch.dtype,
    shared: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the sum of -log p(target) in nats, a float32 scalar.

    Args:
        hidden_SD: hidden states that predict the targets.
        weight_VD: the output layer, without bias.
        targets_S: target ids.
        dtype: precision of the matrix products.
        shared: receives the gradient of the weight if a tied embedding adds to it.

    Source: the maximum-likelihood objective of Radford et al. 2018, eq. 1, at supervised positions only.
    """
    with torch.autocast(hidden_SD.device.type, enabled=False):
        total: torch.Tensor = _ChunkedCrossEntropy.apply(hidden_SD, weight_VD, targets_S, dtype, shared)
        return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _any_cross_entropy(
    hidden_SD: torch.Tensor, head: Any, finish: Callable[[torch.Tensor], torch.Tensor], targets_S: torch.Tensor
) -> torch.Tensor:
    """Return the sum of -log p(target) in nats for an output layer with a bias, or whose logits are altered."""

    def part(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(finish(linear(hidden, head.weight, head.bias)).float(), targets, reduction="sum")

    rows = chunk_tokens(len(head.weight), hidden_SD.device)
    chunks = zip(torch.split(hidden_SD, rows), torch.split(targets_S, rows), strict=True)
    parts = [checkpoint(part, hidden, targets, use_reentrant=False) for hidden, targets in chunks]
    return torch.stack(parts).sum()


def compiles_shapes(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether matrix products are compiled for each shape, as those in bf16 on a CPU are."""
    return dtype == torch.bfloat16 and device.type == "cpu"


class TokenCounter:
    """Counts the supervised tokens and all tokens that the model was trained on, over all ranks."""

    def __init__(self) -> None:
        self.supervised = 0
        self.all = 0
        """Those of all ranks up to the last `all_reduce`, and of this rank since."""
        self._reduced = (0, 0)

    def restore(self, tokens: int, supervised: int) -> None:
        """Resume from the counts of a checkpoint."""
        self._reduced = self.all, self.supervised = tokens, supervised

    def count(self, tokens: int, supervised: int) -> None:
        """Count a micro-batch, unless it has no supervised tokens and only fills up the batch."""
        if supervised:
            self.all += tokens
            self.supervised += supervised

    def all_reduce(self) -> None:
        """Add the counts of the other ranks; every rank calls this at the same step."""
        before = self._reduced
        more = process_group.all_reduce_ints([self.all - before[0], self.supervised - before[1]])
        self.restore(before[0] + more[0], before[1] + more[1])

    def metrics(self) -> dict[str, float]:
        """Return the counts by the names of their metrics."""
        return {"train/tokens": self.all, "train/supervised_tokens": self.supervised}


def install_dialog_loss(model: Any, *, dtype: torch.dtype, counter: TokenCounter, sharded: bool = False) -> None:
    """Give a causal model a forward that takes padding-free batches and returns the loss alone.

    The loss is the sum of nats, normalised by `num_items_in_batch`: the supervised tokens of the whole optimizer
    step, so that accumulation changes nothing. A method on the instance, so that the Trainer, compilation and
    wrappers for several devices see an ordinary model; `remove_dialog_loss` takes it away.

    A `sharded` model's weights are complete only inside their own modules, so every module is called and no weight
    is used outside of its module.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    plain = head.bias is None and not alters_logits(model)  # the loss needs no more than the weight
    finish = final_logits(model)
    tied = plain and not sharded and _is_tied_embedding(embeddings, head)

    def forward(
        self: Any,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        label_positions: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        counter.count(input_ids.numel(), labels.numel())
        if compiles_shapes(dtype, input_ids.device):
            # What is added belongs to no dialog.
            input_ids, position_ids = pad_to_common_length(input_ids, 1), pad_to_common_length(position_ids, 1)
        shared: list[torch.Tensor] | None = [] if tied and torch.is_grad_enabled() else None
        inputs = {"input_ids": input_ids}
        if shared is not None:
            inputs = {"inputs_embeds": _embed(embeddings, input_ids, shared)}
        hidden = self.base_model(**inputs, position_ids=position_ids, use_cache=False, **kwargs)[0][0]
        hidden = hidden.index_select(0, label_positions)

        def loss(hidden_SD: torch.Tensor) -> Any:
            if plain:
                return chunked_cross_entropy(hidden_SD, head.weight, labels, dtype=dtype, shared=shared)
            return _any_cross_entropy(hidden_SD, head, finish, labels)

        total = inside(head, loss, hidden) if sharded else loss(hidden)
        # Normalised here: over the supervised tokens of the whole step, or of the batch without a count.
        return {"loss": total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)}

    model.forward = MethodType(forward, model)


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Restore a model's own forward within a context, as generation needs it."""
    installed = {name: model.__dict__.pop(name) for name in _INSTALLED if name in model.__dict__}
    try:
        yield
    finally:
        model.__dict__.update(installed)


def remove_dialog_loss(model: Any) -> None:
    """Restore the model's own forward, whatever wrapped it in between."""
    for name in _INSTALLED:
        model.__dict__.pop(name, None)
