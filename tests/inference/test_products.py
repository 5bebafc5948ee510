"""Products of replies: those of the same weights, whatever computes them."""

import copy
from typing import Any

import pytest
import torch

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.inference.products import codes_and_scales, onednn_products, prepare_for_replies
from dialogkit.inference.replies import continue_prompts

ARCHITECTURES = ["gpt2", "llama"]


def test_codes_are_the_nearest_in_eight_bits() -> None:
    rows = torch.randn(300, 40, generator=torch.Generator().manual_seed(1))
    rows[7] = 0
    rows[8] *= 1e-30
    codes, scales = codes_and_scales(rows)
    assert codes.abs().max() <= 127
    assert (codes.abs().amax(dim=1) >= 126).sum() == len(rows) - 1  # all but the row of zeros use the whole range
    step = scales.float()[:, None]
    assert ((codes * step - rows).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("int8", [False, True])
@torch.no_grad()
def test_one_token_and_several_are_computed_with_the_same_weights(
    small: Any, architecture: str, int8: bool
) -> None:
    model = small.model(architecture, seed=1).eval()
    untouched = copy.deepcopy(model)
    prepare_for_replies(model, int8=int8)
    ids = torch.arange(20)[:, None]
    plain = copy.deepcopy(untouched)
    plain.load_state_dict(model.state_dict())  # with int8 the rounded weights

    def error(inputs: list[torch.Tensor]) -> float:
        found, expected = (torch.cat([made(input_ids=ids).logits for ids in inputs]) for made in (model, plain))
        return float((found - expected).norm() / expected.norm())

    assert error([ids.T]) < 1e-5
    assert error([one[None] for one in ids]) < (0.03 if int8 else 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_faster_products_change_no_float32_reply(small: Any, architecture: str) -> None:
    model = small.model(architecture, seed=1, initializer_range=0.4).eval()
    prompt = [small.tokenizer.encode_prompt([Message("user", "What is the capital of France?")])]

    def reply(temperature: float) -> Any:
        config = GenerateConfig(temperature=temperature, max_new_tokens=24)
        return continue_prompts(model, small.tokenizer, prompt, config, context=256, device="cpu")

    before = [reply(0.0), reply(1.2)]
    prepare_for_replies(model)
    assert [reply(0.0), reply(1.2)] == before


@torch.no_grad()
def test_products_of_onednn_end_with_their_context(small: Any) -> None:
    model = small.model("llama", seed=1).eval()
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits
    with onednn_products(model):
        assert sum("forward" in vars(module) for module in model.modules()) == 15  # seven a layer, and the head
        torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)
    prepare_for_replies(model)
    with onednn_products(model):  # leaves what is faster already
        pass
    assert sum("forward" in vars(module) for module in model.modules()) == 15
