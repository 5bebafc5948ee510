"""A training that tests disturb, what is seen of it from outside, and how it ends when nobody disturbs it."""

import hashlib
import json
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from dialogkit.engine.checkpoints import read_progress
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL
from tests.forks import run_forked

ROUNDS = int(os.environ.get("DIALOGKIT_FAULT_ROUNDS", "0"))
"""How often each long test ends a process; 0: as often as it says itself."""


SETTINGS = {**SMALL, "model.tokenizer": None}
"""With the shipped tokenizer a checkpoint is of megabytes, and it takes a moment to write that can be met."""


def train_or_go_on(steps: int) -> str:
    """Train the run `it` to its end, or go on with it; return the SHA-256 of weights, optimizer and history."""
    from dialogkit.config.load import load_run_config
    from dialogkit.services.train import resume, train

    run = RunDir(Path("models/runs/it"))
    if run.exists:
        resume(run)
    else:
        settings = {"train.max_steps": steps, "train.eval_every_steps": 1, "name": "it"}
        train(load_run_config("custom-nano", overrides={**SETTINGS, **settings}))
    reported = [
        {name: value for name, value in point.items() if name.startswith(("step", "train/", "eval/"))}
        for point in run.metrics()
    ]
    files = (run.model_dir / "model.safetensors", run.path / f"checkpoint-{steps}/optimizer.pt")
    contents = [*(file.read_bytes() for file in files), json.dumps(reported).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


class Undisturbed:
    """Trainings that nobody disturbs, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._digests = folder, dict[int, str]()

    def digest(self, steps: int) -> str:
        """Return what `train_or_go_on` returns."""
        if steps not in self._digests:
            (self._folder / str(steps)).mkdir()
            self._digests[steps] = run_forked(train_or_go_on, steps, folder=self._folder / str(steps))
        return self._digests[steps]

    def save_s(self, steps: int) -> float:
        """Return the seconds of a save, from its first file to its manifest."""
        self.digest(steps)
        saves = list((self._folder / str(steps) / "models/runs/it").glob("checkpoint-*"))
        times = [[file.stat().st_mtime for file in save.iterdir()] for save in saves]
        return sum(max(one) - min(one) for one in times) / len(times)


def newest_step(run: Path) -> int:
    """Return the step of the newest valid checkpoint, and touch nothing."""
    found = [read_progress(folder) for folder in run.glob("checkpoint-*")]
    return max((progress.step for progress in found if progress is not None), default=0)


def unsealed(run: Path) -> set[int]:
    """Return the checkpoints that are being written or were left so, by their folders' numbers in the system."""
    return {folder.stat().st_ino for folder in run.glob("checkpoint-*") if not (folder / "manifest.json").exists()}


def wait_for_save(run: Path, process: BaseProcess, *, number: int) -> None:
    """Wait until a process has begun so many saves, or has ended."""
    known = set(run.glob("checkpoint-*"))
    while process.is_alive() and number > 0:
        new = set(run.glob("checkpoint-*")) - known
        known |= new
        number -= len(new)
        time.sleep(0.0005)
