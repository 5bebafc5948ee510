"""A dataset that is read as a stream during training and can be resumed at any dialog.

Each pass visits the shards in a seeded order, and their blocks too where random access is cheap, otherwise from
first to last. Rank n mod P reads block n of a pass; worker i mod W prepares block i of its rank. Blocks are
returned in order, so the dialogs and their order do not depend on the number of workers.
Consecutive blocks form groups of at least `data.shuffle_dialogs` dialogs, and each group is shuffled as a whole
with a key made of its position. Four numbers and an offset therefore identify a position in the stream: to resume,
the first block of the group is found directly, and the group is read again.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dialogkit.config.data import DataConfig
from dialogkit.data.hints import READ_INTO_MEMORY, USE_STARTER
from dialogkit.data.row_parser import RowParser
from dialogkit.data.shards import Reader, Stream
from dialogkit.data.sources import SHOWN_ROWS, malformed_rows_error
from dialogkit.data.tokens import DialogTokens, encode
from dialogkit.data.turns import RowError
from dialogkit.dialog import ChatTokenizer, Dialog
from dialogkit.distributed import process_group
from dialogkit.errors import ConfigError, DataError, DialogKitError
from dialogkit.hints import Call, Change, Either

_FILE = "stream-{}.json"
"""A rank's position in a checkpoint."""
_FIRST = ("malformed_first", "refused_first")


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of the numbers below `count` that depends on the key alone, in every NumPy version."""
    return np.random.PCG64(key).random_raw(count).argsort(kind="stable")


class Position(NamedTuple):
    """Where a block is: pass, shard and block by their order in it, and its number in the pass."""

    epoch: int = 0
    shard: int = 0
    block: int = 0
    number: int = 0


@dataclass
class Counts:
    """Counts of the rows of the first pass so far."""

    rows: int = 0
    malformed: int = 0
    refused: int = 0
    """Well-formed rows without a dialog that can be learned."""
    cut: int = 0
    dropped: int = 0
    held_out: int = 0
    train: int = 0
    train_tokens: int = 0
    train_supervised_tokens: int = 0
    malformed_first: list[tuple[int, str]] = field(default_factory=list)
    """Block number in the pass and `place: reason` of the first malformed rows."""
    refused_first: list[tuple[int, str]] = field(default_factory=list)

    def __add__(self, other: "Counts") -> "Counts":
        """Return the sum; its first rows are those of the first blocks, whichever rank read them."""
        total = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        first = {name: sorted(total[name], key=itemgetter(0))[:SHOWN_ROWS] for name in _FIRST}
        return Counts(**{**total, **first})

    @classmethod
    def read(cls, held: dict[str, Any]) -> "Counts":
        """Return counts from their JSON. Raises: KeyError, TypeError, ValueError."""
        return cls(**{**held, **{name: [(int(number), text) for number, text in held[name]] for name in _FIRST}})


@dataclass(frozen=True)
class Plan:
    """Everything that determines the dialogs of a stream and their order."""

    source: Stream
    config: DataConfig
    format: str
    tokenizer: ChatTokenizer
    longest: int
    """Most tokens of a dialog; longer ones are cut."""
    below: int
    """Dialogs with a lower hash are held out."""
    seed: int


@dataclass
class Prepared:
    """The tokenized training dialogs of a block; `fraction` is the part of the pass before it."""

    position: Position
    fraction: float
    tokens: DialogTokens
    counts: Counts


class _Blocks(IterableDataset[Any]):
    """The endless blocks of one rank from a position on; each of its W workers prepares every W-th block."""

    def __init__(self, plan: Plan, start: Position, rank: int, world: int, pass_blocks: int | None) -> None:
        self._plan, self._start, self._rank, self._world = plan, start, rank, world
        self._pass_blocks = pass_blocks
        self._shown = {"malformed": 0, "refused": 0}

    def __iter__(self) -> Iterator[Prepared | DialogKitError]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            for index, (position, block, fraction, reader) in enumerate(self._own()):
                if index % workers == worker:
                    yield self._prepared(position, block, fraction, reader)
        except DialogKitError as error:
            yield error  # if it was raised, the DataLoader would put a traceback into its message

    def _own(self) -> Iterator[tuple[Position, int, float, Reader]]:
        """Yield position, block of the shard, fraction of the pass and reader of each block of this rank."""
        plan, (epoch, shard, block, number) = self._plan, self._start
        shards = plan.source.shards
        started_at = number
        while True:
            # With `samples`, every pass uses the same dialogs.
            key = (plan.seed, epoch) if plan.config.samples is None else (0, 0)
            order, found = shuffled(len(shards), *key), False
            for index in range(shard, len(order)):
                with closing(shards[order[index]].open()) as reader:
                    known, chosen = reader.blocks, None
                    if known is not None and reader.seekable:
                        chosen = shuffled(known, *key, int(order[index]))
                    while reader.has(block) and (self._pass_blocks is None or number < self._pass_blocks):
                        if number % self._world == self._rank:
                            found = True
                            fraction = (index + (block / known if known else 0.0)) / len(order)
                            nth = int(chosen[block]) if chosen is not None else block
                            yield Position(epoch, index, block, number), nth, fraction, reader
                        block, number = block + 1, number + 1
                block = 0
            if not found and not started_at:
                raise DataError(
                    f"the {number} blocks of {plan.source.name} are too few for {self._world} processes: rank "
                    f"{self._rank} has none",
                    hint=READ_INTO_MEMORY,
                )
            epoch, shard, number, started_at = epoch + 1, 0, 0, 0

    def _prepared(self, position: Position, block: int, fraction: float, reader: Reader) -> Prepared:
        plan, counts = self._plan, Counts()
        parser = RowParser(plan.format, plan.config.column_of)
        dialogs: list[Dialog] = []
        numbers: list[int] = []

        def show(kind: str, first: list[tuple[int, str]], number: int, problem: str) -> None:
            if position.epoch == 0 and self._shown[kind] < SHOWN_ROWS:
                self._shown[kind] += 1  # limited, as finding a line number takes reading the file up to it
                first.append((position.number, f"{reader.place(block, number)}: {problem}"))

        for number, content, problem in reader.rows(block):
            counts.rows += 1
            if problem is None:
                try:
                    dialogs.append(parser.parse(content))
                    numbers.append(number)
                except RowError as error:
                    counts.refused += 1
                    show("refused", counts.refused_first, number, str(error))
            else:
                counts.malformed += 1
                show("malformed", counts.malformed_first, number, problem)
        encoding = encode(dialogs, plan.tokenizer, plan.longest)
        tokens, counts.dropped, counts.cut = encoding.tokens, encoding.dropped, encoding.cut
        counts.refused += len(encoding.unfit)
        for index, problem in encoding.unfit:
            show("refused", counts.refused_first, numbers[index], problem)
        train = np.flatnonzero(tokens.hashes >= np.uint64(plan.below))
        counts.held_out = len(tokens) - len(train)
        return Prepared(position, fraction, tokens.select(train), counts)


def _as_it_is(item: Any) -> Any:
    return item


class _Group:
    """Consecutive blocks whose dialogs are shuffled together."""

    def __init__(self, blocks: list[Prepared], taken: int, seed: int) -> None:
        self.blocks, self.taken = blocks, taken
        self.position = blocks[0].position
        self._starts = np.cumsum([0, *(len(block.tokens) for block in blocks)])
        self._order = shuffled(int(self._starts[-1]), seed, *self.position)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        nth = self._order[index]
        block = int(self._starts.searchsorted(nth, side="right")) - 1
        return self.blocks[block].tokens[int(nth - self._starts[block])]

    def counts(self) -> Counts:
        """Return the counts of the rows that are of the first pass."""
        return sum((block.counts for block in self.blocks if block.position.epoch == 0), Counts())


@dataclass
class _State:
    """The position at which training resumes, and the counts up to it."""

    world: int
    place: Position = field(default_factory=Position)
    """First block of the current group."""
    offset: int = 0
    """Dialogs of the group that were consumed."""
    taken: int = 0
    """Dialogs of the pass before the group."""
    pass_blocks: int | None = None
    """Blocks of a pass that ends before the shards do."""
    counts: Counts = field(default_factory=Counts)
    """Counts of this rank's rows before the group."""
    reached: Counts = field(default_factory=Counts)
    """Counts of this rank's rows up to the end of the group."""


