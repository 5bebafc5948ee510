"""How probable the held-out answers are under a model.

Shapes: T tokens of a padding-free batch, S supervised targets, D width, V vocabulary.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

CHUNK_TOKENS = 256


@dataclass
class Likelihood:
    """Sums over the supervised tokens of any number of dialogs; every figure is a quotient of sums."""

    nats: float = 0.0
    tokens: int = 0
    answer_nats: float = 0.0
    """Nats of the answers' text, the end of turn left out."""
    answer_bytes: int = 0
    correct: int = 0

    @property
    def nats_per_token(self) -> float:
        """Mean -log p of the supervised tokens, the end of turn included."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Exp of the mean nats per token."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits to write one UTF-8 byte of an answer: comparable between tokenizers."""
        return self.answer_nats / (self.answer_bytes * math.log(2))

    @property
    def accuracy(self) -> float:
        """Share of supervised tokens that the model finds most probable."""
        return self.correct / self.tokens

    def figures(self) -> dict[str, float]:
        """Return the figures by name."""
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "accuracy": self.accuracy,
        }


@torch.no_grad()
def score_batches(
    model: Any,
    batches: Iterable[tuple[dict[str, Any], int]],
    stop_ids: frozenset[int],
    *,
    device: str,
    autocast: AbstractContextManager[Any] | None = None,
) -> Likelihood:
    """Return the likelihood of the supervised tokens.

    Args:
        model: a causal model that attends inside each dialog of a padding-free batch.
        batches: padding-free batches, each with the UTF-8 bytes of its answers.
        stop_ids: ids that end a turn.
        device: where the model is.
        autocast: precision of the matrix products; None is float32, in which published figures are made.
    """
    was_training = model.training
    model.eval()
    base, head = model.base_model, model.get_output_embeddings()
    ends = torch.tensor(sorted(stop_ids), device=device)
    result = Likelihood()
    try:
        for batch, answer_bytes in batches:
            with autocast or nullcontext():
                hidden = base(
                    input_ids=batch["input_ids"].to(device),
                    position_ids=batch["position_ids"].to(device),
                    dialog_lengths=batch["dialog_lengths"],
                    use_cache=False,
                )[0][0].index_select(0, batch["label_positions"].to(device))
                targets = batch["labels"].to(device)
                for start in range(0, len(targets), CHUNK_TOKENS):
                    chunk = slice(start, start + CHUNK_TOKENS)
                    _add(result, head(hidden[chunk]).float(), targets[chunk], ends)
            result.tokens += len(targets)
            result.answer_bytes += answer_bytes
    finally:
        model.train(was_training)
    return result


def _add(result: Likelihood, logits_SV: torch.Tensor, targets_S: torch.Tensor, ends: torch.Tensor) -> None:
    nats = logits_SV.logsumexp(1) - logits_SV.gather(1, targets_S[:, None])[:, 0]
    nats = nats.double()
    result.nats += nats.sum().item()
    result.answer_nats += nats[~torch.isin(targets_S, ends)].sum().item()
    result.correct += int((logits_SV.argmax(1) == targets_S).sum())
