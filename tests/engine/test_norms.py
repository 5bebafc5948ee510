"""RMSNorm with fewer operations is the RMSNorm of the model."""

from typing import Any

import pytest
import torch

from dialogkit.engine.norms import fused_norms
from tests.engine.test_attention import build, capped_scores, llama, mistral, qwen2


@pytest.mark.parametrize("architecture", [llama, mistral, qwen2])
def test_a_norm_and_its_gradients_stay_what_they_are(architecture: Any) -> None:
    model = build(architecture)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    ids, results = torch.arange(1, 9)[None], []
    for device in ("cpu", "cuda"):  # the one that is asked for; all is computed on the CPU
        model.zero_grad()
        with fused_norms(model, device):
            fused = sum("forward" in vars(module) for module in model.modules())
            logits = model(input_ids=ids).logits
            logits.square().mean().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        results.append((fused, logits.detach(), gradients))
    assert [fused for fused, *_ in results] == [0, 5]  # two in each of two layers, and the last
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-5)
    for name, gradient in results[1][2].items():
        torch.testing.assert_close(gradient, results[0][2][name], rtol=1e-4, atol=1e-6, msg=name)
    assert not any("forward" in vars(module) for module in model.modules())


def test_norms_that_compute_something_else_are_left_alone() -> None:
    model = build(llama)

    class ShiftedRMSNorm(type(model.model.norm)):  # type: ignore[misc]
        def forward(self, hidden_states: Any) -> Any:
            return super().forward(hidden_states) + hidden_states

    model.model.norm.__class__ = ShiftedRMSNorm
    for other, expected in ((model, 4), (build(capped_scores), 0)):  # Gemma's weights are added to 1
        with fused_norms(other, "cuda"):
            assert sum("forward" in vars(module) for module in other.modules()) == expected


@pytest.mark.parametrize("architecture", [llama, mistral, qwen2])
def test_in_bf16_on_a_cpu_gradients_are_as_exact_as_they_were(architecture: Any) -> None:
    model = build(architecture)
    norm, width = model.model.norm, model.config.hidden_size
    torch.manual_seed(0)
    hidden, gradient = torch.randn(2, 1, 9, width)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    inputs = [hidden.clone().requires_grad_(), norm.weight]
    expected = norm(inputs[0])
    expected_gradients = torch.autograd.grad(expected, inputs, gradient.bfloat16().float())
    with fused_norms(model, "cpu", torch.bfloat16):
        assert sum("forward" in vars(module) for module in model.modules()) == 5
        found = norm(inputs[0])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected.bfloat16())
        gradients = torch.autograd.grad(found, inputs, gradient.bfloat16())
        with torch.no_grad():
            assert torch.equal(norm(hidden), expected)
    for gradient_found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient_found, wanted, rtol=1e-5, atol=1e-5)
