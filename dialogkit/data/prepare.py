"""Prepares a dataset for training: tokenizes, cuts and splits its dialogs, and caches the result."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dialogkit.config.data import DataConfig
from dialogkit.data.cache import read_entry, write_entry
from dialogkit.data.hints import USE_STARTER
from dialogkit.data.questions import Checked, packed, unpacked
from dialogkit.data.row_parser import GREETING
from dialogkit.data.sources import RawData, find_source, read_dialogs, source_digest
from dialogkit.data.split import BY_HASH, BY_ROWS, hash_dialog, split_by_hash, split_by_rows
from dialogkit.data.tokens import DialogTokens, Encoding, encode
from dialogkit.dialog import GREETING_LEFT_OUT, PLAIN_FORMAT, ChatTokenizer
from dialogkit.errors import DataError, shortened
from dialogkit.hints import Either
from dialogkit.text import counted

CACHE_VERSION = 8
"""Increased whenever the meaning of a cached file changes."""

_ARRAYS = {
    "ids": np.dtype(np.int32),
    "supervised": np.dtype(np.bool_),
    "offsets": np.dtype(np.int64),
    "answer_bytes": np.dtype(np.int64),
    "hashes": np.dtype(np.uint64),
    "whole_tokens": np.dtype(np.int64),
}
_HELD_OUT = "held_out"
_CHECKED = "checked"
_OF_ROWS = {_HELD_OUT: np.dtype(np.uint64), _CHECKED: np.dtype(np.uint8)}
"""The hashes of the dialogs that their rows hold out, and what rows say about the answers, as JSON."""


@dataclass(frozen=True)
class Ledger:
    """Counts of used and unused rows, reported before the first step and stored with the run."""

    dataset: str
    format: str
    license: str | None
    revision: str
    """SHA-256 of the file, or the hub dataset's fingerprint."""
    rows: int
    unusable: int
    """Rows without a dialog of the format (empty answer, wrong order of roles ...)."""
    cut: int
    """Kept dialogs that exceeded the context and were cut at a turn or inside the first answer."""
    dropped: int
    """Dialogs without a supervised token inside the context."""
    first_bad_row: str | None
    notes: dict[str, int] = field(default_factory=dict)
    """What was repaired or left out of the rows, with the number of dialogs."""
    unused_columns: list[str] = field(default_factory=list)
    template_notes: dict[str, int] = field(default_factory=dict)
    """What was changed in the dialogs to fit the model's chat template, with the number of dialogs."""
    answers: int = 0
    """Answers to learn in the dialogs that the chat template accepts."""
    not_learned: dict[str, int] = field(default_factory=dict)
    """Those that are not learned under the template, by reason."""
    split_by: str = BY_HASH
    """How the dialogs are split: by a `hash` of their text, or as their `rows` say."""
    spare: int = 0
    """Dialogs that their rows hold out beyond those that are evaluated."""
    checked: int = 0
    """Answers whose rows say what a right answer contains."""

    @property
    def kept(self) -> int:
        """Dialogs that can be used."""
        return self.rows - self.unusable - self.dropped

    def remarks(self) -> list[str]:
        """Return sentences about what was repaired, left out or not used."""
        lines = _of_dialogs(self.notes) + self.of_template()
        if names := [shortened(name, 40) for name in self.unused_columns]:
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            lines.append(f"columns not used: {', '.join(names[:12])}{more}")
        if self.spare:
            lines.append(
                f"{counted(self.spare, 'more dialog')} held out by the rows, neither trained on nor evaluated "
                "(data.eval_max_dialogs)"
            )
        return lines

    def of_template(self) -> list[str]:
        """Return sentences about how dialogs were changed to fit the model's chat template."""
        return _of_dialogs(self.template_notes) + [
            f"{number:,} of {counted(self.answers, 'answer')} {_are(number)} not learned: {reason}"
            for reason, number in self.not_learned.items()
        ]


def _of_dialogs(notes: Mapping[str, int]) -> list[str]:
    return [f"{counted(number, 'dialog')}: {note}" for note, number in notes.items()]


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


@dataclass(frozen=True)
class PreparedData:
    """Training and evaluation dialogs as tokens, and the ledger of their rows."""

    train: DialogTokens
    evaluation: DialogTokens
    ledger: Ledger
    from_cache: bool
    checked: Mapping[int, Checked] = field(default_factory=dict)
    """What rows say about the answers of dialogs that may be held out, by hash."""
    part: float = 1.0
    """Fraction of the dataset that was made: less than all of it only of a world, if that was asked for."""

    @property
    def sample(self) -> DialogTokens:
        """Training dialogs whose lengths represent all others: here all of them."""
        return self.train

    @property
    def size(self) -> int:
        """Training dialogs of a pass."""
        return len(self.train)


