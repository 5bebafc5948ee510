"""Which dialogs are in a global batch, and which process works on which of them.

The global batch of a step is the same set of dialogs for any number of processes and parts. Inside it the dialogs
are dealt out by their tokens, not by their number, so that no process waits for one with longer dialogs.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Deal numbered dialogs out to hands that hold about the same number of tokens; return those of each hand.

    The longest first, each to the hand that holds least: at most a third more than the best way (Graham 1969,
    "Bounds on multiprocessing timing anomalies"). Where there are as many dialogs as hands, no hand is empty.
    """
    least = [(0, hand) for hand in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for dialog in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        tokens, hand = heapq.heappop(least)
        dealt[hand].append(dialog)
        heapq.heappush(least, (tokens + lengths[dialog], hand))
    return dealt


def deal_parts(lengths: Sequence[int], processes: int, parts: int) -> list[list[list[int]]]:
    """Deal the dialogs of a global batch out to processes, each of which works on parts one after the other.

    Returns numbers of dialogs by process and part, each in their order. Who has a long part gets a short one.
    """
    hands = sorted((sorted(hand) for hand in deal(lengths, processes * parts)), key=lambda h: -_sum(lengths, h))
    held: list[list[list[int]]] = [[] for _ in range(processes)]
    for turn in range(parts):
        these = hands[turn * processes : (turn + 1) * processes]
        # The longest of this turn goes to whom the turns before left with least.
        for process, hand in zip(
            sorted(range(processes), key=lambda p: _tokens(lengths, held[p])), these, strict=True
        ):
            held[process].append(hand)
    return held


def _sum(lengths: Sequence[int], hand: Sequence[int]) -> int:
    return sum(lengths[dialog] for dialog in hand)


def _tokens(lengths: Sequence[int], hands: Sequence[Sequence[int]]) -> int:
    return sum(_sum(lengths, hand) for hand in hands)


class DealtBatches(Sampler[list[int]]):
    """The parts of each global batch that one process works on, in the order of a single process's batches.

    A last batch with fewer dialogs than there are parts leaves some without any. These get a dialog that counts
    for nothing, as its index with all bits inverted: every process has to take part in every step.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, parts: int, processes: int, process: int
    ) -> None:
        self._lengths = lengths
        self._batch_size, self._parts, self._processes, self._process = batch_size, parts, processes, process
        # What accelerate makes of HF's own sampler, which a single process uses.
        self._order = SeedableRandomSampler(range(len(lengths)))

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self._lengths) / self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return self.steps * self._parts

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            lengths = [int(self._lengths[dialog]) for dialog in batch]
            shortest = min(range(len(batch)), key=lengths.__getitem__)
            for part in deal_parts(lengths, self._processes, self._parts)[self._process]:
                yield [batch[number] for number in part] or [~batch[shortest]]


class DealtDialogs(Dataset[Any]):
    """Dialogs of which those with an inverted index count for nothing."""

    def __init__(self, dialogs: Any) -> None:
        self._dialogs = dialogs

    def __len__(self) -> int:
        return len(self._dialogs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        dialog: dict[str, Any] = self._dialogs[index if index >= 0 else ~index]
        if index < 0:
            dialog = {**dialog, "supervised": dialog["supervised"] & False}
        return dialog


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch, which HF only does where it made the sampler itself."""

    def __init__(self, batches: DealtBatches) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the epoch by the steps that are behind."""
        self._batches.set_epoch(state.global_step // self._batches.steps)
