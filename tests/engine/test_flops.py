"""The count of operations agrees with what torch counts in a real step."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dialogkit.config.model import ModelConfig
from dialogkit.config.train import TrainConfig
from dialogkit.engine.flops import flops_per_token, peak_flops
from dialogkit.models.adapters import add_adapter


@pytest.mark.parametrize("rank", [0, 4])
def test_the_formula_agrees_with_torchs_counter(rank: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, vocabulary, length = 64, 3, 512, 96
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, intermediate_size=172, tie_word_embeddings=True, attn_implementation="eager",
        )
    )  # fmt: skip
    body = sum(p.numel() for p in model.model.layers.parameters())
    if rank:
        add_adapter(model, TrainConfig(method="lora", lora_rank=rank), ModelConfig(source="a/b"))
    ids = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # Eager attention computes the half above the diagonal as well.
    expected = flops_per_token(
        parameters=body, width=width, layers=layers, vocabulary=vocabulary, supervised_share=1, context=2 * length,
        adapter=sum(p.numel() for p in model.parameters() if p.requires_grad) if rank else 0,
    )  # fmt: skip
    assert abs(counter.get_total_flops() / length / expected - 1) < 0.05


def test_the_peak_is_known_by_name_and_precision() -> None:
    assert peak_flops("NVIDIA H200", "bf16") == 9.89e14
    assert peak_flops("NVIDIA H200", "fp32") is None
    assert peak_flops("Some CPU, 2 threads", "bf16") is None
