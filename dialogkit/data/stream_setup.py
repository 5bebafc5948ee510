"""Prepares a stream for training: its format, held-out dialogs, a sample, and its size if the files state it.

A dialog is held out if its hash is among the `data.eval_fraction` lowest of all possible hashes. This depends on
no other dialog, so no run on any part of the data trains on it. The first distinct held-out dialogs, up to
`data.eval_max_dialogs`, form the evaluation set; with 5%, 1,000 are found after 20,000 rows. They are read from
all shards in turn, so that no single shard decides. If the data ends before, all hashes are known, and the rule is
exactly that of data in memory.
"""

import heapq
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from dialogkit.config.data import DataConfig
from dialogkit.data.formats import TREES
from dialogkit.data.hints import DETECT_FORMAT, FIX_ROWS, READ_INTO_MEMORY, USE_STARTER
from dialogkit.data.prepare import Ledger, PreparedData, all_notes, none_fits
from dialogkit.data.questions import Checked
from dialogkit.data.row_parser import RowParser
from dialogkit.data.shards import Reader, Stream, StreamRow, find_stream
from dialogkit.data.sources import SHOWN_ROWS, malformed_rows_error
from dialogkit.data.split import hash_dialog, split_by_hash
from dialogkit.data.stream import DialogStream, Plan, shuffled
from dialogkit.data.tokens import DialogTokens, Encoding, encode
from dialogkit.data.turns import RowError
from dialogkit.dialog import ChatTokenizer, Dialog
from dialogkit.errors import DataError

SAMPLE_DIALOGS = 1024
"""Training dialogs whose lengths represent all others in estimates of memory and time."""
_MAX_ROWS = 200_000
"""Rows after which the search ends, provided that `data.eval_min_dialogs` were found."""
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class StreamedData:
    """A stream to train on, and what is known about it. Shares the interface of `PreparedData`."""

    train: Any
    """The `DialogStream`."""
    evaluation: DialogTokens
    sample: DialogTokens
    """The first training dialogs of the stream."""
    size: int | None
    """Training dialogs of a pass; None if that takes reading all files."""
    stream: DialogStream
    parser: RowParser
    """The parser of the first rows."""
    first: Encoding
    """Remarks on the encoding of the first dialogs."""
    from_cache: bool = False
    checked: Mapping[int, Checked] = field(default_factory=dict)
    """What rows say about the answers: nothing, as the rows of a stream are not kept."""

    @property
    def ledger(self) -> Ledger:
        """The ledger of the rows of the first pass so far."""
        counts, source = self.stream.counts, self.stream.plan.source
        notes = {
            name: {f"{note} (in the first rows)": number for note, number in found.items()}
            for name, found in all_notes(self.parser.notes, self.first).items()
        }
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
            notes=notes["notes"],
            template_notes=notes["template_notes"],
            unused_columns=self.parser.unused,
            answers=self.first.answers,
            not_learned={f"{reason} (in the first rows)": n for reason, n in self.first.not_learned.items()},
        )

    def known(self) -> PreparedData:
        """Return the held-out dialogs, with the sample in place of the training dialogs."""
        return PreparedData(self.sample, self.evaluation, self.ledger, self.from_cache)


def prepare_stream(config: DataConfig, tokenizer: ChatTokenizer, *, context: int, seed: int) -> StreamedData:
    """Return the stream of a dataset in the order of a seed, with its evaluation set.

    Dialogs of more than `context` tokens, the longest that the model takes, are cut.

    Raises: DataError if it cannot be read, or leaves nothing to train on or to evaluate.
    """
    source = find_stream(config)
    longest = min(config.max_tokens or context, context)
    first = _FirstRows(source, config)
    first.read()
    below = first.boundary()
    held_out = encode(first.held_out(below), tokenizer, longest)
    training = encode([dialog for hash, dialog in first.sample if hash >= below], tokenizer, longest)
    evaluation, sample, encoded = held_out.tokens, training.tokens, held_out + training
    if encoded.unfit and not len(evaluation) + len(sample) + encoded.dropped:
        raise none_fits(f"the first rows of {source.name}", len(encoded.unfit), encoded.unfit[0][1])
    if not len(evaluation) or not len(sample):
        raise DataError(
            f"{source.name} leaves {len(evaluation)} dialogs to evaluate and {len(sample)} to train on; at least "
            "one of each is needed" + (f" (first unusable row: {first.refused})" if first.refused else ""),
            hint=USE_STARTER,
        )
    stream = DialogStream(Plan(source, config, first.parser.format, tokenizer, longest, below, seed))
    sizes = [size for size in (first.size(below), config.samples) if size is not None]
    return StreamedData(stream, evaluation, sample, min(sizes, default=None), stream, first.parser, encoded)


