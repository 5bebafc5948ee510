"""How the next token of a reply is chosen."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from dialogkit.config.generate import GenerateConfig


class Sampler:
    """Chooses the next token of each reply of a batch that shares its sampling settings.

    HF draws the tokens of a batch from one stream of random numbers. Here each reply has its own generator, so its
    draws depend on no other reply. The repetition penalty counts the tokens of the reply alone, as many answers
    have to name what the prompt asks about; that of HF counts those of the prompt as well.
    """

    def __init__(self, config: GenerateConfig) -> None:
        from transformers.generation import logits_process as hf

        self.penalty = config.repetition_penalty
        self.is_greedy = config.temperature == 0
        self._steps: list[Any] = []
        if config.temperature not in (0, 1):
            self._steps.append(hf.TemperatureLogitsWarper(config.temperature))
        if config.temperature > 0 and config.top_k > 0:
            self._steps.append(hf.TopKLogitsWarper(config.top_k))
        if config.temperature > 0 and config.top_p < 1:
            self._steps.append(partial(_most_probable, top_p=config.top_p))

    def choose(
        self, scores: torch.Tensor, seen: torch.Tensor | None, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Return the token of each of B replies.

        Args:
            scores: logits [B, V].
            seen: which tokens a reply has already [B, V]; None without a repetition penalty.
            generators: random numbers of each reply; not used by greedy replies.
        """
        if seen is not None:
            scores = _penalised(scores, seen, self.penalty)
        for step in self._steps:
            scores = step(None, scores)
        if self.is_greedy:
            return scores.argmax(dim=-1)
        rows = zip(scores.softmax(dim=-1), generators, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])


def _most_probable(_: None, scores: torch.Tensor, *, top_p: float) -> torch.Tensor:
    """Return scores [B, V] without all but the most probable tokens that together have the probability `top_p`.

    It keeps what HF's `TopPLogitsWarper` keeps, which sorts the whole vocabulary: for 32 replies that takes longer
    than their model. Here only those are sorted that a top k has left.
    """
    left = int((scores > -torch.inf).sum(dim=-1).max())
    values, tokens = scores.topk(left)
    values, tokens = values.flip(-1), tokens.flip(-1)
    removed = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    removed[..., -1] = False
    return torch.full_like(scores, -torch.inf).scatter(1, tokens, values.masked_fill(removed, -torch.inf))


def _penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return scores with those of the seen tokens lowered (Keskar et al. 2019, section 4.1)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def generator_of(config: GenerateConfig, device: str) -> torch.Generator:
    """Return the random numbers of one reply."""
    return torch.Generator(device).manual_seed(config.seed)
