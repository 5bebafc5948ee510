"""What a model has read before: the beginnings of dialogs that may go on."""

from bisect import bisect_left
from collections.abc import Sequence

from dialogkit.inference.row_cache import Row

MOST_PREFIXES = 64


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two sequences have in common at their beginning."""
    lengths = range(1, min(len(one), len(other)) + 1)
    # Slices are compared much faster than ids one by one.
    return bisect_left(lengths, True, key=lambda length: one[:length] != other[:length])


class Prefixes:
    """Keys and values of ids that were read; those that were not used for longest go first."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._rows: dict[tuple[int, ...], Row] = {}

    @property
    def held_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(map(_bytes_of, self._rows.values()))

    def add(self, ids: Sequence[int], row: Row) -> None:
        """Keep a copy of the keys and values of ids, in place of those of a beginning of them."""
        new = tuple(ids)
        if _bytes_of(row) > self._most_bytes:
            return
        for old in [old for old in self._rows if common(old, new) == len(old)]:
            del self._rows[old]
        self._rows[new] = [held and (held[0].clone(), held[1].clone()) for held in row]
        while len(self._rows) > MOST_PREFIXES or self.held_bytes > self._most_bytes:
            del self._rows[next(iter(self._rows))]

    def find(self, ids: Sequence[int]) -> tuple[int, Row]:
        """Return how many ids at the beginning were read before, and their keys and values."""
        wanted = tuple(ids)
        length, found = max(((common(wanted, old), old) for old in self._rows), default=(0, ()))
        if not length:
            return 0, []
        row = self._rows[found] = self._rows.pop(found)
        return length, [held and (held[0][:, :, :length], held[1][:, :, :length]) for held in row]

    def clear(self) -> None:
        """Keep nothing."""
        self._rows.clear()


def _bytes_of(row: Row) -> int:
    return sum(part.numel() * part.element_size() for held in row if held for part in held)