class _FirstRows:
    """The first rows of all shards in turn, until they yield enough dialogs to hold out.

    Attributes:
        parser: parses the rows; its notes are about these rows.
        lowest: the distinct dialogs with the lowest hashes, by hash; up to twice as many as can be held out.
        sample: hash and dialog of the first dialogs.
        refused: place and reason of the first well-formed row without a dialog.
    """

    def __init__(self, source: Stream, config: DataConfig) -> None:
        format = "" if config.format == "auto" else config.format
        self.parser = RowParser(format, config.column_of, source=source.name)
        self.lowest: dict[int, Dialog] = {}
        self.sample: list[tuple[int, Dialog]] = []
        self.refused: str | None = None
        self._source, self._config = source, config
        self._most = max(config.eval_min_dialogs, config.eval_max_dialogs)
        self._held_out_below = int(config.eval_fraction * (2**64 - 1))
        self._hashes = array("Q")
        self._rows = 0
        self._complete = False

    def read(self) -> None:
        """Read until enough dialogs are held out, or to the end of the data. Raises: DataError."""
        malformed: list[str] = []
        found: set[int] = set()
        number = 0
        for reader, block, row in _rows_in_turn(self._source):
            if row is None:
                sufficient = len(found) >= self._config.eval_min_dialogs and self._rows >= _MAX_ROWS
                if (len(found) >= self._most or sufficient) and len(self.sample) >= SAMPLE_DIALOGS:
                    break
                continue
            self._rows += 1
            if row.problem is not None:
                number += 1
                if len(malformed) < SHOWN_ROWS:
                    malformed.append(f"{reader.place(block, row.number)}: {row.problem}")
                if number > self._config.max_bad_rows:
                    raise malformed_rows_error(number, malformed, streamed=True)
                continue
            if self.parser.expects_trees(row.content):
                raise DataError(
                    f"{self._source.name} holds message trees ({TREES}), and a path through one takes all rows",
                    hint=READ_INTO_MEMORY,
                )
            try:
                dialog = self.parser.parse(row.content)
            except RowError as error:
                self.refused = self.refused or f"{reader.place(block, row.number)}: {error}"
                continue
            hash = hash_dialog(dialog)
            self._hashes.append(hash)
            if hash < self._held_out_below:
                found.add(hash)
            if len(self.sample) < SAMPLE_DIALOGS:
                self.sample.append((hash, dialog))
            self.lowest.setdefault(hash, dialog)
            if len(self.lowest) > 2 * self._most:
                self.lowest = dict(heapq.nsmallest(self._most, self.lowest.items()))
        else:
            self._complete = True
        if not self._rows:
            raise DataError(f"{self._source.name} holds no rows", hint=USE_STARTER)
        if not len(self._hashes):
            if not self.parser.format and self.parser.unknown is not None:
                raise self.parser.unknown
            raise DataError(
                f"none of the first {self._rows:,} rows of {self._source.name} is a dialog in the format "
                f"{self.parser.format}: {self.refused}",
                hint=FIX_ROWS if self._config.format == "auto" else DETECT_FORMAT,
            )

    def held_out(self, below: int) -> list[Dialog]:
        """Return the dialogs to evaluate, by hash."""
        return [dialog for hash, dialog in heapq.nsmallest(self._most, self.lowest.items()) if hash < below]

    def boundary(self) -> int:
        """Return the hash below which dialogs are held out."""
        if not self._complete:
            return self._held_out_below
        hashes, config = self._known_hashes(), self._config
        if len(np.unique(hashes)) < 2:
            raise DataError(
                f"{self._source.name} leaves {len(hashes)} usable dialogs; at least 2 distinct ones "
                "are needed: one to train on, one to evaluate"
                + (f" (first unusable row: {self.refused})" if self.refused else ""),
                hint=USE_STARTER,
            )
        train, _ = split_by_hash(hashes, config.eval_fraction, config.eval_min_dialogs, config.eval_max_dialogs)
        return int(hashes[train[0]])

    def size(self, below: int) -> int | None:
        """Return the training dialogs of a pass: exact if all was read, else estimated from row counts."""
        if self._complete:
            return int((self._known_hashes() >= np.uint64(below)).sum())
        rows = self._source.rows()
        return None if rows is None else round(rows * (1 - below / 2**64))

    def _known_hashes(self) -> Any:
        return np.frombuffer(self._hashes, dtype=np.uint64)


def _rows_in_turn(source: Stream) -> Iterator[tuple[Reader, int, StreamRow | None]]:
    """Yield the rows of one block of each shard in turn, and None after each block.

    At most `_OPEN_SHARDS` are open at a time; the next ones follow when all of their blocks were read.
    """
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
