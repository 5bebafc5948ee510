"""A dataset that is read as a stream while a training goes on, in an order that can be gone on with at any dialog.

A pass goes through the shards in an order that the seed gives, in each through its blocks (in that of the seed as
well, where any is as near as the next). Block number n of a pass is that of process n mod P, and of a process's
own blocks number i is prepared by worker i mod W. As blocks come back in their order, the dialogs and their order
are the same with any number of workers. Blocks are put together to groups of at least `data.shuffle_dialogs`, and
each group is shuffled as a whole, by a key that is made of its place. A place is therefore known by four numbers
and an offset: the first block of a group is found without what is before it, and the group read anew.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dialogkit.data.formats import RowError, parse_row
from dialogkit.data.hints import READ_INTO_MEMORY, USE_STARTER
from dialogkit.data.shards import Reader, Shard
from dialogkit.data.sources import TOLD_ROWS, refusal_of_rows
from dialogkit.data.tokens import DialogTokens, encode
from dialogkit.dialog import ChatTokenizer, Dialog
from dialogkit.errors import ConfigError, DataError, DialogKitError
from dialogkit.hints import Call, Change, Either, Hint

_FIRST = ("malformed_first", "refused_first")


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """Return the numbers below `count` in an order that follows from the key, in every version of numpy."""
    return np.random.PCG64(key).random_raw(count).argsort(kind="stable")


class Place(NamedTuple):
    """Where a block is: pass, shard and block in their order, and the blocks of the pass before it."""

    epoch: int = 0
    shard: int = 0
    block: int = 0
    number: int = 0


@dataclass
class Counts:
    """What became of the rows of the first pass so far."""

    rows: int = 0
    malformed: int = 0
    refused: int = 0
    """Sound rows that hold no dialog."""
    cut: int = 0
    dropped: int = 0
    held_out: int = 0
    train: int = 0
    train_tokens: int = 0
    train_supervised_tokens: int = 0
    malformed_first: list[tuple[int, str]] = field(default_factory=list)
    """Number of the block in the pass, and `place: reason`, of the first of them."""
    refused_first: list[tuple[int, str]] = field(default_factory=list)

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum, whose first rows are those of the first blocks, whichever process read them."""
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}).shortened()

    def shortened(self) -> "Counts":
        """Return the same with no more rows than are told."""
        first: dict[str, Any] = {
            name: sorted(getattr(self, name), key=itemgetter(0))[:TOLD_ROWS] for name in _FIRST
        }
        return replace(self, **first)

    def malformed_alone(self) -> "Counts":
        """Return the same of the malformed rows and nothing else."""
        return Counts(malformed=self.malformed, malformed_first=self.malformed_first)

    @classmethod
    def read(cls, held: dict[str, Any]) -> "Counts":
        """Return what JSON made of counts. Raises: KeyError, TypeError, ValueError."""
        return cls(**{**held, **{name: [(int(number), text) for number, text in held[name]] for name in _FIRST}})


