"""What was read before is found by its longest beginning, and takes no more memory than is allowed."""

import torch

from dialogkit.inference.prefixes import Prefixes, common
from dialogkit.inference.row_cache import Row

TOKEN_BYTES = 2 * 4


def row_of(ids: list[int]) -> Row:
    """Return keys and values that are the ids themselves, of a layer beside one that has none."""
    states = torch.tensor(ids, dtype=torch.float32).view(1, 1, -1, 1)
    return [None, (states, -states)]


def found(prefixes: Prefixes, ids: list[int]) -> list[int]:
    length, row = prefixes.find(ids)
    if not length:
        return []
    keys, values = row[1] or (torch.empty(0), torch.empty(0))
    assert torch.equal(keys, -values)
    assert keys.shape[-2] == length
    return [int(each) for each in keys.flatten()]


def test_the_longest_common_beginning_is_found() -> None:
    prefixes = Prefixes(1000)
    for ids in ([1, 2, 3], [1, 2, 7, 8], [5]):
        prefixes.add(ids, row_of(ids))
    assert found(prefixes, [1, 2, 7, 9]) == [1, 2, 7]
    assert found(prefixes, [1, 2, 3, 4]) == [1, 2, 3]
    assert found(prefixes, [2]) == []


def test_a_dialog_that_goes_on_takes_the_place_of_its_beginning() -> None:
    prefixes = Prefixes(1000)
    for ids in ([1, 2], [1, 2, 3], [4]):
        prefixes.add(ids, row_of(ids))
    assert prefixes.held_bytes == 4 * TOKEN_BYTES


def test_those_not_used_for_longest_go_when_memory_is_full() -> None:
    prefixes = Prefixes(4 * TOKEN_BYTES)
    for ids in ([1, 1], [2, 2], [0] * 5):  # the last is too large by itself
        prefixes.add(ids, row_of(ids))
    assert found(prefixes, [1]) == [1]
    prefixes.add([3], row_of([3]))
    assert (found(prefixes, [1]), found(prefixes, [2]), found(prefixes, [3])) == ([1], [], [3])
    prefixes.clear()
    assert prefixes.held_bytes == 0


def test_what_two_sequences_have_in_common_is_counted() -> None:
    assert [common(one, (1, 2, 3)) for one in ((), (1,), (1, 2, 4), (1, 2, 3), (1, 2, 3, 4), (2,))] == [
        0, 1, 2, 3, 3, 0,
    ]  # fmt: skip
