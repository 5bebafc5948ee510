"""What is known of a stream before its first batch: format, held-out dialogs, a sample, and its size if told.

A dialog of a stream is held out because of its hash alone: the `data.eval_fraction` lowest of all possible hashes.
Whether it is can be said of any dialog without knowing others, so that none is trained on in any run of any part
of the data. What is evaluated on are the first of these that are met, until `data.eval_max_dialogs` differ; 5% of
the dialogs give 1,000 after 20,000 rows. Shards take turns meanwhile, so that no shard decides alone. Where that
comes to the end of the data, all hashes are known, and the rule is exactly that of data in memory.
"""

import heapq
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from dialogkit.config.data import DataConfig
from dialogkit.data.formats import RowError, parse_row, recognise_format
from dialogkit.data.hints import DETECT_FORMAT, FIX_ROWS, USE_STARTER
from dialogkit.data.prepare import Ledger, PreparedData
from dialogkit.data.shards import Reader, Stream, StreamRow, find_stream
from dialogkit.data.sources import refusal_of_rows
from dialogkit.data.split import hash_dialog, split_by_hash
from dialogkit.data.stream import DialogStream, Plan, shuffled
from dialogkit.data.tokens import DialogTokens, Origins, encode
from dialogkit.dialog import ChatTokenizer, Dialog
from dialogkit.errors import DataError

_SAMPLE = 1024
"""Training dialogs whose lengths stand for those of all, where memory and time are estimated."""
_MOST_ROWS = 200_000
"""Rows after which no more held-out dialogs are looked for, if there are the least."""
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class StreamedData:
    """A stream to train on, and what is known of it. In what both have, it stands for `PreparedData`."""

    train: Any
    """The `DialogStream`."""
    evaluation: DialogTokens
    evaluation_origins: Origins
    sample: DialogTokens
    """The first training dialogs that were met."""
    sample_origins: Origins
    size: int | None
    """Training dialogs of a pass, as far as the files tell; None if only reading them would."""
    stream: DialogStream
    source: Stream
    from_cache: bool = False

    @property
    def ledger(self) -> Ledger:
        """What became of the rows of the first pass so far."""
        counts, source = self.stream.counts, self.source
        return Ledger(
            dataset=source.name,
            format=self.stream.plan.format,
            license=source.license,
            revision=source.revision,
            rows=counts.rows,
            unusable=counts.malformed + counts.refused,
            cut=counts.cut,
            dropped=counts.dropped,
            first_bad_row=next((text for _, text in counts.malformed_first + counts.refused_first), None),
        )

    def known(self) -> PreparedData:
        """Return the held-out dialogs, and the sample as those to train on."""
        return PreparedData(
            self.sample,
            self.evaluation,
            self.sample_origins,
            self.evaluation_origins,
            self.ledger,
            self.from_cache,
        )


def prepare_stream(config: DataConfig, tokenizer: ChatTokenizer, *, context: int, seed: int) -> StreamedData:
    """Return the stream of a dataset, with its held-out dialogs read.

    Args:
        config: the dataset and its limits.
        tokenizer: gives the ids.
        context: longest dialog that the model takes, in tokens.
        seed: decides the order.

    Raises: DataError if it cannot be read, or leaves nothing to train on or to evaluate.
    """
    source = find_stream(config)
    longest = min(config.max_tokens or context, context)
    head = _Head(source, config)
    head.read()
    below = head.boundary()
    held_out = sorted((-negative, dialog) for negative, dialog in head.lowest if -negative < below)
    (evaluation, evaluation_origins), _, _ = encode([dialog for _, dialog in held_out], tokenizer, longest)
    training = [dialog for hash, dialog in head.sample if hash >= below]
    (sample, sample_origins), _, _ = encode(training, tokenizer, longest)
    if not len(evaluation) or not len(sample):
        raise DataError(
            f"{source.name} leaves {len(evaluation)} dialogs to evaluate and {len(sample)} to train on, and both "
            "take one at least" + (f" (first unusable row: {head.refused})" if head.refused else ""),
            hint=USE_STARTER,
        )
    plan = Plan(
        name=source.name,
        shards=source.shards,
        format=head.format,
        tokenizer=tokenizer,
        longest=longest,
        below=below,
        samples=config.samples,
        shuffle_dialogs=config.shuffle_dialogs,
        max_bad_rows=config.max_bad_rows,
        seed=seed,
    )
    size = head.size(below)
    if config.samples is not None:
        size = config.samples if size is None else min(config.samples, size)
    stream = DialogStream(plan)
    return StreamedData(
        stream, evaluation, evaluation_origins, sample, sample_origins, size, stream=stream, source=source
    )


