"""What rows say about the answers of their dialogs: the check of a right answer, the topic, and what is new."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dialogkit.data.checks import Check, checks_of
from dialogkit.dialog import Dialog

CHECK, TOPIC, NEW = "check", "topic", "new"
COLUMNS = (CHECK, TOPIC, NEW)
"""The columns that are used once a row has a check."""


class Checked(NamedTuple):
    """What a row says about the answers of its dialog."""

    checks: list[Check | None]
    """The check of each answer to learn; None for an answer without one."""
    topic: str = ""
    new: str = ""
    """What is new in a held-out dialog, as worlds name it."""

    @property
    def number(self) -> int:
        """Answers with a check."""
        return sum(check is not None for check in self.checks)


def checked_of(values: Mapping[str, Any], dialog: Dialog, *, trusted: bool = False) -> Checked | None:
    """Return what a row says about the answers of its dialog, by its columns; None if it checks none.

    Args:
        values: the row.
        dialog: its dialog.
        trusted: whether its check has a value for each answer, as that of a world; to try many takes seconds.

    Raises: DataError if its check is none, or does not suit the number of answers.
    """
    check = values.get(CHECK)
    if check is None or check == "":  # as in an empty cell of a table
        return None
    asked = next(index for index, message in enumerate(dialog) if message.role == "user")
    answers = [message for message in dialog[asked:] if message.role == "assistant"]
    each = check if trusted else checks_of(check, len(answers))
    learned = [value for value, answer in zip(each, answers, strict=True) if answer.learned]
    topic, new = (values.get(name) for name in (TOPIC, NEW))
    made = Checked(learned, topic if isinstance(topic, str) else "", new if isinstance(new, str) else "")
    return made if made.number else None


def packed(checked: Mapping[int, Checked]) -> NDArray[np.uint8]:
    """Return what rows say, by the hash of their dialogs, as an array for the cache."""
    text = json.dumps([[hashed, *one] for hashed, one in checked.items()])
    return np.frombuffer(text.encode(), dtype=np.uint8)


def unpacked(array: NDArray[Any]) -> dict[int, Checked]:
    """Return what `packed` packed. Raises: ValueError, TypeError for another array."""
    return {int(hashed): Checked(*one) for hashed, *one in json.loads(array.tobytes())}
