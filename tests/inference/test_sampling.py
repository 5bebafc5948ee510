"""Tokens are drawn as HF's processors would have it, each reply with random numbers of its own."""

from typing import Any

import pytest
import torch
from transformers.generation import logits_process as hf

from dialogkit.config.generate import GenerateConfig
from dialogkit.inference.sampling import Sampler, generator_of

DRAWS = 20_000


@pytest.mark.parametrize("settings", [
    {"top_k": 0, "top_p": 1}, {"top_k": 0, "top_p": 0.9}, {"top_k": 50, "top_p": 0.95},
    {"top_k": 50, "top_p": 0.01}, {"top_k": 5, "top_p": 1}, {"top_k": 10_000, "top_p": 0.5},
])  # fmt: skip
def test_tokens_are_drawn_with_the_probabilities_of_hfs_processors(settings: dict[str, Any]) -> None:
    config = GenerateConfig(temperature=1.3, repetition_penalty=1, **settings)
    steps = [hf.TemperatureLogitsWarper(1.3)]
    steps += [hf.TopKLogitsWarper(config.top_k)] if config.top_k else []
    steps += [hf.TopPLogitsWarper(config.top_p)] if config.top_p < 1 else []
    scores = 3 * torch.randn(1, 200, generator=torch.Generator().manual_seed(1))
    expected = scores
    for step in steps:
        expected = step(torch.zeros(1, 1, dtype=torch.long), expected)
    probabilities = expected.softmax(-1)[0]
    one = generator_of(config)
    chosen = Sampler(config).choose(scores.expand(DRAWS, -1), None, [one] * DRAWS)
    drawn = torch.bincount(chosen, minlength=200) / DRAWS
    assert not drawn[probabilities == 0].any()
    deviation = (probabilities * (1 - probabilities) / DRAWS).sqrt()
    assert ((drawn - probabilities).abs() <= 5 * deviation + 1e-6).all()


def test_tokens_that_were_said_are_lowered_once() -> None:
    config = GenerateConfig(temperature=0, repetition_penalty=2)
    scores = torch.tensor([[5.0, 3.0, 1.0], [5.0, 2.0, 1.0], [-1.0, -1.5, -4.0]])
    said = torch.tensor([[0, 0], [0, 0], [0, 0]])
    assert Sampler(config).choose(scores, said, []).tolist() == [1, 0, 1]


def test_what_a_reply_draws_depends_on_no_other() -> None:
    config = GenerateConfig()
    scores = torch.randn(8, 1000, generator=torch.Generator().manual_seed(2))
    seeds = [config.model_copy(update={"seed": number}) for number in range(len(scores))]
    together = Sampler(config).choose(scores, None, [generator_of(seed) for seed in seeds])
    alone = [
        Sampler(config).choose(row[None], None, [generator_of(seed)])
        for row, seed in zip(scores, seeds, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
