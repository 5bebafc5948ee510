"""Long lists that take little memory read like lists."""

import sys

import pytest

from dialogkit.data.views import PackedDialogs, View
from dialogkit.dialog import Dialog, Message

DIALOGS: list[Dialog] = [
    (Message("user", "Hello!"), Message("assistant", "Hello! \N{WAVING HAND SIGN}")),
    (Message("assistant", "Ask.", learned=False), Message("user", "\ud800"), Message("assistant", "")),
    (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hi.")),
]


def test_packed_dialogs_are_what_they_were() -> None:
    packed = PackedDialogs()
    for dialog in DIALOGS:
        packed.append(dialog)
    assert packed == DIALOGS
    assert [*packed] == DIALOGS
    assert packed[-1] == DIALOGS[-1]
    assert packed[1].__class__ is tuple
    assert [turn.learned for turn in packed[1]] == [False, True, True]
    assert packed[1:] == DIALOGS[1:]
    with pytest.raises(IndexError):
        packed[3]


def test_a_view_makes_its_elements_when_they_are_read() -> None:
    read: list[int] = []

    def square(index: int) -> int:
        read.append(index)
        return index**2

    squares = View(10**9, square)
    assert len(squares) == 10**9
    assert sys.getsizeof(squares) < 1000
    assert squares[3] == 9
    assert squares[4:6] == [16, 25]
    assert read == [3, 4, 5]
