"""What held-out dialogs share with those to train on."""

from typing import Any

import numpy as np

from dialogkit.data.overlap import overlap_of
from dialogkit.data.tokens import DialogTokens


def dialogs(*rows: tuple[list[int], list[int], list[int]]) -> DialogTokens:
    """Pack dialogs of a prompt, an answer, and what follows it."""
    return DialogTokens.from_dialogs(
        {
            "input_ids": np.array([*prompt, *answer, *rest]),
            "supervised": np.array([False] * len(prompt) + [True] * len(answer) + [False] * len(rest)),
            "answer_bytes": len(answer),
        }
        for prompt, answer, rest in rows
    )


def test_prompts_and_first_answers_that_training_has_are_counted() -> None:
    train = dialogs(([1, 2], [3, 4], []), ([1, 5], [6], [7, 8]))
    held_out: Any = dialogs(
        ([1, 2], [9], []),  # the prompt
        ([1, 9], [6], [1]),  # the answer, whatever follows
        ([1, 9], [3], [4]),  # a part of an answer
        ([2, 1], [4, 3], []),
    )
    assert overlap_of(held_out, train) == (1, 1)
    assert overlap_of(train, train) == (2, 2)
    assert overlap_of(held_out, train.select([])) == (0, 0)