def prepare_data(
    config: DataConfig,
    tokenizer: ChatTokenizer,
    *,
    context: int,
    cache: Path,
    most: int | None = None,
    raw: RawData | None = None,
) -> PreparedData:
    """Return the prepared dialogs of a dataset.

    Rows that say in `split` which set they are of are followed, with at most `eval_max_dialogs` to evaluate.
    Otherwise the dialogs with the `eval_fraction` lowest hashes form the evaluation set: at least
    `eval_min_dialogs` and at most `eval_max_dialogs`, but never more than half of the distinct dialogs. Both sets
    are sorted by hash, whatever the order of the rows. `samples` takes the first training dialogs, so a smaller
    sample is part of a larger one. Dialogs of more than `context` tokens, the longest that the model takes, are
    cut. `cache` is the folder for the token arrays; their key includes the fingerprint of the tokenizer. With
    `most`, no more dialogs of a world are made, unless the cache holds all of them; what is made is not cached.
    `raw` are the dialogs if they were read already.

    Raises: DataError if nothing is left to train on or to evaluate.
    """
    longest = min(config.max_tokens or context, context)
    made = _tokens(config, tokenizer, longest, cache, most, raw)
    tokens, held_out, ledger = made.tokens, made.held_out, made.ledger
    if ledger.kept < 2 or len(np.unique(tokens.hashes)) < 2:
        raise _too_few(ledger, config.dataset, longest)
    if ledger.split_by == BY_ROWS:
        train, evaluation, spare = split_by_rows(tokens.hashes, held_out, config.eval_max_dialogs)
        ledger = replace(ledger, spare=spare)
    else:
        train, evaluation = split_by_hash(
            tokens.hashes, config.eval_fraction, config.eval_min_dialogs, config.eval_max_dialogs
        )
    training = tokens.select(train[: config.samples])
    return PreparedData(training, tokens.select(evaluation), ledger, made.from_cache, made.checked, made.part)


def _too_few(ledger: Ledger, dataset: str, longest: int) -> DataError:
    """Return the error of a dataset with fewer than 2 distinct usable dialogs."""
    dialogs = "1 usable dialog" if ledger.kept == 1 else f"{ledger.kept:,} usable dialogs"
    notes = ["all identical"] if ledger.kept > 1 else []
    if ledger.dropped:
        notes.append(f"{ledger.dropped:,} more without an answer in their first {longest:,} tokens")
    if ledger.first_bad_row:
        notes.append(f"the first unusable row is {ledger.first_bad_row}")
    noted = f" ({'; '.join(notes)})" if notes else ""
    more = Either(f"add dialogs to {dataset}, for example with /save in a chat", USE_STARTER)
    return DataError(
        f"{ledger.dataset} leaves {dialogs}{noted}; at least 2 distinct ones are needed: one to train on, one to "
        "evaluate",
        hint="shorten the prompts, or give the model a longer context" if ledger.dropped else more,
    )


class _Made(NamedTuple):
    """The dialogs of a dataset as tokens, before they are split."""

    tokens: DialogTokens
    held_out: NDArray[np.uint64]
    checked: dict[int, Checked]
    ledger: Ledger
    from_cache: bool = False
    part: float = 1.0


def _tokens(
    config: DataConfig,
    tokenizer: ChatTokenizer,
    longest: int,
    cache: Path,
    most: int | None,
    raw: RawData | None,
) -> _Made:
    source = find_source(config)
    # Only files and worlds are cached here, by their bytes. Hub datasets have their own cache, with a fingerprint.
    path, key, revision = cache, "", source_digest(source)
    if revision is not None:
        made_from = {
            "bytes": revision,
            "name": source.name,
            "license": source.license,
            "tokenizer": tokenizer.fingerprint,
            "format": config.format,
            "columns": config.columns,
            "max_bad_rows": config.max_bad_rows,
            "longest": longest,
        }
        name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
        path = cache / "prepared" / f"{name}.npz"
        key = json.dumps({"version": CACHE_VERSION, **made_from}, sort_keys=True)
        cached = _restored(read_entry(path, key), tokenizer, longest)
        if cached is not None:
            ledger = cached.ledger
            if (ledger.dataset, ledger.license, ledger.revision) == (source.name, source.license, revision):
                return cached
    raw = raw or read_dialogs(source, config, most=most)
    encoding = encode(raw.dialogs, tokenizer, longest)
    tokens, unfit = encoding.tokens, [f"{raw.places[index]}: {reason}" for index, reason in encoding.unfit]
    if len(unfit) == len(raw.dialogs):
        raise none_fits(raw.name, len(unfit), unfit[0])
    held_out = _held_out_hashes(raw)
    said = np.isin(tokens.hashes, held_out)
    notes = all_notes(raw.notes, encoding, unfit if raw.bad_rows else [])
    ledger = Ledger(
        dataset=raw.name,
        format=raw.format,
        license=raw.license,
        revision=raw.revision,
        rows=raw.rows,
        unusable=raw.unusable + len(unfit),
        cut=encoding.cut,
        dropped=encoding.dropped,
        first_bad_row=next(chain(raw.bad_rows, unfit), None),
        notes=notes["notes"],
        template_notes=notes["template_notes"],
        unused_columns=raw.unused_columns,
        answers=encoding.answers,
        not_learned=dict(encoding.not_learned),
        split_by=BY_ROWS if said.any() and not said.all() else BY_HASH,
        checked=sum(one.number for one in raw.checked.values()),
    )
    checked = _checked_by_hash(raw, encoding)
    # A file that changed while it was read does not match the key.
    with suppress(DataError):
        if raw.part == 1.0 and revision is not None and raw.revision == revision == source_digest(source):
            entry = {**vars(tokens), _HELD_OUT: held_out, _CHECKED: packed(checked)}
            write_entry(path, key, entry | {"ledger": np.array(json.dumps(asdict(ledger)))})
    return _Made(tokens, held_out, checked, ledger, part=raw.part)


