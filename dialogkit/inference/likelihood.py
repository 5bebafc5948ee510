"""Likelihood of the held-out answers under a model.

Shapes: T tokens of a padding-free batch, S supervised targets, N dialogs, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from dialogkit.distributed.sharding import inside, is_sharded
from dialogkit.inference.intervals import Interval, Quotient, intervals
from dialogkit.inference.products import onednn_products
from dialogkit.logits import final_logits
from dialogkit.shapes import pad_to_common_length
from dialogkit.system import cpu_threads
from dialogkit.system.memory import keep_freed_memory

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

    def quotients(self) -> dict[str, Quotient]:
        """Return the metrics that are quotients of sums.

        Means over all supervised tokens: nats per token, accuracies; nats per end of turn; and bits per UTF-8 byte
        of the answers' text, which compares models with different tokenizers.
        """
        return {
            "nats_per_token": Quotient(self.nats, self.tokens),
            "bits_per_byte": Quotient(self.answer_nats, self.answer_bytes * math.log(2)),
            "accuracy": Quotient(self.correct, self.tokens, 1.0),
            "top5_accuracy": Quotient(self.likely, self.tokens, 1.0),
            "end_of_turn_nats": Quotient(self.nats - self.answer_nats, self.ends),
        }

    def figures(self) -> dict[str, float]:
        """Return the metrics by name, with the perplexity: that of the mean nats per token."""
        values = {name: quotient.value for name, quotient in self.quotients().items()}
        return {**values, "perplexity": _perplexity(values["nats_per_token"])}

    def intervals(self) -> dict[str, Interval]:
        """Return the interval of each metric over the dialogs."""
        bounds = intervals(self.quotients())
        if (of_nats := bounds.get("nats_per_token")) is not None:
            low, high = of_nats
            bounds["perplexity"] = (_perplexity(low), _perplexity(high))
        return bounds


def _perplexity(nats: float) -> float:
    return math.nan if math.isnan(nats) else math.exp(min(nats, 700.0))


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

    The model attends inside each dialog of padding-free batches; each has the UTF-8 bytes of its answers per
    dialog. Matrix products are in float32, as for published metrics, unless `autocast` changes that. `within` runs
    code that uses the model: the weights of a sharded one are only gathered inside a call.
    """
    base, head, finish = model.base_model, model.get_output_embeddings(), final_logits(model)
    ends = torch.tensor(sorted(stop_ids))
    batch_sums: list[torch.Tensor] = []
    answer_bytes: list[int] = []
    with _ready_to_score(model, device, in_float32=autocast is None):
        for batch, sizes in batches:
            targets = batch["labels"]
            with autocast or nullcontext():
                scores_S3 = within(partial(_score_batch, base, head, finish, batch, targets.to(device)))
            scores_S3 = scores_S3.cpu().double()  # MPS has no float64; and here the order of the sums is fixed
            is_end, nats, ranks = torch.isin(targets, ends)[:, None], scores_S3[:, :1], scores_S3[:, 1:]
            answer_nats = torch.where(is_end, 0.0, nats)
            columns = torch.cat([nats, torch.ones_like(nats), answer_nats, is_end.double(), ranks], 1)
            starts = torch.tensor(batch["dialog_lengths"]).cumsum(0)
            dialog_S = torch.bucketize(batch["label_positions"], starts, right=True)
            sums = torch.zeros((len(starts), columns.shape[1]), dtype=torch.float64)
            batch_sums.append(sums.index_add_(0, dialog_S, columns))
            answer_bytes += sizes
            cpu_threads.of_process.adapt()
    nats, tokens, answer_nats, number_of_ends, correct, likely = torch.cat(batch_sums).numpy().T
    sized = np.array(answer_bytes, dtype=np.float64)
    return Likelihood(nats, tokens, answer_nats, sized, number_of_ends, correct, likely)


@contextmanager
def _ready_to_score(model: Any, device: str, *, in_float32: bool) -> Iterator[None]:
    was_training = model.training
    model.eval()
    if device == "cpu" and not is_sharded(model):  # runs that shard are short of memory
        keep_freed_memory()
    try:
        with onednn_products(model) if device == "cpu" and in_float32 else nullcontext():
            yield
    finally:
        model.train(was_training)


def _score_batch(
    base: Any,
    head: Any,
    finish: Callable[[torch.Tensor], torch.Tensor],
    batch: dict[str, Any],
    targets_S: torch.Tensor,
) -> torch.Tensor:
    """Return `_score` of each target of a batch, [S, 3]; calls each module once."""
    device, input_ids, position_ids = targets_S.device, batch["input_ids"], batch["position_ids"]
    if on_cpu := device.type == "cpu":  # what is added belongs to no dialog
        input_ids, position_ids = pad_to_common_length(input_ids, 1), pad_to_common_length(position_ids, 1)
    hidden = base(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        dialog_lengths=batch["dialog_lengths"],
        dialog_bounds=batch["dialog_bounds"].to(device),
        use_cache=False,
    )[0][0].index_select(0, batch["label_positions"].to(device))
    plain = head.forward

    def score(hidden_SD: torch.Tensor) -> torch.Tensor:
        rows, targets_R = hidden_SD, targets_S
        if on_cpu:
            rows, targets_R = pad_to_common_length(rows, 0), pad_to_common_length(targets_R, 0)
        chunks = zip(torch.split(rows, CHUNK_TOKENS), torch.split(targets_R, CHUNK_TOKENS), strict=True)
        scores = [_score(finish(plain(hidden)).float(), targets) for hidden, targets in chunks]
        return torch.cat(scores)[: len(targets_S)]

    return inside(head, score, hidden)


def _score(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Return for each target: nats, whether it ranks first, whether it ranks among the first five; [S, 3]."""
    nats = cross_entropy(logits_SV, targets_S, reduction="none")
    highest = logits_SV.topk(min(LIKELY, logits_SV.shape[1]), 1).values
    of_target = logits_SV.gather(1, targets_S[:, None])
    return torch.cat([nats[:, None], (of_target >= highest[:, [0, -1]]).float()], 1)
