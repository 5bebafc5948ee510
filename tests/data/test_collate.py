"""Padding-free batches."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.data.collate import collate_dialogs

FLAGS = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=6)


def make(flags: list[list[bool]]) -> list[dict[str, Any]]:
    """Return dialogs in which every token has a distinct id."""
    ids = iter(range(1000))
    return [
        {
            "input_ids": np.array([next(ids) for _ in f], dtype=np.int32),
            "supervised": np.array(f),
            "answer_bytes": 1,
        }
        for f in flags
    ]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(FLAGS)
def test_a_batch_is_its_dialogs_one_after_another(flags: list[list[bool]]) -> None:
    dialogs = make(flags)
    batch = collate_dialogs(dialogs)
    total = sum(map(len, flags))
    assert batch["dialog_lengths"] == tuple(map(len, flags))
    assert (batch["dialog_bounds"].dtype, int(batch["dialog_bounds"][0])) == (torch.int32, 0)  # as kernels need it
    assert tuple(batch["dialog_bounds"].diff().tolist()) == batch["dialog_lengths"]
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, total)
    assert batch["input_ids"][0].tolist() == [int(i) for d in dialogs for i in d["input_ids"]]
    assert batch["position_ids"][0].tolist() == [position for f in flags for position in range(len(f))]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(FLAGS)
def test_a_label_is_predicted_from_the_token_before_it_in_the_same_dialog(flags: list[list[bool]]) -> None:
    dialogs = make(flags)
    batch = collate_dialogs(dialogs)
    expected = [
        (int(d["input_ids"][i - 1]), int(d["input_ids"][i]))
        for d in dialogs
        for i in range(1, len(d["input_ids"]))
        if d["supervised"][i]
    ]
    before = batch["input_ids"][0][batch["label_positions"]]
    assert list(zip(before.tolist(), batch["labels"].tolist(), strict=True)) == expected


def test_a_first_token_is_never_a_label_and_the_dialogs_stay_as_they_are() -> None:
    dialogs = make([[True, True], [True], [True, False, True]])
    for batch in (collate_dialogs(dialogs), collate_dialogs(dialogs[:1])):
        assert not set(batch["labels"].tolist()) & {int(d["input_ids"][0]) for d in dialogs}
    assert [d["supervised"].tolist() for d in dialogs] == [[True, True], [True], [True, False, True]]


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "labels", "label_positions"])
def test_tensors_index_with_64_bits(name: str) -> None:
    assert collate_dialogs(make([[False, True]]))[name].dtype == torch.int64
