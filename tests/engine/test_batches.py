"""Global batches are the same sets of dialogs for any number of processes, balanced by tokens."""

import random

import pytest
import torch

from dialogkit.config.train import TrainConfig
from dialogkit.engine.batches import (
    BalancedBatches,
    DialogsWithFillers,
    balance,
    balance_micro_batches,
    parts_within,
)
from dialogkit.errors import ConfigError
from tests.conftest import typed

SPLITS = [(1, 2), (2, 1), (2, 2), (4, 2), (8, 1)]


def lengths_of(number: int) -> list[int]:
    chance = random.Random(number)
    return [int(chance.lognormvariate(5, 0.8)) + 4 for _ in range(number)]


@pytest.mark.parametrize("groups", [1, 2, 7, 16])
def test_every_dialog_is_in_one_group_and_no_group_is_empty(groups: int) -> None:
    lengths = lengths_of(16)
    balanced = balance(lengths, groups)
    assert sorted(dialog for group in balanced for dialog in group) == list(range(16))
    assert len(balanced) == groups
    assert all(balanced)


def test_groups_have_about_the_same_number_of_tokens() -> None:
    lengths = lengths_of(512)
    loads = [sum(lengths[dialog] for dialog in group) for group in balance(lengths, 8)]
    in_turn = [sum(lengths[start::8]) for start in range(8)]
    mean = sum(lengths) / 8
    assert max(loads) / mean < 1.01 < max(in_turn) / mean


def test_one_long_dialog_is_balanced_by_all_others() -> None:
    assert balance([100, 1, 1, 1], 2) == [[0], [1, 2, 3]]


@pytest.mark.parametrize(("processes", "micro_batches"), SPLITS)
def test_every_process_has_as_many_micro_batches_and_tokens(processes: int, micro_batches: int) -> None:
    lengths = lengths_of(256)
    assigned = balance_micro_batches(lengths, processes, micro_batches)
    assert [len(of_one) for of_one in assigned] == [micro_batches] * processes
    loads = [sum(lengths[dialog] for group in of_one for dialog in group) for of_one in assigned]
    assert max(loads) / (sum(lengths) / processes) < 1.02


@pytest.mark.parametrize("in_rows", [False, True])
@pytest.mark.parametrize("limit", [1, 300, 2_000, 10**6])
def test_a_part_has_as_many_tokens_as_allowed_or_a_single_dialog(limit: int, in_rows: bool) -> None:
    lengths = lengths_of(100)
    parts = parts_within(lengths, limit, in_rows=in_rows)
    assert sorted(dialog for part in parts for dialog in part) == list(range(100))
    sizes = [[lengths[dialog] for dialog in part] for part in parts]
    tokens = [max(size) * len(size) if in_rows else sum(size) for size in sizes]
    assert all(count <= limit or len(part) == 1 for count, part in zip(tokens, parts, strict=True))
    assert len(parts) <= max(1, 2 * sum(tokens) / limit)


def drawn(
    processes: int, micro_batches: int, epoch: int = 0, number: int = 21, batch: int = 8
) -> list[list[list[int]]]:
    """Return the dialogs of each step's micro-batches, of all processes."""
    torch.manual_seed(42)
    steps: list[list[list[int]]] = [[] for _ in range(-(-number // batch))]
    for process in range(processes):
        batches = BalancedBatches(
            lengths_of(number), batch, micro_batches=micro_batches, processes=processes, process=process
        )
        batches.set_epoch(epoch)
        assert batches.steps == len(steps)
        made = list(batches)
        assert len(made) == len(batches)
        for number_made, group in enumerate(made):
            steps[number_made // micro_batches].append(group)
    return steps


@pytest.mark.parametrize(("processes", "micro_batches"), SPLITS)
def test_a_global_batch_is_the_same_set_for_any_split(processes: int, micro_batches: int) -> None:
    for epoch in (0, 1):
        alone = [sorted(step[0]) for step in drawn(1, 1, epoch)]
        split = drawn(processes, micro_batches, epoch)
        assert [sorted(i for group in step for i in group if i >= 0) for step in split] == alone
        # The last batch has five dialogs: of more micro-batches, some only have a negative index of one of these.
        assert all(group for step in split for group in step)
        assert all(
            ~i in step
            for step, groups in zip(alone, split, strict=True)
            for group in groups
            for i in group
            if i < 0
        )
    assert drawn(processes, micro_batches, 0) != drawn(processes, micro_batches, 1)


def test_the_order_is_that_of_the_trainers_own_batches() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    torch.manual_seed(42)
    order = list(SeedableRandomSampler(range(21)))
    assert [sorted(step[0]) for step in drawn(1, 1)] == [
        sorted(order[start : start + 8]) for start in range(0, 21, 8)
    ]


def test_a_negative_index_gives_a_dialog_without_supervised_tokens(small: object) -> None:
    dialogs = small.train  # type: ignore[attr-defined]
    filled = DialogsWithFillers(dialogs)
    assert len(filled) == len(dialogs)
    assert (filled[3]["input_ids"] == filled[~3]["input_ids"]).all()
    assert filled[3]["supervised"].any()
    assert not filled[~3]["supervised"].any()
    assert dialogs[3]["supervised"].any()


@pytest.mark.parametrize(
    ("size", "micro_batches", "processes", "message"),
    [
        (8, 1, 3, "6 or 9 would, and 1 or 2 processes would as well"),
        (8, 2, 8, "each in 2 micro-batches: 16 would, and 1, 2 or 4 processes would as well"),
        (4, 1, 8, "8 would, and 1, 2 or 4 processes would as well"),
    ],
)
def test_indivisible_batches_are_refused_with_the_numbers_that_work(
    size: int, micro_batches: int, processes: int, message: str
) -> None:
    config = TrainConfig(batch_size=size, accumulation_steps=micro_batches)
    with pytest.raises(ConfigError, match="does not split evenly") as refused:
        config.require_divisible(processes)
    assert message in refused.value.message
    hint = typed(refused.value)
    assert hint is not None
    better = int(hint.rpartition(" ")[2])
    config.model_copy(update={"batch_size": better}).require_divisible(processes)
    config.require_divisible(1)