def _checked_by_hash(raw: RawData, encoding: Encoding) -> dict[int, Checked]:
    """Return what rows say about the answers of dialogs, without those that the rows do not hold out.

    Dialogs in which the template leaves out answers are left out too: which of their answers remain is unknown.
    """
    partial, held_out, found = set(encoding.partial), raw.held_out, dict[int, Checked]()
    for index, checked in raw.checked.items():
        if held_out is None or held_out[index]:
            hashed = hash_dialog(raw.dialogs[index])
            if hashed not in partial:
                found.setdefault(hashed, checked)
    return found


def _held_out_hashes(raw: RawData) -> NDArray[np.uint64]:
    """Return the hashes of the dialogs that their rows hold out."""
    pairs = zip(raw.dialogs, raw.held_out or (), strict=raw.held_out is not None)
    return np.array([hash_dialog(dialog) for dialog, is_held_out in pairs if is_held_out], dtype=np.uint64)


def none_fits(dataset: str, number: int, first: str) -> DataError:
    """Return the error of a dataset without a dialog that the model's chat template accepts."""
    return DataError(
        f"none of the {counted(number, 'dialog')} of {dataset} can be learned; the first: {first}",
        hint=PLAIN_FORMAT,
    )


def all_notes(
    of_rows: Mapping[str, int], encoding: Encoding, unfit: Sequence[str] = ()
) -> dict[str, dict[str, int]]:
    """Return `notes` and `template_notes` of a ledger.

    What a row keeps as context and the template cannot show is reported as left out only. `unfit` are the dialogs
    that the template does not suit, if another row is shown as the first unusable one.
    """
    notes, of_template = dict(of_rows), dict(encoding.notes)
    if GREETING in notes:
        notes[GREETING] -= encoding.notes[GREETING_LEFT_OUT]
    if unfit:
        of_template[f"left out; the first: {unfit[0]}"] = len(unfit)
    return {"notes": {note: number for note, number in notes.items() if number > 0}, "template_notes": of_template}


def _restored(arrays: dict[str, NDArray[Any]] | None, tokenizer: ChatTokenizer, longest: int) -> _Made | None:
    """Return prepared data from the cache, or None if `encode` cannot have produced the arrays."""
    if arrays is None or arrays.keys() != {*_ARRAYS, *_OF_ROWS, "ledger"}:
        return None
    if any(arrays[name].dtype != dtype or arrays[name].ndim != 1 for name, dtype in (_ARRAYS | _OF_ROWS).items()):
        return None
    tokens = DialogTokens(**{name: arrays[name] for name in _ARRAYS})
    ids, supervised, offsets, whole_tokens = tokens.ids, tokens.supervised, tokens.offsets, tokens.whole_tokens
    try:
        ledger = TypeAdapter(Ledger).validate_json(str(arrays["ledger"]), strict=True)
        checked = unpacked(arrays[_CHECKED])
    except (ValidationError, ValueError, TypeError):
        return None
    number, lengths = len(tokens), tokens.lengths
    valid = (
        min(ledger.rows, ledger.unusable, ledger.cut, ledger.dropped) >= 0
        and ledger.kept == number == len(tokens.hashes) == len(whole_tokens) == len(lengths)
        and offsets[:1].tolist() == [0]
        and offsets[-1] == len(ids) == len(supervised)
        and ledger.cut == (whole_tokens > longest).sum()
        and bool(((lengths == whole_tokens) | (whole_tokens > longest)).all())
    )
    if valid and number:
        valid = (
            2 <= lengths.min() <= lengths.max() <= longest
            and 0 <= ids.min() <= ids.max() <= tokenizer.highest_id
            and tokens.answer_bytes.min() >= 0
            # The first token of a dialog is never predicted.
            and bool((np.add.reduceat(supervised, offsets[:-1], dtype=np.int64) > supervised[offsets[:-1]]).all())
        )
    return _Made(tokens, arrays[_HELD_OUT], checked, ledger, from_cache=True) if valid else None
