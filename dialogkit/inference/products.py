"""Matrix products in float32 on a CPU, and those of replies with weights of 8 bits.

In float32 torch calls the matrix products of MKL, which on some processors take two to four times as long as those
of oneDNN, also a part of torch. Weights of 8 bits are a quarter of the bytes that a single token has to read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from dialogkit.distributed.sharding import is_shard
from dialogkit.forwards import forwards_replaced

_BLOCK = 32
"""Inputs that torch's product of 8 bits reads at once; with other numbers it reads beyond the weights."""
_FEW_ROWS, _FEW_WEIGHTS = 4, 2**20
"""Fewer rows with fewer weights are computed sooner by MKL: a call of oneDNN takes longer to begin."""


@torch.no_grad()
def prepare_for_replies(model: Any, *, int8: bool = False) -> None:
    """Make a float32 model on the CPU compute faster; its results differ in their last digits.

    With int8, every row of a linear layer's weights is rounded to 8 bits and one scale, for inputs of any length.
    A single token is then rounded to bf16 before each of these layers, and their result after it. Layers whose
    number of inputs is no multiple of 32 stay as they are.
    """
    for module in list(model.modules()):
        product = _by_onednn if _takes_onednn(module) else type(module).forward
        if int8 and (rows := _rows_of(module)) is not None:
            module.codes, module.scales = codes_and_scales(rows)
            rows.copy_(module.codes * module.scales.float()[:, None])
            module.several, product = MethodType(product, module), _by_codes
        if product is not type(module).forward:
            module.forward = MethodType(product, module)


@contextmanager
def onednn_products(model: Any) -> Iterator[None]:
    """Use oneDNN within a context for the layers in float32 of a model on the CPU, without gradients."""
    layers = [
        module
        for module in model.modules()
        if _takes_onednn(module)
        and module.weight.dtype == torch.float32
        and not is_shard(module.weight)
        and "forward" not in vars(module)
    ]
    with forwards_replaced(layers, _by_onednn):
        yield


def _takes_onednn(module: nn.Module) -> bool:
    return type(module) is nn.Linear and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def codes_and_scales(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [N, K] as int8 [N, K], and the bf16 scale of each row [N]."""
    needed = rows.abs().amax(dim=1) / 127
    scales = needed.bfloat16()
    # Rounded up, so that no code is beyond 127.
    above = torch.nextafter(scales, torch.full_like(scales, torch.inf))
    scales = torch.where(scales.float() < needed, above, scales)
    codes = (rows / scales.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return codes.to(torch.int8).contiguous(), scales


def _rows_of(module: Any) -> torch.Tensor | None:
    """Return the weights [N, K] of a linear layer, sharing their memory; None for what has no fast product."""
    from transformers.pytorch_utils import Conv1D

    if type(module) not in (nn.Linear, Conv1D):
        return None
    weight: torch.Tensor = module.weight.detach()
    rows = weight if type(module) is nn.Linear else weight.t()
    return None if rows.shape[1] % _BLOCK else rows


def _by_onednn(self: Any, input: torch.Tensor) -> torch.Tensor:
    if input.numel() < _FEW_ROWS * self.in_features and self.weight.numel() < _FEW_WEIGHTS:
        return nn.Linear.forward(self, input)
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
    return made


def _by_codes(self: Any, input: torch.Tensor) -> torch.Tensor:
    outputs, inputs = self.codes.shape
    if input.numel() != inputs:
        several: torch.Tensor = self.several(input)
        return several
    # Only with bf16 its kernel is fast.
    made: torch.Tensor = torch._weight_int8pack_mm(
        input.reshape(1, inputs).bfloat16(), self.codes, self.scales
    ).float()
    if self.bias is not None:
        made += self.bias
    return made.view(*input.shape[:-1], outputs)
