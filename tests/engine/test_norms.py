"""RMSNorm by one kernel is the RMSNorm of the model."""

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
