"""Splits dialogs into training and held-out dialogs: by their content, or as their rows say."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dialogkit.dialog import Dialog

SPLIT = "split"
"""The column that says which set a row is of."""
TRAIN, HELD_OUT = "train", "held-out"
"""What `split` of a row says, as worlds write it."""
_IS_HELD_OUT = {
    **dict.fromkeys((TRAIN, "training"), False),
    **dict.fromkeys(
        (HELD_OUT, "heldout", "test", "validation", "valid", "val", "dev", "eval", "evaluation"), True
    ),
}
"""The names that `split` may give the two sets, and whether such a row is held out."""

BY_HASH, BY_ROWS = "hash", "rows"
"""How dialogs are split: by a hash of their text, or as their rows say."""


def held_out_by_rows(splits: Sequence[Any]) -> list[bool] | None:
    """Return whether each row is held out, by its value of `split`.

    None if the rows do not say: if a value is missing or no known name, or if all rows are of one set.
    """
    found = [
        _IS_HELD_OUT.get(split.strip().lower().replace("_", "-")) if isinstance(split, str) else None
        for split in splits
    ]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) and len(set(known)) == 2 else None


def split_by_hash(
    hashes: NDArray[np.uint64], fraction: float, at_least: int, at_most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of training and evaluation dialogs, each sorted by hash.

    Equal dialogs are always in the same set.
    """
    distinct = np.unique(hashes)
    by_fraction = int(np.searchsorted(distinct, np.uint64(int(fraction * (2**64 - 1)))))
    count = max(1, min(max(by_fraction, at_least), max(at_least, at_most), len(distinct) // 2))
    order = np.argsort(hashes, kind="stable")
    boundary = int(np.searchsorted(hashes[order], distinct[count])) if count < len(distinct) else len(order)
    return order[boundary:], order[:boundary]


def split_by_rows(
    hashes: NDArray[np.uint64], held_out: NDArray[np.uint64], at_most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the indices of training and evaluation dialogs, each sorted by hash, and the number of spare ones.

    A dialog whose hash is among `held_out` is not trained on, even if another row with the same text says so. The
    first `at_most` are for evaluation; the spare ones are for neither.
    """
    order = np.argsort(hashes, kind="stable")
    is_held_out = np.isin(hashes[order], held_out)
    evaluation = order[is_held_out]
    return order[~is_held_out], evaluation[:at_most], max(0, len(evaluation) - at_most)


def hash_dialog(dialog: Dialog) -> int:
    """Return a 64-bit hash of the roles and texts of a dialog, and of its answers that are not learned."""
    turns = [(m.role, m.content) if m.learned else m for m in dialog]
    text = json.dumps(turns, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def held_out_remark(held_out: int, kept: int) -> str | None:
    """Return a warning if the held-out set leaves too little training data."""
    if held_out < 0.25 * kept or (fewer := max(1, kept // 10)) >= held_out:
        return None
    return (
        f"{held_out} of only {kept} dialogs {'is' if held_out == 1 else 'are'} held out for evaluation; "
        f"data.eval_min_dialogs={fewer} leaves more to train on"
    )
