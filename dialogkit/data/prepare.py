"""From dialogs to token arrays: cut, split by content, count, cache."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dialogkit.config.data import DataConfig
from dialogkit.data.cache import read_entry, write_entry
from dialogkit.data.sources import file_digest, find_source, read_dialogs
from dialogkit.dialog import ChatTokenizer, Dialog, Encoded
from dialogkit.errors import DataError

# Raised whenever the meaning of a cached file changes.
CACHE_VERSION = 3
_CHUNK_DIALOGS, _CHUNK_CHARACTERS = 4096, 4 * 2**20
"""Dialogs that are tokenized at once: a token takes a hundred times the memory of its text meanwhile."""


@dataclass(frozen=True)
class Ledger:
    """What became of the rows, told before the first step and kept with the run."""

    dataset: str
    format: str
    license: str | None
    revision: str
    """SHA-256 of the file, or the hub dataset's fingerprint."""
    rows: int
    unusable: int
    """Rows that hold no dialog of the format (empty answer, wrong order of roles ...)."""
    cut: int
    """Kept dialogs that were longer than the context, cut at a turn or inside the first answer."""
    dropped: int
    """Dialogs without a supervised token inside the context."""
    first_bad_row: str | None

    @property
    def kept(self) -> int:
        """Dialogs that can be used."""
        return self.rows - self.unusable - self.dropped


class DialogTokens:
    """Token ids of many dialogs in three flat arrays; `dialogs[i]` is a dict of views.

    ids [T_total], supervised [T_total], offsets [N + 1], answer_bytes [N] (UTF-8 bytes of the answers).
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        supervised: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        answer_bytes: NDArray[np.int64],
    ) -> None:
        self.ids = ids
        self.supervised = supervised
        self.offsets = offsets
        self.answer_bytes = answer_bytes

    def __len__(self) -> int:
        return len(self.answer_bytes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        return {
            "input_ids": self.ids[start:end],
            "supervised": self.supervised[start:end],
            "answer_bytes": int(self.answer_bytes[index]),
        }

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "DialogTokens":
        """Return a copy with only these dialogs, in this order."""
        chosen = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        lengths = np.array([s.stop - s.start for s in chosen], dtype=np.int64)
        return DialogTokens(
            np.concatenate([self.ids[s] for s in chosen] or [self.ids[:0]]),
            np.concatenate([self.supervised[s] for s in chosen] or [self.supervised[:0]]),
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            self.answer_bytes[list(indices)],
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each dialog."""
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> int:
        """Number of tokens that are learned."""
        return int(self.supervised.sum())


class Origins(NamedTuple):
    """What dialogs were before they became tokens, in the order of these.

    hashes [N] (`hash_dialog`), whole_tokens [N] (tokens before the dialog was cut).
    """

    hashes: NDArray[np.uint64]
    whole_tokens: NDArray[np.int64]

    def select(self, indices: NDArray[np.int64]) -> "Origins":
        """Return those of some dialogs, in this order."""
        return Origins(self.hashes[indices], self.whole_tokens[indices])


@dataclass(frozen=True)
class PreparedData:
    """Training and evaluation dialogs as tokens, and the ledger of how they came about."""

    train: DialogTokens
    evaluation: DialogTokens
    train_origins: Origins
    evaluation_origins: Origins
    ledger: Ledger
    from_cache: bool

    @property
    def sample(self) -> DialogTokens:
        """Training dialogs whose lengths stand for those of all: here all of them."""
        return self.train

    @property
    def size(self) -> int:
        """Training dialogs of a pass."""
        return len(self.train)


def prepare_data(config: DataConfig, tokenizer: ChatTokenizer, *, context: int, cache: Path) -> PreparedData:
    """Return the prepared dialogs of a dataset.

    A dialog is in the evaluation set because of the hash of its text: the `eval_fraction` lowest hashes, from
    `eval_min_dialogs` to `eval_max_dialogs`, but at most half of the distinct dialogs. Both sets are in the order
    of their hashes, whatever the order of the rows; `samples` takes the first training dialogs, so that 100 are
    among the 1000.

    Args:
        config: the dataset and its limits.
        tokenizer: gives the ids; its fingerprint is part of the cache's key.
        context: longest dialog that the model takes, in tokens.
        cache: folder for the token arrays.

    Raises: DataError if nothing is left to train on or to evaluate.
    """
    longest = min(config.max_tokens or context, context)
    tokens, origins, ledger, from_cache = _tokens(config, tokenizer, longest, cache)
    if ledger.kept < 2 or len(np.unique(origins.hashes)) < 2:
        raise _too_few(ledger, config.dataset, longest)
    train, evaluation = split_by_hash(
        origins.hashes, config.eval_fraction, config.eval_min_dialogs, config.eval_max_dialogs
    )
    train = train[: config.samples]
    return PreparedData(
        tokens.select(train),
        tokens.select(evaluation),
        origins.select(train),
        origins.select(evaluation),
        ledger,
        from_cache,
    )