def _sum_of(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts."""
    return reduce(Counts.plus, counts, Counts())


@dataclass(frozen=True)
class Plan:
    """What decides the dialogs of a stream and their order."""

    name: str
    shards: Sequence[Shard]
    format: str
    tokenizer: ChatTokenizer
    longest: int
    """Most tokens of a dialog; longer ones are cut."""
    below: int
    """Dialogs whose hash is lower are held out."""
    samples: int | None
    shuffle_dialogs: int
    max_bad_rows: int
    seed: int


@dataclass
class Prepared:
    """A block as tokens; `train` are the dialogs of it to train on, `share` is the part of the pass before it."""

    place: Place
    share: float
    tokens: DialogTokens
    train: NDArray[np.int64]
    counts: Counts


class _Failure(NamedTuple):
    """An error of a worker; the exception itself would come back with a traceback for its message."""

    kind: type[DialogKitError]
    message: str
    hint: Hint | None
    details: Sequence[str]


class _Blocks(IterableDataset[Any]):
    """The blocks of one process from a place on, without end; each of its workers prepares every W-th."""

    def __init__(self, plan: Plan, start: Place, rank: int, world: int, pass_blocks: int | None) -> None:
        self._plan, self._start, self._rank, self._world = plan, start, rank, world
        self._pass_blocks = pass_blocks
        self._told = {"malformed": 0, "refused": 0}

    def __iter__(self) -> Iterator[Prepared | _Failure]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            for index, (place, block, share, reader) in enumerate(self._own()):
                if index % workers == worker:
                    yield self._prepared(place, block, share, reader)
        except DialogKitError as error:
            yield _Failure(type(error), error.message, error.hint, error.details)

    def _own(self) -> Iterator[tuple[Place, int, float, Reader]]:
        """Yield place, block of the shard, share of the pass and reader of each block of this process."""
        plan, (epoch, shard, block, number) = self._plan, self._start
        begun_at = number
        while True:
            # A part of the dialogs is to be the same part in each pass.
            key = (plan.seed, epoch) if plan.samples is None else (0, 0)
            order, found = shuffled(len(plan.shards), *key), False
            for index in range(shard, len(order)):
                with closing(plan.shards[order[index]].open()) as reader:
                    known, chosen = reader.blocks, None
                    if known is not None and reader.seekable:
                        chosen = shuffled(known, *key, int(order[index]))
                    while reader.has(block) and (self._pass_blocks is None or number < self._pass_blocks):
                        if number % self._world == self._rank:
                            found = True
                            share = (index + (block / known if known else 0.0)) / len(order)
                            nth = int(chosen[block]) if chosen is not None else block
                            yield Place(epoch, index, block, number), nth, share, reader
                        block, number = block + 1, number + 1
                block = 0
            if not found and not begun_at:
                raise DataError(
                    f"the {number} blocks of {plan.name} are too few for {self._world} processes: number "
                    f"{self._rank + 1} has none",
                    hint=READ_INTO_MEMORY,
                )
            epoch, shard, number, begun_at = epoch + 1, 0, 0, 0

    def _prepared(self, place: Place, block: int, share: float, reader: Reader) -> Prepared:
        plan, counts = self._plan, Counts()
        dialogs: list[Dialog] = []
        for number, content, problem in reader.rows(block):
            counts.rows += 1
            if problem is None:
                try:
                    dialogs.append(parse_row(content, plan.format))
                    continue
                except RowError as error:
                    counts.refused += 1
                    kind, first, problem = "refused", counts.refused_first, str(error)
            else:
                counts.malformed += 1
                kind, first = "malformed", counts.malformed_first
            if place.epoch == 0 and self._told[kind] < TOLD_ROWS:
                self._told[kind] += 1  # no more, as finding a line's number takes reading what is before it
                first.append((place.number, f"{reader.place(block, number)}: {problem}"))
        (tokens, origins), counts.dropped, counts.cut = encode(dialogs, plan.tokenizer, plan.longest)
        train = np.flatnonzero(origins.hashes >= np.uint64(plan.below))
        counts.held_out = len(origins.hashes) - len(train)
        return Prepared(place, share, tokens, train, counts)


def _as_it_is(item: Any) -> Any:
    return item


class _Group:
    """Blocks whose dialogs are shuffled together."""

    def __init__(self, blocks: list[Prepared], taken: int, seed: int) -> None:
        self.blocks, self.taken = blocks, taken
        self.place = blocks[0].place
        # Of each dialog its block, and its number there.
        self._block = np.repeat(np.arange(len(blocks)), [len(block.train) for block in blocks])
        self._inside = np.concatenate([block.train for block in blocks])
        self._order = shuffled(len(self._block), seed, *self.place)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        nth = self._order[index]
        tokens = self.blocks[int(self._block[nth])].tokens
        return tokens[int(self._inside[nth])]

    def counts(self) -> Counts:
        """Return what became of the rows, if they are of the first pass."""
        return _sum_of(block.counts for block in self.blocks if block.place.epoch == 0)


@dataclass
class _State:
    """The place in a stream at which a training goes on, and what was counted before it."""

    world: int
    place: Place = field(default_factory=Place)
    """First block of the group that is read."""
    offset: int = 0
    """Dialogs of the group that were taken."""
    taken: int = 0
    """Dialogs of the pass before the group."""
    pass_blocks: int | None = None
    """Blocks of a pass, where it ends before the shards do."""
    counts: Counts = field(default_factory=Counts)
    """Of this process's rows, up to the group."""
    reached: Counts = field(default_factory=Counts)
    """The same, up to the end of the group."""


class DialogStream:
    """The training dialogs of a stream, without end: pass follows pass.

    Attributes:
        plan: what decides them.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._read = self._others = Counts()
        """Of this process's rows with those read ahead, and of the other processes' rows as they last told."""
        self._state: _State | None = None
        self._group: _Group | None = None
        self._going: Generator[dict[str, Any]] | None = None

    def restore(self, folder: Path | None) -> None:
        """Go to the place that a checkpoint holds, or to the beginning. Raises: what `require_place` raises."""
        self.close()
        self._group = None
        self._read = self._others = Counts()
        if folder is None:
            self._state = _State(process_share()[1])
            return
        self._state = self._held(folder)
        self._read = self._state.counts

    def require_place(self, folder: Path) -> None:
        """Raise DataError if a checkpoint holds no place, ConfigError if that of another number of processes."""
        self._held(folder)

    def _held(self, folder: Path) -> _State:
        rank, world = process_share()
        try:
            held = json.loads((folder / _file_name(rank)).read_text(encoding="utf-8"))
            counts = {name: Counts.read(held[name]) for name in ("counts", "reached")}
            state = _State(**{**held, **counts, "place": Place(*held["place"])})
            if any(number < 0 for number in (*state.place, state.offset, state.taken, state.pass_blocks or 0)):
                raise ValueError("a number below zero")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{folder.name} holds no place in the stream: {error}; a new run can start with its weights",
                hint=Call("train", settings={"from": str(folder)}),
            ) from None
        if state.world != world:
            raise ConfigError(
                f"the stream was read by {state.world} process{'es' * (state.world > 1)} and not by {world}, "
                "and the places of those say nothing of another number",
                hint=Either(Change({"runtime.devices": state.world}), "as many processes over all machines"),
            )
        return state

    def save(self, folder: Path) -> None:
        """Write the place after the last batch into a checkpoint, one file for each process. Raises: OSError."""
        rank, world = process_share()
        state = self._state or _State(world)
        (folder / _file_name(rank)).write_text(json.dumps(asdict(state)), encoding="utf-8")

    @property
    def counts(self) -> Counts:
        """What became of the rows of the first pass so far: of this process's, and the others' as last told."""
        return self._others if self._state is None else self._state.reached.plus(self._others)

    def tell(self) -> tuple[Counts, Counts]:
        """Return what became of this process's rows so far, and those malformed, of which some were read ahead."""
        return (self._state.reached if self._state else Counts()), self._read.malformed_alone()

    def hear(self, told: Sequence[tuple[Counts, Counts]]) -> None:
        """Take what each process tells, in their order. Raises: DataError for more malformed rows than allowed."""
        rank, _ = process_share()
        self._others = _sum_of(so_far for number, (so_far, _) in enumerate(told) if number != rank)
        self._require_sound(_sum_of(malformed for _, malformed in told))

    def _require_sound(self, read: Counts) -> None:
        if read.malformed > self.plan.max_bad_rows:
            first = [text for _, text in read.malformed_first]
            raise refusal_of_rows(read.malformed, first, streamed=True)

    @property
    def passes(self) -> float:
        """Passes that were made, as far as the number of blocks is known."""
        if self._state is None or self._group is None:
            return 0.0
        first, last = self._group.blocks[0].share, self._group.blocks[-1].share
        done = self._state.offset / max(1, len(self._group))
        if quota := self._quota(*process_share()):
            return self._group.place.epoch + (self._group.taken + self._state.offset) / quota
        return self._group.place.epoch + first + (last - first) * done

    def batches(
        self, size: int, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]], workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield batches of `size` dialogs of this process from its place on; `workers` tokenize ahead.

        Raises: DataError where the stream cannot be read, and for more malformed rows than are allowed.
        """
        dialogs = self.dialogs(workers)
        while True:
            yield collate([next(dialogs) for _ in range(size)])

    def dialogs(self, workers: int = 0) -> Generator[dict[str, Any]]:
        """Yield the dialogs one by one, as `batches` does."""
        if self._state is None:
            self.restore(None)
        self.close()
        self._going = self._dialogs(workers)
        return self._going

    def close(self) -> None:
        """End the workers."""
        if self._going is not None:
            self._going.close()
            self._going = None

    def _dialogs(self, workers: int) -> Generator[dict[str, Any]]:
        state = self._state
        assert state is not None
        with closing(self._groups(state, workers)) as groups:
            group = next(group for group in groups if isinstance(group, _Group))
            while True:
                upcoming: _Group | int = 0
                self._group = group
                state.place, state.taken = group.place, group.taken
                state.reached = state.counts.plus(group.counts())
                for index in range(state.offset, len(group)):
                    # Block by block, so that there is never a whole group to wait for.
                    if not isinstance(upcoming, _Group) and upcoming <= index:
                        upcoming = next(groups)
                    state.offset = index + 1
                    yield group[index]
                while not isinstance(upcoming, _Group):
                    upcoming = next(groups)
                group, state.counts, state.offset = upcoming, state.reached, 0

    def _groups(self, state: _State, workers: int) -> "Generator[_Group | int]":
        """Yield each group; before it, after each of its blocks, how many dialogs it has so far."""
        plan, (rank, world) = self.plan, process_share()
        quota, taken = self._quota(rank, world), state.taken
        blocks: list[Prepared] = []
        collected, start = 0, state.place
        self._read, trained_on = state.counts, state.counts.train
        while True:
            ended_early = False
            with closing(self._blocks(start, rank, world, workers)) as read:
                for block in read:
                    if block.place.epoch > start.epoch:  # a pass ends, and so does its last group
                        if blocks:
                            yield self._shuffled(blocks, taken - collected)
                        if not trained_on:
                            raise DataError(f"{plan.name} leaves no dialog to train on", hint=USE_STARTER)
                        blocks, collected, taken, start = [], 0, 0, block.place
                    if start.epoch == 0:
                        self._read = self._read.plus(block.counts)
                        self._require_sound(self._read)
                    if quota is not None:
                        block.train = block.train[: quota - taken]
                    self._count(block)
                    blocks.append(block)
                    collected += len(block.train)
                    taken += len(block.train)
                    trained_on += len(block.train)
                    if taken == quota and state.pass_blocks is None:
                        state.pass_blocks = block.place.number + 1
                        ended_early = True
                    if collected >= plan.shuffle_dialogs or ended_early:
                        yield self._shuffled(blocks, taken - collected)
                        blocks, collected = [], 0
                    else:
                        yield collected
                    if ended_early:
                        break
            # Only now is it known where a pass ends, which those who read ahead have to know.
            start, taken = Place(start.epoch + 1), 0

    def _shuffled(self, blocks: list[Prepared], taken: int) -> _Group:
        return _Group(blocks, taken, self.plan.seed)

    def _quota(self, rank: int, world: int) -> int | None:
        """Return the dialogs of a pass for this process, where not all are wanted."""
        samples = self.plan.samples
        return None if samples is None else samples // world + (rank < samples % world)

    @staticmethod
    def _count(block: Prepared) -> None:
        learned = np.concatenate([[0], np.cumsum(block.tokens.supervised)])[block.tokens.offsets]
        block.counts.train = len(block.train)
        block.counts.train_tokens = int(block.tokens.lengths[block.train].sum())
        block.counts.train_supervised_tokens = int(np.diff(learned)[block.train].sum())

    def _blocks(self, start: Place, rank: int, world: int, workers: int) -> Generator[Prepared]:
        assert self._state is not None
        read = _Blocks(self.plan, start, rank, world, self._state.pass_blocks)
        # A generator of its own: the global one, which dropout uses, is to be the same with workers and without.
        ahead = (
            DataLoader(
                read, batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator()
            )
            if workers
            else read
        )
        for item in ahead:
            if isinstance(item, _Failure):
                raise item.kind(item.message, hint=item.hint, details=list(item.details))
            yield item


def process_share() -> tuple[int, int]:
    """Return the number of this process (from 0) among those that train together, and how many they are."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _file_name(rank: int) -> str:
    return f"stream-{rank}.json"
