"""Splits dialogs into training and held-out dialogs by their content."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from dialogkit.dialog import Dialog

TRAIN, HELD_OUT = "train", "held-out"
"""What `split` of a row says, as worlds write it."""
_NAMES = {
    **dict.fromkeys((TRAIN, "training"), False),
    **dict.fromkeys(
        (HELD_OUT, "heldout", "test", "validation", "valid", "val", "dev", "eval", "evaluation"), True
    ),
}
"""Names of both sets, and whether they are held out."""


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


def hash_dialog(dialog: Dialog) -> int:
    """Return a 64-bit hash of the roles and texts of a dialog, and of which answers are not learned."""
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
