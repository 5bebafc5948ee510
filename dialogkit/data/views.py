"""Long lists that take little memory: packed dialogs, and views whose elements are made when they are read."""

import marshal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

from dialogkit.dialog import Dialog, Message

T = TypeVar("T")


class View(Sequence[T]):
    """A list of `length` elements, each made by a function of its index whenever it is read."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[T]:
        return map(self._make, range(self._length))

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(number) for number in range(self._length)[index]]
        return self._make(range(self._length)[index])


class PackedDialogs(View[Dialog]):
    """Dialogs that can be appended to; each is kept as bytes, a third of the memory that its turns take."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        super().__init__(0, self._unpacked)

    def append(self, dialog: Dialog) -> None:
        """Add a dialog."""
        self._packed.append(marshal.dumps([tuple(message) for message in dialog]))
        self._length += 1

    def _unpacked(self, index: int) -> Dialog:
        turns: list[Any] = marshal.loads(self._packed[index])
        return tuple(Message(*turn) for turn in turns)
