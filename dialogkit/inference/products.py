"""Matrix products of one token on a CPU, which take as long as it takes to read the weights from memory.

For a single row, torch calls MKL's product of matrices, which on some processors reads memory at a third of
the speed there is. oneDNN, which is part of torch too, reads large weights at all of it. Weights of 8 bits are a
quarter of the bytes.
"""

from types import MethodType
from typing import Any

import torch
from torch import nn

_BLOCK = 32
"""Inputs that torch's product of 8 bits reads at once; with other numbers it reads beyond the weights."""


@torch.no_grad()
def prepare_for_one_token(model: Any, *, int8: bool = False) -> None:
    """Make a float32 model on the CPU compute single tokens faster; longer inputs are computed as before.

    With int8, every row of a linear layer's weights is rounded to 8 bits and one scale, for inputs of any length.
    A single token is then rounded to bf16 before each of these layers, and their result after it. Layers whose
    number of inputs is no multiple of 32 stay as they are.
    """
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        is_linear = type(module) is nn.Linear
        if int8 and (rows := _rows_of(module)) is not None:
            module.codes, module.scales = codes_and_scales(rows)
            rows.copy_(module.codes * module.scales.float()[:, None])
            module.forward = MethodType(_by_codes, module)
        elif is_linear and has_onednn:
            module.forward = MethodType(_by_onednn, module)


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
    if input.numel() != self.in_features:
        return nn.Linear.forward(self, input)
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
    return made


def _by_codes(self: Any, input: torch.Tensor) -> torch.Tensor:
    outputs, inputs = self.codes.shape
    if input.numel() != inputs:
        made: torch.Tensor = type(self).forward(self, input)
        return made
    # Only with bf16 its kernel is fast.
    made = torch._weight_int8pack_mm(input.reshape(1, inputs).bfloat16(), self.codes, self.scales).float()
    if self.bias is not None:
        made += self.bias
    return made.view(*input.shape[:-1], outputs)
