"""Attention by products over rows is causal attention inside each dialog, in bf16."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from dialogkit.engine.attention import packed_attention
from dialogkit.engine.row_attention import attention_in_rows, takes_rows

HEADS, WIDTH = 3, 16
LENGTHS = (1, 40, 33, 7, 130, 64, 40)
PADDING = 5


def parts(lengths: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Return query, key, value and the gradient of the result, rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths) + PADDING
    made = [torch.randn(1, tokens, HEADS, WIDTH, generator=generator).bfloat16() for _ in range(4)]
    return [*(part.transpose(1, 2) for part in made[:3]), made[3]]


def exact(lengths: tuple[int, ...], *, scaling: float | None = None) -> list[torch.Tensor]:
    """Return the result and its gradients in float64, of each dialog alone."""
    *inputs, gradient = parts(lengths)
    inputs = [part.double().requires_grad_() for part in inputs]
    dialogs = zip(*(part.split([*lengths, PADDING], 2)[:-1] for part in inputs), strict=True)
    alone = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling) for q, k, v in dialogs]
    result = torch.cat(alone, 2).transpose(1, 2)
    return [result.detach(), *torch.autograd.grad(result, inputs, gradient[:, :-PADDING].double())]


def in_rows(lengths: tuple[int, ...], dtype: torch.dtype, *, scaling: float | None = None) -> list[torch.Tensor]:
    *inputs, gradient = parts(lengths)
    inputs = [part.to(dtype).requires_grad_() for part in inputs]
    result = attention_in_rows(*inputs, lengths, scaling)
    return [result.detach(), *torch.autograd.grad(result, inputs, gradient)]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # what comes out of rotary embeddings, or not
@pytest.mark.parametrize("scaling", [None, 0.6])
def test_results_and_gradients_are_those_of_each_dialog_alone(dtype: torch.dtype, scaling: float | None) -> None:
    result, *gradients = in_rows(LENGTHS, dtype, scaling=scaling)
    expected, *expected_gradients = exact(LENGTHS, scaling=scaling)
    assert result.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3
    assert error(result[:, :-PADDING], expected) < 0.004
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert error(found, wanted) < 0.008
    assert not result[:, -PADDING:].any()
    assert not any(gradient[:, :, -PADDING:].any() for gradient in gradients)


def test_it_is_about_as_exact_as_torchs_kernel() -> None:
    *inputs, gradient = parts(LENGTHS)
    inputs = [part.requires_grad_() for part in inputs]
    dialogs = zip(*(part.split([*LENGTHS, PADDING], 2)[:-1] for part in inputs), strict=True)
    kernel = torch.cat([scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in dialogs], 2)
    gradients = torch.autograd.grad(kernel, inputs, gradient.transpose(1, 2)[:, :, :-PADDING])
    theirs = [kernel.detach().transpose(1, 2), *gradients]
    ours = in_rows(LENGTHS, torch.bfloat16)
    for found, theirs_found, wanted in zip(ours, theirs, exact(LENGTHS), strict=True):
        cut = found[:, :-PADDING] if found is ours[0] else found
        assert error(cut, wanted) < 2.5 * error(theirs_found, wanted)


def test_no_dialog_sees_another() -> None:
    *inputs, _ = parts(LENGTHS)
    before = attention_in_rows(*inputs, LENGTHS, None)
    changed = [part.clone() for part in inputs]
    for part in changed:
        part[:, :, 1:41] = 7.0  # the second dialog
    after = attention_in_rows(*changed, LENGTHS, None)
    same = (before == after).all(-1).all(-1)[0]
    assert same[:1].all()
    assert same[41:].all()
    assert not same[1:41].any()


def test_only_bf16_on_a_cpu_takes_rows_and_long_dialogs_do_not() -> None:
    query, key, _, _ = parts(LENGTHS)
    assert takes_rows(query, key, LENGTHS)
    assert not takes_rows(query.float(), key.float(), LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert takes_rows(query.float(), key.float(), LENGTHS)
    assert not takes_rows(query, key[:, :1], LENGTHS)  # one head of keys for several of queries
    assert not takes_rows(query.to("meta"), key.to("meta"), LENGTHS)
    assert not takes_rows(query, key, (3000,))  # its scores would take too much memory


def test_packed_attention_takes_rows_within_a_sliding_window() -> None:
    query, key, value, _ = parts(LENGTHS)
    expected = attention_in_rows(query, key, value, LENGTHS, None)
    module: Any = None
    found, _ = packed_attention(module, query, key, value, None, dialog_lengths=LENGTHS, sliding_window=130)
    assert torch.equal(found, expected)
    windowed, _ = packed_attention(module, query, key, value, None, dialog_lengths=LENGTHS, sliding_window=20)
    assert not torch.allclose(windowed[:, :-PADDING], expected[:, :-PADDING], atol=0.1)


def test_dialogs_of_all_lengths_need_products_of_few_shapes() -> None:
    class Shapes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.lengths: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.aten.bmm:
                self.lengths.add(args[0].shape[1])
            return func(*args, **(kwargs or {}))

    with Shapes() as shapes:
        for length in range(1, 257):
            *inputs, _ = parts((length,))
            attention_in_rows(*inputs, (length,), None)
    assert shapes.lengths == {32, 48, 64, 96, 128, 192, 256}