class DialogStream:
    """The endless training dialogs of a stream: pass follows pass.

    Attributes:
        plan: determines the dialogs and their order.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._read = self._others = Counts()
        """Counts of this rank's rows including those read ahead, and of other ranks' rows when last exchanged."""
        self._state: _State | None = None
        self._group: _Group | None = None
        self._active: Generator[dict[str, Any]] | None = None

    def restore(self, folder: Path | None) -> None:
        """Go to the position stored in a checkpoint, or to the start. Raises: what `require_position` raises."""
        self.close()
        self._group = None
        self._read = self._others = Counts()
        if folder is None:
            self._state = _State(rank_and_world_size()[1])
            return
        self._state = self.require_position(folder)
        self._read = self._state.counts

    def require_position(self, folder: Path) -> _State:
        """Return the position in a checkpoint.

        Raises: DataError if it holds none; ConfigError if the number of processes has changed.
        """
        rank, world = rank_and_world_size()
        try:
            held = json.loads((folder / _FILE.format(rank)).read_text(encoding="utf-8"))
            counts = {name: Counts.read(held[name]) for name in ("counts", "reached")}
            state = _State(**{**held, **counts, "place": Position(*held["place"])})
            if any(number < 0 for number in (*state.place, state.offset, state.taken, state.pass_blocks or 0)):
                raise ValueError("a number below zero")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{folder.name} holds no position in the stream: {error}; a new run can start with its weights",
                hint=Call("train", settings={"from": str(folder)}),
            ) from None
        if state.world != world:
            raise ConfigError(
                f"the stream was read by {state.world} process{'es' * (state.world > 1)} and not by {world}, "
                "and a position in the stream is valid for that number only",
                hint=Either(Change({"runtime.devices": state.world}), "as many processes over all machines"),
            )
        return state

    def save(self, folder: Path) -> None:
        """Write the position after the last batch into a checkpoint, one file per rank. Raises: OSError."""
        rank, world = rank_and_world_size()
        state = self._state or _State(world)
        (folder / _FILE.format(rank)).write_text(json.dumps(asdict(state)), encoding="utf-8")

    @property
    def counts(self) -> Counts:
        """Counts of the first pass so far: this rank's, and those of other ranks when last exchanged."""
        return self._others if self._state is None else self._state.reached + self._others

    def row_counts(self) -> tuple[Counts, Counts]:
        """Return this rank's counts so far, and those of malformed rows including rows read ahead."""
        return (
            self._state.reached if self._state else Counts(),
            Counts(malformed=self._read.malformed, malformed_first=self._read.malformed_first),
        )

    def merge_row_counts(self, ranks: Sequence[tuple[Counts, Counts]]) -> None:
        """Take the `row_counts` of all ranks in order. Raises: DataError for more malformed rows than allowed."""
        rank, _ = rank_and_world_size()
        self._others = sum((so_far for number, (so_far, _) in enumerate(ranks) if number != rank), Counts())
        self._require_few_malformed(sum((malformed for _, malformed in ranks), Counts()))

    def _require_few_malformed(self, read: Counts) -> None:
        if read.malformed > self.plan.config.max_bad_rows:
            first = [text for _, text in read.malformed_first]
            raise malformed_rows_error(read.malformed, first, streamed=True)

    @property
    def passes(self) -> float:
        """Passes completed so far, approximate where the number of blocks is unknown."""
        if self._state is None or self._group is None:
            return 0.0
        first, last = self._group.blocks[0].fraction, self._group.blocks[-1].fraction
        done = self._state.offset / max(1, len(self._group))
        if quota := self._quota(*rank_and_world_size()):
            return self._group.position.epoch + (self._group.taken + self._state.offset) / quota
        return self._group.position.epoch + first + (last - first) * done

    def batches(
        self, size: int, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]], workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield batches of `size` dialogs of this rank from its position on; `workers` processes tokenize ahead.

        Raises: DataError if the stream cannot be read or has more malformed rows than allowed.
        """
        dialogs = self.dialogs(workers)
        while True:
            yield collate([next(dialogs) for _ in range(size)])

    def dialogs(self, workers: int = 0) -> Generator[dict[str, Any]]:
        """Yield the dialogs of `batches` one by one."""
        if self._state is None:
            self.restore(None)
        self.close()
        self._active = self._dialogs(workers)
        return self._active

    def close(self) -> None:
        """Stop the workers."""
        if self._active is not None:
            self._active.close()
            self._active = None

    def _dialogs(self, workers: int) -> Generator[dict[str, Any]]:
        state = self._state
        assert state is not None
        with closing(self._groups(state, workers)) as groups:
            group = next(group for group in groups if isinstance(group, _Group))
            while True:
                upcoming: _Group | int = 0
                self._group = group
                state.place, state.taken = group.position, group.taken
                state.reached = state.counts + group.counts()
                for index in range(state.offset, len(group)):
                    # Read the next group block by block, so that training never waits for all of it.
                    if not isinstance(upcoming, _Group) and upcoming <= index:
                        upcoming = next(groups)
                    state.offset = index + 1
                    yield group[index]
                while not isinstance(upcoming, _Group):
                    upcoming = next(groups)
                group, state.counts, state.offset = upcoming, state.reached, 0

    def _groups(self, state: _State, workers: int) -> "Generator[_Group | int]":
        """Yield each group, and before it the number of its dialogs so far after each of its blocks."""
        plan, (rank, world) = self.plan, rank_and_world_size()
        quota, taken = self._quota(rank, world), state.taken
        blocks: list[Prepared] = []
        collected, start = 0, state.place
        self._read, trained_on = state.counts, state.counts.train
        while True:
            ended_early = False
            with closing(self._blocks(start, rank, world, workers)) as read:
                for block in read:
                    if block.position.epoch > start.epoch:  # the pass ends, and with it its last group
                        if blocks:
                            yield _Group(blocks, taken - collected, plan.seed)
                        if not trained_on:
                            raise DataError(f"{plan.source.name} leaves no dialogs to train on", hint=USE_STARTER)
                        blocks, collected, taken, start = [], 0, 0, block.position
                    if start.epoch == 0:
                        self._read += block.counts
                        self._require_few_malformed(self._read)
                    if quota is not None and len(block.tokens) > quota - taken:
                        block.tokens = block.tokens.select(range(quota - taken))
                    block.counts.train = len(block.tokens)
                    block.counts.train_tokens = len(block.tokens.ids)
                    block.counts.train_supervised_tokens = block.tokens.supervised_tokens
                    blocks.append(block)
                    collected += len(block.tokens)
                    taken += len(block.tokens)
                    trained_on += len(block.tokens)
                    if taken == quota and state.pass_blocks is None:
                        state.pass_blocks = block.position.number + 1
                        ended_early = True
                    if collected >= plan.config.shuffle_dialogs or ended_early:
                        yield _Group(blocks, taken - collected, plan.seed)
                        blocks, collected = [], 0
                    else:
                        yield collected
                    if ended_early:
                        break
            # Restart the workers: only now is it known where a pass ends, and they read ahead.
            start, taken = Position(start.epoch + 1), 0

    def _quota(self, rank: int, world: int) -> int | None:
        """Return this rank's dialogs of a pass if `samples` limits them."""
        samples = self.plan.config.samples
        return None if samples is None else samples // world + (rank < samples % world)

    def _blocks(self, start: Position, rank: int, world: int, workers: int) -> Generator[Prepared]:
        assert self._state is not None
        read = _Blocks(self.plan, start, rank, world, self._state.pass_blocks)
        # A separate generator: the global one, which dropout uses, must not depend on the number of workers.
        options: dict[str, Any] = {"collate_fn": _as_it_is, "generator": torch.Generator()}
        ahead = DataLoader(read, batch_size=None, num_workers=workers, **options) if workers else read
        for item in ahead:
            if isinstance(item, DialogKitError):
                raise item
            yield item


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes that train together."""
    return process_group.rank(), process_group.world_size()
