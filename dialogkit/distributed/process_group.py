"""The ranks of a run and their collective calls.

All of it is a no-op in a single process. Besides gradients, ranks exchange what they need through a
gloo group of its own, whose calls have no short time limit: the main process may generate replies for minutes
while other ranks wait.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from dialogkit.distributed.rank import Rank

T = TypeVar("T")

STEP_TIMEOUT = timedelta(minutes=30)
"""How long a training step waits for the other ranks; one that takes longer has hung."""
CONTROL_TIMEOUT = timedelta(days=7)
"""How long ranks wait while the main process works alone."""


@dataclass
class Settled:
    """The error that all ranks exit with."""

    error: BaseException
    reported_by: int | None
    """The machine that prints it, by its first rank; None if this rank published it."""


@dataclass
class Group:
    """This rank's membership in the process group."""

    rank: Rank
    store: Any
    """Key-value store of this start of the ranks."""
    restart_store: Any
    """The same store across restarts."""
    control: Any
    """Gloo group for everything but gradients."""
    finished: threading.Event = field(default_factory=threading.Event)
    failed: bool = False
    settled: Settled | None = None
    begun: Path | None = None
    """Folder of the run that these ranks had begun before they were restarted."""


_group: Group | None = None


def current() -> Group | None:
    """Return this rank's group; None in a single process."""
    return _group


def set_current(group: Group | None) -> None:
    """Set or clear this rank's group."""
    global _group
    _group = group


def is_initialized() -> bool:
    """Return whether this process belongs to a group, if only of one rank."""
    return _group is not None


def world_size() -> int:
    """Return the number of ranks."""
    return 1 if _group is None else _group.rank.world_size


def rank() -> int:
    """Return the rank of this process, from 0."""
    return 0 if _group is None else _group.rank.rank


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return 1 if _group is None else _group.rank.local_world_size


def is_main_process() -> bool:
    """Return whether this is rank 0, which prints and writes for all."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if _group is not None:
        _all_reduce([0], "int64")


def all_reduce_ints(numbers: list[int]) -> list[int]:
    """Return the sums of integers over the ranks."""
    return numbers if world_size() == 1 else [int(number) for number in _all_reduce(numbers, "int64")]


def all_reduce_floats(numbers: list[float]) -> list[float]:
    """Return the sums of floats over the ranks, in float64 and the same on each."""
    return numbers if world_size() == 1 else [float(number) for number in _all_reduce(numbers, "float64")]


def _all_reduce(numbers: list[Any], dtype: str) -> list[Any]:
    import torch

    assert _group is not None
    tensor = torch.tensor(numbers, dtype=getattr(torch, dtype))
    torch.distributed.all_reduce(tensor, group=_group.control)
    return list(tensor.tolist())


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    import torch

    assert _group is not None
    held: list[Any] = [value]
    torch.distributed.broadcast_object_list(held, src=0, group=_group.control, device=torch.device("cpu"))
    return held[0]  # type: ignore[no-any-return]


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    assert _group is not None
    held: list[Any] = [None] * world_size()
    distributed.all_gather_object(held, value, group=_group.control)
    return held


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let rank 0 work first, then the first rank of each machine, then all others, which use the caches."""
    turn = 0 if is_main_process() else 1 if _group is not None and _group.rank.local_rank == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()
