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


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 9.89e14),
        ("NVIDIA GH200 480GB", 9.89e14),
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", 7.56e14),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB", 3.12e14),
        ("NVIDIA A10", 1.25e14),
        ("NVIDIA A10G", 7.0e13),
        ("NVIDIA L4", 1.21e14),
        ("NVIDIA L40", 1.81e14),
        ("NVIDIA L40S", 3.62e14),
        ("NVIDIA GeForce RTX 5090", 2.095e14),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX 6000 Ada Generation", 3.643e14),
        ("AMD Instinct MI300X", 1.307e15),
        ("Tesla T4", None),
        ("Some CPU, 2 threads", None),
    ],
)
def test_the_peak_is_known_by_name_and_precision(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bf16") == peak
    assert peak_flops(name, "fp16") == (6.5e13 if name == "Tesla T4" else peak)
    assert peak_flops(name, "fp32") is None
