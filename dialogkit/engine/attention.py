"""Attention inside each dialog of a padding-free batch.

Shapes: query [1, H, T, D]; key and value [1, H_kv, T, D]; T tokens of all dialogs of the batch.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from dialogkit.errors import ModelError

PACKED = "dialogkit_packed"


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

    One call of torch's kernel a dialog: exact, without a mask, and no dialog can see another.
    """
    if unused.get("softcap") is not None:
        raise ModelError("models that cap attention scores (Gemma 2) cannot be trained here yet")
    grouped = key.shape[1] != query.shape[1]
    parts = zip(
        query.split(dialog_lengths, 2),
        key.split(dialog_lengths, 2),
        value.split(dialog_lengths, 2),
        strict=True,
    )
    attended = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in parts
    ]
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


def use_packed_attention(model: Any) -> None:
    """Make a model attend inside each dialog of a padding-free batch.

    Raises: ModelError for architectures that cannot change their attention function.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            f"{type(model).__name__} cannot keep the dialogs of a batch apart", hint="dialogkit models list"
        )
    model.set_attn_implementation(PACKED)


def use_plain_attention(model: Any) -> None:
    """Give a model the attention that `generate` and every other tool expects."""
    model.set_attn_implementation("sdpa")