class _Head:
    """The first rows of the shards in turn, until there are enough dialogs to hold out.

    Attributes:
        format: the shape of the rows.
        lowest: minus hash, and dialog, of the distinct dialogs of the lowest hashes.
        sample: hash and dialog of the first.
        refused: place and reason of the first sound row that holds no dialog.
    """

    def __init__(self, source: Stream, config: DataConfig) -> None:
        self.format: str = "" if config.format == "auto" else config.format
        self.lowest: list[tuple[int, Dialog]] = []
        self.sample: list[tuple[int, Dialog]] = []
        self.refused: str | None = None
        self._source, self._config = source, config
        self._most = max(config.eval_min_dialogs, config.eval_max_dialogs)
        self._share = int(config.eval_fraction * (2**64 - 1))
        self._hashes = array("Q")
        self._lowest_hashes: set[int] = set()
        self._rows = 0
        self._through = False

    def read(self) -> None:
        """Read on until the held-out dialogs are enough, or to the end of the data. Raises: DataError."""
        malformed: list[str] = []
        found: set[int] = set()
        number = 0
        for reader, block, row in _rows_in_turn(self._source):
            if row is None:
                least = len(found) >= self._config.eval_min_dialogs and self._rows >= _MOST_ROWS
                if (len(found) >= self._most or least) and len(self.sample) >= _SAMPLE:
                    break
                continue
            self._rows += 1
            if row.problem is not None:
                number += 1
                if len(malformed) < 10:
                    malformed.append(f"{reader.place(block, row.number)}: {row.problem}")
                if number > self._config.max_bad_rows:
                    raise refusal_of_rows(number, malformed, streamed=True)
                continue
            self.format = self.format or recognise_format(row.content, source=self._source.name)
            try:
                dialog = parse_row(row.content, self.format)
            except RowError as error:
                self.refused = self.refused or f"{reader.place(block, row.number)}: {error}"
                continue
            hash = hash_dialog(dialog)
            self._hashes.append(hash)
            if hash < self._share:
                found.add(hash)
            if len(self.sample) < _SAMPLE:
                self.sample.append((hash, dialog))
            self._keep_lowest(hash, dialog)
        else:
            self._through = True
        if not self._rows:
            raise DataError(f"{self._source.name} holds no rows", hint=USE_STARTER)
        if not len(self._hashes):
            raise DataError(
                f"none of the first {self._rows:,} rows of {self._source.name} is a dialog in the format "
                f"{self.format}: {self.refused}",
                hint=FIX_ROWS if self._config.format == "auto" else DETECT_FORMAT,
            )

    def _keep_lowest(self, hash: int, dialog: Dialog) -> None:
        if hash in self._lowest_hashes or (len(self.lowest) == self._most and hash > -self.lowest[0][0]):
            return
        self._lowest_hashes.add(hash)
        if len(self.lowest) < self._most:
            heapq.heappush(self.lowest, (-hash, dialog))
        else:
            self._lowest_hashes.discard(-heapq.heappushpop(self.lowest, (-hash, dialog))[0])

    def boundary(self) -> int:
        """Return the hash below which dialogs are held out."""
        if not self._through:
            return self._share
        hashes, config = self._known_hashes(), self._config
        if len(np.unique(hashes)) < 2:
            raise DataError(
                f"{self._source.name} leaves {len(hashes)} usable dialogs; to train and to evaluate takes 2 that "
                "differ" + (f" (first unusable row: {self.refused})" if self.refused else ""),
                hint=USE_STARTER,
            )
        train, _ = split_by_hash(hashes, config.eval_fraction, config.eval_min_dialogs, config.eval_max_dialogs)
        return int(hashes[train[0]])

    def size(self, below: int) -> int | None:
        """Return the training dialogs of a pass: exactly if all was read, else as the rows that files tell of."""
        if self._through:
            return int((self._known_hashes() >= np.uint64(below)).sum())
        rows = self._source.rows()
        return None if rows is None else round(rows * (1 - below / 2**64))

    def _known_hashes(self) -> Any:
        return np.frombuffer(self._hashes, dtype=np.uint64)


def _rows_in_turn(source: Stream) -> Iterator[tuple[Reader, int, StreamRow | None]]:
    """Yield the rows of a block of each shard in turn, and None after each block; of many shards first some."""
    order = shuffled(len(source.shards), 0)
    for first in range(0, len(order), _OPEN_SHARDS):
        with ExitStack() as stack:
            readers = [
                stack.enter_context(closing(source.shards[index].open()))
                for index in order[first : first + _OPEN_SHARDS]
            ]
            orders = [shuffled(r.blocks or 0, 0) if r.seekable else None for r in readers]
            for block in count():
                here = [(r, o) for r, o in zip(readers, orders, strict=True) if r.has(block)]
                for reader, chosen in here:
                    nth = block if chosen is None else int(chosen[block])
                    for row in reader.rows(nth):
                        yield reader, nth, row
                    yield reader, nth, None
                if not here:
                    break
