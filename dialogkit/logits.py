"""What some architectures do to the logits of their output layer: Gemma 2 caps, Cohere and Granite scale them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def _unchanged(logits: "torch.Tensor") -> "torch.Tensor":
    return logits


def final_logits(model: Any) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Return the function from the output layer's logits [..., V] to those that the model predicts with."""
    config = model.config.get_text_config(decoder=True)
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    if factor == 1.0 and cap is None:
        return _unchanged

    def finish(logits: "torch.Tensor") -> "torch.Tensor":
        scaled = logits * factor
        return scaled if cap is None else cap * (scaled / cap).tanh()

    return finish


def alters_logits(model: Any) -> bool:
    """Return whether a model predicts with other logits than those of its output layer."""
    return final_logits(model) is not _unchanged
