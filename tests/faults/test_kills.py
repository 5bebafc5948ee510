"""`kill -9` at any moment costs at most the work since the last checkpoint, and the end is the same."""

import hashlib
import os
import random
import time
from pathlib import Path

import pytest

from dialogkit.engine.checkpoints import read_progress
from dialogkit.tracking.rundir import RunDir
from tests.conftest import SMALL
from tests.forks import run_forked, start_forked

ROUNDS = int(os.environ.get("DIALOGKIT_FAULT_ROUNDS", "40"))


def train_or_go_on(steps: int) -> str:
    """Train the run `it` to its end, or go on with it; return the SHA-256 of its weights."""
    from dialogkit.config.load import load_run_config
    from dialogkit.services.train import resume, train

    run = RunDir(Path("models/runs/it"))
    if run.exists:
        resume(run)
    else:
        settings = {"train.max_steps": steps, "train.eval_every_steps": 1, "name": "it"}
        train(load_run_config("custom-nano", overrides={**SMALL, **settings}))
    return hashlib.sha256((run.model_dir / "model.safetensors").read_bytes()).hexdigest()


def newest_step(run: Path) -> int:
    """Return the step of the newest valid checkpoint, and touch nothing."""
    found = [read_progress(folder) for folder in run.glob("checkpoint-*")]
    return max((progress.step for progress in found if progress is not None), default=0)


def kill_and_go_on(folder: Path, *, rounds: int, steps: int, seed: int) -> tuple[int, int]:
    """Kill a training again and again; return how many kills came before its end, and how many in a save."""
    chance = random.Random(seed)
    run, reached, kills, in_save = folder / "models/runs/it", 0, 0, 0
    for _ in range(rounds):
        process = start_forked(train_or_go_on, steps, folder=folder)
        time.sleep(chance.uniform(0.3, 2.5))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        if run.is_dir():
            in_save += any(read_progress(path) is None for path in run.glob("checkpoint-*"))
            step = newest_step(run)
            assert step >= reached
            reached = step
    return kills, in_save


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("rounds", "steps"), [(1, 12), pytest.param(ROUNDS, 60, marks=pytest.mark.faults)])
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path, rounds: int, steps: int) -> None:
    (tmp_path / "whole").mkdir()
    expected = run_forked(train_or_go_on, steps, folder=tmp_path / "whole")
    total = saves = 0
    for seed in range(10_000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kills, in_save = kill_and_go_on(folder, rounds=min(rounds - total, 12), steps=steps, seed=seed)
        total, saves = total + kills, saves + in_save
        assert run_forked(train_or_go_on, steps, folder=folder, timeout=300) == expected
        if total >= rounds:
            break
    print(f"{total} kills, {saves} of them inside a save: no checkpoint lost, same weights")
