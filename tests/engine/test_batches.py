"""Global batches are the same sets of dialogs for any number of processes, dealt out by tokens."""

import random

import pytest
import torch

from dialogkit.config.train import TrainConfig
from dialogkit.engine.batches import DealtBatches, DealtDialogs, deal, deal_parts
from dialogkit.errors import ConfigError

SPLITS = [(1, 2), (2, 1), (2, 2), (4, 2), (8, 1)]


def lengths_of(number: int) -> list[int]:
    chance = random.Random(number)
    return [int(chance.lognormvariate(5, 0.8)) + 4 for _ in range(number)]


@pytest.mark.parametrize("hands", [1, 2, 7, 16])
def test_every_dialog_is_dealt_once_and_no_hand_is_empty(hands: int) -> None:
    lengths = lengths_of(16)
    dealt = deal(lengths, hands)
    assert sorted(dialog for hand in dealt for dialog in hand) == list(range(16))
    assert len(dealt) == hands
    assert all(dealt)


def test_hands_hold_about_the_same_number_of_tokens() -> None:
    lengths = lengths_of(512)
    loads = [sum(lengths[dialog] for dialog in hand) for hand in deal(lengths, 8)]
    in_turn = [sum(lengths[start::8]) for start in range(8)]
    mean = sum(lengths) / 8
    assert max(loads) / mean < 1.01 < max(in_turn) / mean


def test_one_long_dialog_leaves_the_rest_to_the_others() -> None:
    assert deal([100, 1, 1, 1], 2) == [[0], [1, 2, 3]]


@pytest.mark.parametrize(("processes", "parts"), SPLITS)
def test_each_process_has_its_number_of_parts_and_its_share_of_tokens(processes: int, parts: int) -> None:
    lengths = lengths_of(256)
    held = deal_parts(lengths, processes, parts)
    assert [len(of_one) for of_one in held] == [parts] * processes
    loads = [sum(lengths[dialog] for part in of_one for dialog in part) for of_one in held]
    assert max(loads) / (sum(lengths) / processes) < 1.02


def drawn(processes: int, parts: int, epoch: int = 0, number: int = 21, batch: int = 8) -> list[list[list[int]]]:
    """Return the dialogs of each step's parts, of all processes."""
    torch.manual_seed(42)
    steps: list[list[list[int]]] = [[] for _ in range(-(-number // batch))]
    for process in range(processes):
        batches = DealtBatches(lengths_of(number), batch, parts=parts, processes=processes, process=process)
        batches.set_epoch(epoch)
        assert batches.steps == len(steps)
        made = list(batches)
        assert len(made) == len(batches)
        for step, part in enumerate(made):
            steps[step // parts].append(part)
    return steps


@pytest.mark.parametrize(("processes", "parts"), SPLITS)
def test_a_global_batch_is_the_same_set_for_any_split(processes: int, parts: int) -> None:
    for epoch in (0, 1):
        alone = [sorted(step[0]) for step in drawn(1, 1, epoch)]
        split = drawn(processes, parts, epoch)
        assert [sorted(i for part in step for i in part if i >= 0) for step in split] == alone
        # The last batch has five dialogs: where there are more parts, some only fill up, with one of these.
        assert all(part for step in split for part in step)
        assert all(~i in step for step, parts in zip(alone, split, strict=True) for p in parts for i in p if i < 0)
    assert drawn(processes, parts, 0) != drawn(processes, parts, 1)


def test_the_order_is_that_of_the_trainers_own_batches() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    torch.manual_seed(42)
    order = list(SeedableRandomSampler(range(21)))
    assert [sorted(step[0]) for step in drawn(1, 1)] == [
        sorted(order[start : start + 8]) for start in range(0, 21, 8)
    ]


def test_a_dialog_that_fills_up_has_nothing_to_learn(small: object) -> None:
    dialogs = small.train  # type: ignore[attr-defined]
    dealt = DealtDialogs(dialogs)
    assert len(dealt) == len(dialogs)
    assert (dealt[3]["input_ids"] == dealt[~3]["input_ids"]).all()
    assert dealt[3]["supervised"].any()
    assert not dealt[~3]["supervised"].any()
    assert dialogs[3]["supervised"].any()


@pytest.mark.parametrize(
    ("size", "parts", "processes", "told"),
    [
        (8, 1, 3, "6 or 9 would, and 1 or 2 processes would as well"),
        (8, 2, 8, "each in 2 parts: 16 would, and 1, 2 or 4 processes would as well"),
        (4, 1, 8, "8 would, and 1, 2 or 4 processes would as well"),
    ],
)
def test_uneven_splits_are_refused_with_the_numbers_that_work(
    size: int, parts: int, processes: int, told: str
) -> None:
    config = TrainConfig(batch_size=size, accumulation_steps=parts)
    with pytest.raises(ConfigError, match="does not split evenly") as refused:
        config.require_even(processes)
    assert told in refused.value.message
    assert refused.value.hint is not None
    better = int(refused.value.hint.rpartition("=")[2])
    config.model_copy(update={"batch_size": better}).require_even(processes)
    config.require_even(1)