def _too_few(ledger: Ledger, dataset: str, longest: int) -> DataError:
    """Return the error of data of which nothing is left to train on, or to evaluate with."""
    dialogs = "1 usable dialog" if ledger.kept == 1 else f"{ledger.kept:,} usable dialogs"
    notes = ["which all say the same"] if ledger.kept > 1 else []
    if ledger.dropped:
        notes.append(f"{ledger.dropped:,} more without an answer in their first {longest:,} tokens")
    if ledger.first_bad_row:
        notes.append(f"the first unusable row is {ledger.first_bad_row}")
    noted = f" ({'; '.join(notes)})" if notes else ""
    more = f"add dialogs to {dataset}, such as by /save in: dialogkit chat"
    return DataError(
        f"{ledger.dataset} leaves {dialogs}{noted}; to train and to evaluate takes at least 2 that differ",
        hint="shorten the prompts, or give the model a longer context" if ledger.dropped else more,
    )


def split_by_hash(
    hashes: NDArray[np.uint64], fraction: float, at_least: int, at_most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices of training and evaluation dialogs, each in the order of their hashes.

    Equal dialogs are always on the same side.
    """
    distinct = np.unique(hashes)
    by_share = int(np.searchsorted(distinct, np.uint64(int(fraction * (2**64 - 1)))))
    count = max(1, min(max(by_share, at_least), max(at_least, at_most), len(distinct) // 2))
    order = np.argsort(hashes, kind="stable")
    boundary = int(np.searchsorted(hashes[order], distinct[count])) if count < len(distinct) else len(order)
    return order[boundary:], order[:boundary]


def hash_dialog(dialog: Dialog) -> int:
    """Return a 64-bit hash of what a dialog says."""
    text = json.dumps(dialog, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _tokens(
    config: DataConfig, tokenizer: ChatTokenizer, longest: int, cache: Path
) -> tuple[DialogTokens, Origins, Ledger, bool]:
    source = find_source(config)
    # Hub datasets have a cache of their own, which is asked for the fingerprint; files are known by their bytes.
    path, key, revision = cache, "", ""
    if source.path is not None:
        revision = file_digest(source.path)
        made_from = {
            "bytes": revision,
            "name": source.name,
            "license": source.license,
            "tokenizer": tokenizer.fingerprint,
            "format": config.format,
            "max_bad_rows": config.max_bad_rows,
            "longest": longest,
        }
        name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
        path = cache / "prepared" / f"{name}.npz"
        key = json.dumps({"version": CACHE_VERSION, **made_from}, sort_keys=True)
        cached = _restored(read_entry(path, key), tokenizer, longest)
        if cached is not None:
            told = cached[2]
            if (told.dataset, told.license, told.revision) == (source.name, source.license, revision):
                return *cached, True
    raw = read_dialogs(source, config)
    encoded, dropped, cut = encode(raw.dialogs, tokenizer, longest)
    ledger = Ledger(
        dataset=raw.name,
        format=raw.format,
        license=raw.license,
        revision=raw.revision,
        rows=raw.rows,
        unusable=raw.unusable,
        cut=cut,
        dropped=dropped,
        first_bad_row=raw.bad_rows[0] if raw.bad_rows else None,
    )
    # A file that changed while it was read is no longer what the key says.
    with suppress(DataError):
        if source.path is not None and raw.revision == revision == file_digest(source.path):
            write_entry(path, key, _flat(*encoded, ledger))
    return *encoded, ledger, False


def encode(
    dialogs: Sequence[Dialog], tokenizer: ChatTokenizer, longest: int
) -> tuple[tuple[DialogTokens, Origins], int, int]:
    """Return dialogs as tokens, at most `longest` of each, and how many were dropped and cut.

    Raises: DataError if the model's own template refuses a dialog.
    """
    ids: list[NDArray[np.int32]] = []
    supervised: list[NDArray[np.bool_]] = []
    answer_bytes: list[int] = []
    hashes: list[int] = []
    whole_tokens: list[int] = []
    cut = dropped = 0
    for chunk in _chunks(dialogs):
        for dialog, encoded in zip(chunk, tokenizer.encode_dialogs(chunk), strict=True):
            whole = len(encoded.input_ids)
            shortened = whole > longest
            if shortened:
                encoded = cut_dialog(encoded, longest)
            # The first token is never predicted.
            if not any(encoded.supervised[1:]):
                dropped += 1
                continue
            cut += shortened
            ids.append(np.array(encoded.input_ids, dtype=np.int32))
            supervised.append(np.array(encoded.supervised, dtype=np.bool_))
            answer_bytes.append(_answer_bytes(dialog, encoded, tokenizer, whole=not shortened))
            hashes.append(hash_dialog(dialog))
            whole_tokens.append(whole)
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    tokens = DialogTokens(
        np.concatenate(ids or [np.zeros(0, np.int32)]),
        np.concatenate(supervised or [np.zeros(0, np.bool_)]),
        offsets,
        np.array(answer_bytes, dtype=np.int64),
    )
    origins = Origins(np.array(hashes, dtype=np.uint64), np.array(whole_tokens, dtype=np.int64))
    return (tokens, origins), dropped, cut


def _chunks(dialogs: Sequence[Dialog]) -> Iterator[Sequence[Dialog]]:
    start = characters = 0
    for number, dialog in enumerate(dialogs):
        characters += sum(len(message.content) for message in dialog)
        if number > start and (number - start == _CHUNK_DIALOGS or characters > _CHUNK_CHARACTERS):
            yield dialogs[start:number]
            start, characters = number, sum(len(message.content) for message in dialog)
    yield dialogs[start:]


def cut_dialog(encoded: Encoded, longest: int) -> Encoded:
    """Shorten a dialog to `longest` tokens.

    The rule: whole turns go from the end until what is left fits and ends with an answer; where not even the
    first answer fits, that answer is cut at the limit and its end of turn is not learned.
    """
    ends = [
        index + 1
        for index, learned in enumerate(encoded.supervised)
        if learned and (index + 1 == len(encoded.supervised) or not encoded.supervised[index + 1])
    ]
    fitting = [end for end in ends if end <= longest]
    end = fitting[-1] if fitting else longest
    return Encoded(encoded.input_ids[:end], encoded.supervised[:end])


def _answer_bytes(dialog: Dialog, encoded: Encoded, tokenizer: ChatTokenizer, *, whole: bool) -> int:
    """Return the UTF-8 bytes of the answers that are learned; a template may leave some of them out."""
    learned = list(_runs(encoded))
    answers = [message.content for message in dialog if message.role == "assistant"]
    if not whole or len(learned) < len(answers):
        answers = [tokenizer.decode(ids) for ids in learned]
    return sum(len(answer.encode("utf-8", "replace")) for answer in answers)


def _runs(encoded: Encoded) -> Iterator[list[int]]:
    """Yield the ids of each supervised stretch."""
    pairs = zip(encoded.supervised, encoded.input_ids, strict=True)
    for learned, group in groupby(pairs, key=itemgetter(0)):
        if learned:
            yield [token for _, token in group]


_ARRAYS = {
    "ids": np.dtype(np.int32),
    "supervised": np.dtype(np.bool_),
    "offsets": np.dtype(np.int64),
    "answer_bytes": np.dtype(np.int64),
    "hashes": np.dtype(np.uint64),
    "whole_tokens": np.dtype(np.int64),
}


def _flat(tokens: DialogTokens, origins: Origins, ledger: Ledger) -> dict[str, NDArray[Any]]:
    """Return a preparation as arrays for the cache."""
    return {
        "ids": tokens.ids,
        "supervised": tokens.supervised,
        "offsets": tokens.offsets,
        "answer_bytes": tokens.answer_bytes,
        "hashes": origins.hashes,
        "whole_tokens": origins.whole_tokens,
        "ledger": np.array(json.dumps(asdict(ledger))),
    }


def _restored(
    arrays: dict[str, NDArray[Any]] | None, tokenizer: ChatTokenizer, longest: int
) -> tuple[DialogTokens, Origins, Ledger] | None:
    """Return a cached preparation, or None if its arrays cannot be what `encode` makes."""
    if arrays is None or arrays.keys() != {*_ARRAYS, "ledger"}:
        return None
    if any(arrays[name].dtype != dtype or arrays[name].ndim != 1 for name, dtype in _ARRAYS.items()):
        return None
    ids, supervised, offsets, answer_bytes, hashes, whole_tokens = (arrays[name] for name in _ARRAYS)
    try:
        ledger = TypeAdapter(Ledger).validate_json(str(arrays["ledger"]), strict=True)
    except ValidationError:
        return None
    number, lengths = len(answer_bytes), np.diff(offsets)
    sound = (
        min(ledger.rows, ledger.unusable, ledger.cut, ledger.dropped) >= 0
        and ledger.kept == number == len(hashes) == len(whole_tokens) == len(lengths)
        and offsets[:1].tolist() == [0]
        and offsets[-1] == len(ids) == len(supervised)
        and ledger.cut == (whole_tokens > longest).sum()
        and bool(((lengths == whole_tokens) | (whole_tokens > longest)).all())
    )
    if sound and number:
        sound = (
            2 <= lengths.min() <= lengths.max() <= longest
            and 0 <= ids.min() <= ids.max() <= tokenizer.highest_id
            and answer_bytes.min() >= 0
            # The first token of a dialog is never predicted.
            and bool((np.add.reduceat(supervised, offsets[:-1], dtype=np.int64) > supervised[offsets[:-1]]).all())
        )
    if not sound:
        return None
    return DialogTokens(ids, supervised, offsets, answer_bytes), Origins(hashes, whole_tokens), ledger
