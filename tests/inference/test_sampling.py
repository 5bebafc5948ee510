"""Tokens are drawn as HF's processors would have it, each reply with random numbers of its own."""

from typing import Any

import pytest
import torch
from transformers.generation import logits_process as hf

from dialogkit.config.generate import GenerateConfig
from dialogkit.inference.sampling import Sampler, generator_of


@pytest.mark.parametrize("settings", [
    {"top_k": 0, "top_p": 0.9}, {"top_k": 50, "top_p": 0.95}, {"top_k": 50, "top_p": 0.01},
    {"top_k": 5, "top_p": 1},
])  # fmt: skip
def test_tokens_are_those_of_hfs_processors(settings: dict[str, Any]) -> None:
    config = GenerateConfig(temperature=1.3, repetition_penalty=1, **settings)
    steps = [hf.TemperatureLogitsWarper(1.3)]
    steps += [hf.TopKLogitsWarper(config.top_k)] if config.top_k else []
    steps += [hf.TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
    scores = 3 * torch.randn(40, 1000, generator=torch.Generator().manual_seed(1))
    seeds = [config.model_copy(update={"seed": number}) for number in range(len(scores))]
    expected = scores
    for step in steps:
        expected = step(torch.zeros(1, 1, dtype=torch.long), expected)
    drawn = [
        torch.multinomial(row, 1, generator=generator_of(seed, "cpu"))
        for row, seed in zip(expected.softmax(-1), seeds, strict=True)
    ]
    chosen = Sampler(config).choose(scores, None, [generator_of(seed, "cpu") for seed in seeds])
    assert torch.equal(chosen, torch.cat(drawn))
