"""What held-out dialogs share with the dialogs to train on, by their tokens."""

from typing import NamedTuple

import numpy as np

from dialogkit.data.tokens import DialogTokens


class Overlap(NamedTuple):
    """Held-out dialogs whose prompt (everything before the first answer) or answer occurs in training."""

    prompts: int
    answers: int


def overlap_of(held_out: DialogTokens, train: DialogTokens) -> Overlap:
    """Return how many held-out dialogs have a prompt, and how many a first answer, of a dialog to train on."""
    prompts, answers = (set(parts) for parts in _parts(train))
    own_prompts, own_answers = _parts(held_out)
    return Overlap(sum(part in prompts for part in own_prompts), sum(part in answers for part in own_answers))


def _parts(dialogs: DialogTokens) -> tuple[list[bytes], list[bytes]]:
    """Return the tokens before the first answer of each dialog, and those of the answer."""
    # A position after the last token ends a span that nothing else ends.
    learned = np.append(np.flatnonzero(dialogs.supervised), len(dialogs.ids))
    others = np.append(np.flatnonzero(~dialogs.supervised), len(dialogs.ids))
    begins, ends = dialogs.offsets[:-1], dialogs.offsets[1:]
    starts = np.minimum(learned[np.searchsorted(learned, begins + 1)], ends)
    stops = np.minimum(others[np.searchsorted(others, starts)], ends)
    ids = dialogs.ids
    prompts = [ids[a:b].tobytes() for a, b in zip(begins.tolist(), starts.tolist(), strict=True)]
    return prompts, [ids[a:b].tobytes() for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
