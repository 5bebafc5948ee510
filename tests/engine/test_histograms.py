"""Histograms are true, and taking them changes nothing."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.engine.histograms import BINS, SAMPLE, histogram
from dialogkit.services.train import train


def test_a_histogram_counts_every_value_of_a_small_tensor() -> None:
    made = histogram(torch.tensor([0.0, 1.0, 1.0, 4.0, float("nan"), float("inf")]))
    assert made is not None
    assert (made.counts.sum(), made.edges[0], made.edges[-1]) == (4, 0.0, 4.0)
    assert made.counts[BINS // 4] == 2


def test_a_large_tensor_is_read_in_even_steps() -> None:
    made = histogram(torch.arange(10.0 * SAMPLE).reshape(10, -1))
    assert made is not None
    assert made.counts.sum() == SAMPLE
    assert made.counts.max() == made.counts.min()


@pytest.mark.parametrize("value", [0.0, 1.0, -3e7, 1e-42])
def test_values_that_hardly_differ_have_a_histogram(value: float) -> None:
    made = histogram(torch.tensor([value, value * (1 + 1e-7), value]))
    assert made is not None
    assert made.counts.sum() == 3
    assert made.edges[0] < value < made.edges[-1]


def test_nothing_to_count_is_no_histogram() -> None:
    assert histogram(torch.tensor([float("nan")])) is None


def test_taking_histograms_changes_no_bit_and_no_random_state(
    small_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[str]]] = []

    def listen(self: object, step: int, histograms: dict[str, object]) -> None:
        seen.append((step, set(histograms)))

    monkeypatch.setattr("dialogkit.services.training.recorder.Recorder.histograms", listen)
    digests = []
    for every in (0, 2):
        settings = {"tracking.histogram_every_steps": every, "tracking.replies_at_evaluations": every}
        random = {"model.architecture": "gpt2", "train.dropout": 0.1}
        result = train(small_config({**settings, **random, "train.eval_every_steps": 2}))
        weights = (tmp_path / result.model_dir / "model.safetensors").read_bytes()
        digests.append(hashlib.sha256(weights).hexdigest())
    assert digests[0] == digests[1]
    steps = [step for step, _ in seen]
    assert steps == [0, 0, 1, 2, 4]  # the lengths of the dialogs in either run, then the weights in one
    names = seen[-1][1]
    assert "weights/transformer.wte.weight" in names
    assert {name.replace("weights/", "gradients/") for name in names} == {
        name.replace("weights/", "gradients/") for name in names if name.startswith("gradients/")
    }
