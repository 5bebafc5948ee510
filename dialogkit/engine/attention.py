"""Attention inside each dialog of a padding-free batch.

Shapes: query [1, H, T, D]; key and value [1, H_kv, T, D]; T tokens of all dialogs of the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from dialogkit.errors import ModelError
from dialogkit.hints import Call

PACKED = "dialogkit_packed"


# Not part of a compiled model, which would be compiled again for the lengths of every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    dialog_lengths: tuple[int, ...],
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention inside each dialog, [1, T, H, D].

    One call of torch's kernel a dialog: exact, without a mask, and no dialog can see another. Tokens after the
    last dialog are padding; nothing is computed for them.
    """
    grouped = key.shape[1] != query.shape[1]
    lengths = (*dialog_lengths, query.shape[2] - sum(dialog_lengths))
    *dialogs, (padding, _, _) = zip(
        query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
    )
    attended = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in dialogs
    ]
    attended.append(padding)
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


def use_packed_attention(model: Any) -> None:
    """Make a model attend inside each dialog of a padding-free batch.

    Raises: ModelError for architectures that would then not compute the same as for each dialog alone.
    """
    from transformers import AttentionInterface

    if model.config._attn_implementation == PACKED:
        return
    AttentionInterface.register(PACKED, packed_attention)
    if not getattr(model, "_supports_attention_backend", False) or not _is_same_when_packed(model):
        raise ModelError(
            f"{type(model).__name__} is not supported: its results change when several dialogs are in one row",
            hint=Call("models list"),
        )
    model.set_attn_implementation(PACKED)


@torch.no_grad()
def _is_same_when_packed(model: Any) -> bool:
    """Return whether two short dialogs in a row get the same logits as each alone.

    They do not if positions also interact outside attention (convolutions, state spaces), if attention involves
    more than queries, keys and values (capped scores, sinks), or if the logits are not just the output layer.
    """
    lengths = (3, 2)
    ids = torch.arange(sum(lengths), device=model.device)[None]
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    was_training, plain = model.training, model.config._attn_implementation
    model.eval()
    try:
        alone = torch.cat([model(input_ids=dialog, use_cache=False).logits for dialog in ids.split(lengths, 1)], 1)
        model.set_attn_implementation(PACKED)
        row = model.base_model(input_ids=ids, position_ids=positions, dialog_lengths=lengths, use_cache=False)
        difference = (model.get_output_embeddings()(row[0]) - alone).abs().max()
        return bool(difference <= 1e-3 * alone.abs().max())
    finally:
        model.set_attn_implementation(plain)
        model.train(was_training)


def use_plain_attention(model: Any) -> None:
    """Restore the attention that `generate` and other tools expect."""
    model.set_attn_implementation("sdpa")


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Use plain attention within a context, as generation needs it."""
    before = model.config._attn_implementation
    use_plain_attention(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
