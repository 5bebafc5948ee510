"""Which dialogs are in a global batch, which process works on which of them, and how many at once.

The global batch of a step is the same set of dialogs for any number of processes and micro-batches. Within it the
dialogs are balanced by their tokens, not by their number, so that no process waits for one with longer dialogs.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback


def balance(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Split numbered dialogs into groups with about the same number of tokens each.

    Longest first, each into the group with the fewest tokens: at most a third above the optimum (Graham 1969,
    "Bounds on multiprocessing timing anomalies"). With at least as many dialogs as groups, no group is empty.
    """
    lightest = [(0, group) for group in range(groups)]
    balanced: list[list[int]] = [[] for _ in range(groups)]
    for dialog in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        tokens, group = heapq.heappop(lightest)
        balanced[group].append(dialog)
        heapq.heappush(lightest, (tokens + lengths[dialog], group))
    return balanced


def balance_micro_batches(lengths: Sequence[int], processes: int, micro_batches: int) -> list[list[list[int]]]:
    """Split the dialogs of a global batch into micro-batches for each process.

    Returns the numbers of the dialogs by process and micro-batch. A process with a long micro-batch gets a short
    one next.
    """

    def tokens(group: list[int]) -> int:
        return sum(lengths[dialog] for dialog in group)

    groups = sorted(map(sorted, balance(lengths, processes * micro_batches)), key=tokens, reverse=True)
    assigned: list[list[list[int]]] = [[] for _ in range(processes)]
    for start in range(0, len(groups), processes):
        # The longest of this turn goes to the process with the fewest tokens so far.
        ahead = sorted(range(processes), key=lambda process: sum(map(tokens, assigned[process])))
        for process, group in zip(ahead, groups[start : start + processes], strict=True):
            assigned[process].append(group)
    return assigned


def parts_within(lengths: Sequence[int], limit: int, *, in_rows: bool) -> list[list[int]]:
    """Split numbered dialogs into parts of at most `limit` tokens; a dialog longer than that is a part by itself.

    Longest first, so that each part has dialogs of similar lengths: a model that computes them `in_rows` of one
    length computes their padding as well, which counts.
    """
    parts: list[list[int]] = []
    room = 0
    for dialog in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        tokens = lengths[parts[-1][0]] if in_rows and parts else lengths[dialog]
        if tokens > room:
            tokens, room = lengths[dialog], limit
            parts.append([])
        parts[-1].append(dialog)
        room -= tokens
    return parts


def collate_in_parts(
    dialogs: Sequence[dict[str, Any]], *, collate: Callable[[Any], dict[str, Any]], limit: int, in_rows: bool
) -> dict[str, Any]:
    """Return a batch whose `parts` are batches of at most `limit` tokens, to be computed one after another."""
    parts = parts_within([len(dialog["input_ids"]) for dialog in dialogs], limit, in_rows=in_rows)
    return {"parts": [collate([dialogs[number] for number in part]) for part in parts]}


def parts_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a batch; one that was not split is its only part."""
    parts: list[dict[str, Any]] = batch.get("parts", [batch])
    return parts


class BalancedBatches(Sampler[list[int]]):
    """The micro-batches of one process, from global batches in the order that a single process has.

    A last batch with fewer dialogs than micro-batches leaves some of them empty. These get a dialog without
    supervised tokens, given by a negative index `~i`: every process has to take part in every step.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, micro_batches: int, processes: int, process: int
    ) -> None:
        self._lengths = lengths
        self._batch_size, self._micro_batches = batch_size, micro_batches
        self._processes, self._process = processes, process
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
        return self.steps * self._micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            lengths = [int(self._lengths[dialog]) for dialog in batch]
            shortest = min(range(len(batch)), key=lengths.__getitem__)
            for group in balance_micro_batches(lengths, self._processes, self._micro_batches)[self._process]:
                yield [batch[number] for number in group] or [~batch[shortest]]


class DialogsWithFillers(Dataset[Any]):
    """A dataset in which a negative index `~i` yields dialog i as a filler, with no supervised tokens."""

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
    """Sets the sampler's epoch, which HF only does for its own samplers."""

    def __init__(self, batches: BalancedBatches) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Derive the epoch from the number of completed steps."""
        self._batches.set_epoch(state.global_step // self._batches.steps)
