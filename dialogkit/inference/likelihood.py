"""Likelihood of the held-out answers under a model.

Shapes: T tokens of a padding-free batch, S supervised targets, N dialogs, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

CHUNK_TOKENS = 256
LIKELY = 5
"""A token within this rank counts for the top-5 accuracy."""


@dataclass(frozen=True)
class Likelihood:
    """Sums over the supervised tokens of each dialog, [N]; every metric is a quotient of their sums."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.float64]
    answer_nats: NDArray[np.float64]
    """Nats of the answers' text, without the ends of turn."""
    answer_bytes: NDArray[np.float64]
    ends: NDArray[np.float64]
    """Number of ends of turn."""
    correct: NDArray[np.float64]
    """Tokens that the model ranks first."""
    likely: NDArray[np.float64]
    """Tokens that the model ranks among the first five."""

    def sums(self) -> list[float]:
        """Return the sums over all dialogs, one per field."""
        return [float(getattr(self, field.name).sum()) for field in fields(self)]

    @classmethod
    def of_sums(cls, sums: Sequence[float]) -> "Likelihood":
        """Return a likelihood with these sums, as of one dialog; its `figures` are those of all summed."""
        return cls(*(np.array([total]) for total in sums))

    @classmethod
    def nothing(cls) -> list[float]:
        """Return the sums over no dialogs."""
        return [0.0] * len(fields(cls))

    def select(self, chosen: NDArray[Any]) -> "Likelihood":
        """Return the sums of some dialogs, given by indices or a mask."""
        return Likelihood(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def resampled(self, weights_RN: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        """Return each metric in R resamples, in which dialog n counts weights[r, n] times.

        Means over all supervised tokens: nats per token, perplexity, accuracies; nats per end of turn; and bits
        per UTF-8 byte of the answers' text, which compares models with different tokenizers.
        """
        sums = {field.name: weights_RN @ getattr(self, field.name) for field in fields(self)}
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            per_token = sums["nats"] / sums["tokens"]
            return {
                "nats_per_token": per_token,
                "perplexity": np.exp(np.minimum(per_token, 700.0)),
                "bits_per_byte": sums["answer_nats"] / (sums["answer_bytes"] * math.log(2)),
                "accuracy": sums["correct"] / sums["tokens"],
                "top5_accuracy": sums["likely"] / sums["tokens"],
                "end_of_turn_nats": (sums["nats"] - sums["answer_nats"]) / sums["ends"],
            }

    def figures(self) -> dict[str, float]:
        """Return the metrics by name."""
        return {name: float(value[0]) for name, value in self.resampled(np.ones((1, len(self.nats)))).items()}


@torch.no_grad()
def score_batches(
    model: Any,
    batches: Iterable[tuple[dict[str, Any], Sequence[int]]],
    stop_ids: frozenset[int],
    *,
    device: str,
    autocast: AbstractContextManager[Any] | None = None,
    within: Callable[[Callable[[], Any]], Any] = lambda compute: compute(),
) -> Likelihood:
    """Return the likelihood of the supervised tokens per dialog.

    Args:
        model: a causal model that attends inside each dialog of a padding-free batch.
        batches: padding-free batches, each with the UTF-8 bytes of the answers per dialog.
        stop_ids: ids that end a turn.
        device: where the model is.
        autocast: precision of the matrix products; None: float32, as for published metrics.
        within: runs code that uses the model; for a sharded one, whose weights are only gathered inside a call.
    """
    was_training = model.training
    model.eval()
    base, head = model.base_model, model.get_output_embeddings()
    ends = torch.tensor(sorted(stop_ids), device=device)
    batch_sums: list[torch.Tensor] = []
    answer_bytes: list[int] = []
    try:
        for batch, sizes in batches:
            with autocast or nullcontext():
                targets = batch["labels"].to(device)
                nats_S3 = within(partial(_score_batch, base, head, batch, targets))
            is_end = torch.isin(targets, ends)
            columns = torch.cat(
                [
                    nats_S3[:, :1],
                    torch.ones_like(nats_S3[:, :1]),
                    torch.where(is_end[:, None], 0.0, nats_S3[:, :1]),
                    is_end[:, None].double(),
                    nats_S3[:, 1:],
                ],
                1,
            )
            starts = torch.tensor(batch["dialog_lengths"]).cumsum(0)
            dialog_S = torch.bucketize(batch["label_positions"], starts, right=True).to(device)
            sums = torch.zeros((len(starts), columns.shape[1]), dtype=torch.float64, device=device)
            batch_sums.append(sums.index_add_(0, dialog_S, columns).cpu())
            answer_bytes += sizes
    finally:
        model.train(was_training)
    nats, tokens, answer_nats, number_of_ends, correct, likely = torch.cat(batch_sums).numpy().T
    sized = np.array(answer_bytes, dtype=np.float64)
    return Likelihood(nats, tokens, answer_nats, sized, number_of_ends, correct, likely)


def _score_batch(base: Any, head: Any, batch: dict[str, Any], targets_S: torch.Tensor) -> torch.Tensor:
    """Return `_score` of each target of a batch, [S, 3]; calls each module once."""
    device = targets_S.device
    hidden = base(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        dialog_lengths=batch["dialog_lengths"],
        use_cache=False,
    )[0][0].index_select(0, batch["label_positions"].to(device))
    plain = head.forward

    def score(hidden_SD: torch.Tensor) -> torch.Tensor:
        scored = [
            _score(plain(hidden_SD[start : start + CHUNK_TOKENS]).float(), targets_S[start : start + CHUNK_TOKENS])
            for start in range(0, len(targets_S), CHUNK_TOKENS)
        ]
        return torch.cat(scored) if scored else hidden_SD.new_zeros((0, 3), dtype=torch.float64)

    # Replaces the head's forward, so that hooks on the head (which gather sharded weights) still run.
    head.__dict__["forward"] = score
    try:
        nats_S3: torch.Tensor = head(hidden)
        return nats_S3
    finally:
        head.__dict__.pop("forward")


def _score(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Return for each target: nats, whether it ranks first, whether it ranks among the first five; [S, 3]."""
    nats = cross_entropy(logits_SV, targets_S, reduction="none").double()
    highest = logits_SV.topk(min(LIKELY, logits_SV.shape[1]), 1).values
    of_target = logits_SV.gather(1, targets_S[:, None])
    return torch.cat([nats[:, None], (of_target >= highest[:, [0, -1]]).double()], 1)
