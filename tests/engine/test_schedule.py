"""The learning rate of each step, in new runs and in those that an older version began."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from dialogkit.config.train import TrainConfig
from dialogkit.engine.checkpoints import commit, read_progress
from dialogkit.engine.schedule import StepSchedule

HF_NAMES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def rates_of_hf(schedule: str, warmup: int, steps: int) -> list[float]:
    """Return the learning rates of HF's scheduler, which versions up to 0.2.0 used."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(HF_NAMES[schedule], optimizer, warmup, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.1), (5, 0.1), (40, 0.1), (40, 0.0), (200, 0.34)])
def test_every_step_learns_and_the_decay_is_that_of_hf(schedule: Any, steps: int, warmup: float) -> None:
    config = TrainConfig(schedule=schedule, warmup_fraction=warmup)
    rising = round(warmup * steps)
    new, hf = list(map(StepSchedule(config, steps), range(steps))), rates_of_hf(schedule, rising, steps)
    assert new[:rising] == [(step + 1) / rising for step in range(rising)]
    assert new[rising:] == hf[rising:]
    assert min(new) > 0
    assert list(map(StepSchedule(config, steps, from_zero=True), range(steps))) == hf


@pytest.mark.parametrize("is_old", [True, False])
def test_a_resumed_run_keeps_the_warm_up_that_it_began_with(small: Any, is_old: bool) -> None:
    rates: dict[int, float] = {}

    def sink(step: int, metrics: dict[str, float]) -> None:
        if "train/learning_rate" in metrics:
            rates[step] = metrics["train/learning_rate"]

    def fit(resume_from: Path | None = None) -> None:
        small.fit(
            small.model(), small.train.select(range(8)), sink=sink, resume_from=resume_from, max_steps=6,
            warmup_fraction=0.99, learning_rate=1e-2, batch_size=2, log_every_steps=1, eval_every_steps=1,
            keep="last", keep_checkpoints=9,
        )  # fmt: skip

    fit()
    assert [rates[step] for step in range(1, 7)] == pytest.approx([1e-2 * step / 6 for step in range(1, 7)])
    checkpoint = Path("fit/checkpoint-3")
    if is_old:
        path, progress = checkpoint / "scheduler.pt", read_progress(checkpoint)
        assert progress is not None
        state = torch.load(path, weights_only=True)
        torch.save(state | {"lr_lambdas": [{} for _ in state["lr_lambdas"]]}, path)  # as HF's scheduler writes it
        commit(checkpoint, progress)
    for checkpoint in (
        Path("fit/checkpoint-3"),
        Path("fit/checkpoint-5"),
    ):  # the second was written by a resumed run
        fit(checkpoint)
        after = [rates[step] for step in (5, 6)]
        assert after == pytest.approx([1e-2 * (step - is_old) / 6 for step in (5, 6)])
