"""From dialogs to token arrays: cut, split by content, count, cache."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dialogkit.config.data import DataConfig
from dialogkit.data.cache import read_entry, write_entry
from dialogkit.data.hints import USE_STARTER
from dialogkit.data.sources import file_digest, find_source, read_dialogs
from dialogkit.data.split import split_by_hash
from dialogkit.data.tokens import DialogTokens, Origins, encode
from dialogkit.dialog import ChatTokenizer
from dialogkit.errors import DataError
from dialogkit.hints import Either

# Raised whenever the meaning of a cached file changes.
CACHE_VERSION = 3


_ARRAYS = {
    "ids": np.dtype(np.int32),
    "supervised": np.dtype(np.bool_),
    "offsets": np.dtype(np.int64),
    "answer_bytes": np.dtype(np.int64),
    "hashes": np.dtype(np.uint64),
    "whole_tokens": np.dtype(np.int64),
}


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
    more = Either(f"add dialogs to {dataset}, for example with /save in a chat", USE_STARTER)
    return DataError(
        f"{ledger.dataset} leaves {dialogs}{noted}; to train and to evaluate takes at least 2 that differ",
        hint="shorten the prompts, or give the model a longer context" if ledger.dropped else more,
    )


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
