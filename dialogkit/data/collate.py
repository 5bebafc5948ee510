"""Padding-free batches: the dialogs of a batch in one row, together with their lengths.

Shapes: B dialogs, T tokens of all of them, S supervised targets. Attention must stay inside each dialog
(`engine/attention.py`), so the batch includes the lengths.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens


def collate_dialogs(dialogs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one batch.

    input_ids [1, T] and position_ids [1, T] (restarting in each dialog); labels [S], the supervised target ids,
    and label_positions [S], the positions in T whose hidden state predicts them; dialog_lengths, B numbers that
    sum to T, and dialog_bounds [B + 1], where each dialog begins and the last ends.
    """
    lengths = [len(d["input_ids"]) for d in dialogs]
    ids = np.concatenate([d["input_ids"] for d in dialogs]).astype(np.int64)
    supervised = np.concatenate([d["supervised"] for d in dialogs])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    # No token precedes the first token of a dialog and could predict it.
    supervised[bounds[:-1]] = False
    targets = np.flatnonzero(supervised)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        "labels": torch.from_numpy(ids[targets]),
        "label_positions": torch.from_numpy(targets - 1),
        "dialog_lengths": tuple(lengths),
        "dialog_bounds": torch.from_numpy(bounds.astype(np.int32)),
    }


def batches_of(dialogs: "DialogTokens", batch_size: int) -> "Iterator[tuple[dict[str, Any], list[int]]]":
    """Yield padding-free batches, each with the answer bytes of its dialogs."""
    for start in range(0, len(dialogs), batch_size):
        chunk = [dialogs[i] for i in range(start, min(start + batch_size, len(dialogs)))]
        yield collate_dialogs(chunk), [d["answer_bytes"] for d in chunk]
