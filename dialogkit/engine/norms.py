"""RMSNorm by one kernel on a GPU, where transformers' takes six forward and some ten backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import rms_norm


def _fused(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return rms_norm(hidden_states.float(), self.weight.shape, self.weight, self.variance_epsilon)


@contextmanager
def fused_norms(model: Any, device: str) -> Iterator[None]:
    """Use torch's own RMSNorm within a context, where a model's computes the same; only on a GPU.

    On a CPU it is no faster, and rounds differently.
    """
    found: list[Any] = []
    if device == "cuda":
        same: dict[type, bool] = {}
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
                if type(module) not in same:
                    same[type(module)] = _computes_the_same(module)
                if same[type(module)]:
                    found.append(module)
    for module in found:
        module.forward = MethodType(_fused, module)
    try:
        yield
    finally:
        for module in found:
            del module.forward


@torch.no_grad()
def _computes_the_same(module: Any) -> bool:
    weight = module.weight
    hidden = torch.linspace(-2, 3, weight.numel(), device=weight.device).expand(2, -1)
    theirs = module(hidden)
    return bool((_fused(module, hidden) - theirs).abs().max() <= 1e-5 * theirs.abs().max())
