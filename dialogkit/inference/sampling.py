"""How the next token of a reply is chosen."""

from collections.abc import Sequence

import torch

from dialogkit.config.generate import GenerateConfig

_FEW = 1024
"""Tokens among which a top p is looked for first."""


class Sampler:
    """Chooses the next token of each reply of a batch that shares its sampling settings.

    HF draws the tokens of a batch from one stream of random numbers. Here each reply has its own generator, so its
    draws depend on no other reply. The repetition penalty counts the tokens of the reply alone, as many answers
    have to name what the prompt asks about; that of HF counts those of the prompt as well.

    HF masks the whole vocabulary at each step, and draws a random number for each of its entries. For 32 replies
    that takes longer than their model. Here a top k leaves only its own tokens, and each reply draws one number.
    """

    def __init__(self, config: GenerateConfig) -> None:
        self.penalty = config.repetition_penalty
        self.is_greedy = config.temperature == 0
        self._temperature, self._top_k, self._top_p = config.temperature, config.top_k, config.top_p

    def choose(
        self, scores: torch.Tensor, earlier: torch.Tensor | None, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Return the token of each of B replies.

        Args:
            scores: logits [B, V].
            earlier: the tokens of each reply so far [B, T], any of them more than once; None if there are none.
            generators: random numbers of each reply; not used by greedy replies.
        """
        if earlier is not None and self.penalty != 1:
            scores = _penalised(scores, earlier, self.penalty)
        if self.is_greedy:
            return scores.argmax(dim=-1)
        probabilities, tokens = self._candidates(scores)
        drawn = torch.cat([torch.rand(1, generator=generator) for generator in generators]).to(scores.device)
        cumulative = probabilities.cumsum(dim=-1)
        # 1 - [0, 1) is never 0, so a token without probability is never drawn.
        at = torch.searchsorted(cumulative, (1 - drawn[:, None]) * cumulative[:, -1:])
        return (at if tokens is None else tokens.gather(1, at))[:, 0]

    def _candidates(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the probabilities [B, K] of the tokens that may be drawn, and these; None if they are all.

        They are in the order of the vocabulary: in that of their scores, rounding could exchange two that are
        nearly equal, and so change what a number draws.
        """
        vocabulary = scores.shape[-1]
        most = min(self._top_k or vocabulary, vocabulary)
        if most == vocabulary and self._top_p == 1:
            return (scores / self._temperature).softmax(dim=-1), None
        if most == vocabulary:
            probabilities, tokens = self._likeliest((scores / self._temperature).softmax(dim=-1))
        else:
            values, tokens = scores.topk(most)
            probabilities = (values / self._temperature).softmax(dim=-1)
        if self._top_p < 1:
            of_likelier = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(of_likelier >= self._top_p, 0)
        tokens, order = tokens.sort(dim=-1)
        return probabilities.gather(1, order), tokens

    def _likeliest(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the highest of all probabilities, as many as make the top p or more, and their tokens.

        To sort a whole vocabulary takes longer than many a model, and a few tokens nearly always have the top p.
        """
        vocabulary = probabilities.shape[-1]
        few = probabilities.topk(min(_FEW, vocabulary))
        enough = bool((few.values.sum(dim=-1) > self._top_p).all())
        return (few if enough else probabilities.topk(vocabulary))[:2]


def _penalised(scores: torch.Tensor, earlier: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return scores with those of the tokens in `earlier` lowered (Keskar et al. 2019, section 4.1)."""
    found = scores.gather(1, earlier)
    return scores.scatter(1, earlier, torch.where(found < 0, found * penalty, found / penalty))


def generator_of(config: GenerateConfig) -> torch.Generator:
    """Return the random numbers of one reply, which are the same on every device."""
    return torch.Generator().manual_seed(config.seed)
