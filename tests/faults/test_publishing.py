"""Real runs of one model that finish together leave one whole model, and each reports the truth."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dialogkit.system.ownership import FILE_LIST, is_as_written, read_list
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL
from tests.forks import start_forked


def train_named(name: str, settings: dict[str, Any], begin: float) -> None:
    from dialogkit.config.load import load_run_config
    from dialogkit.services.train import train

    time.sleep(max(0.0, begin - time.time()))
    result = train(load_run_config("custom-nano", overrides={**SMALL, **settings, "name": name}))
    assert result.published_dir == "models/custom_nano"


def finish_together(folder: Path, names: Sequence[str], settings: dict[str, Any]) -> None:
    begin = time.time() + 3
    seeds = {name: {**settings, "train.seed": seed} for seed, name in enumerate(names)}
    processes = [start_forked(train_named, name, seeds[name], begin, folder=folder) for name in names]
    for process in processes:
        process.join(600)
    runs = [RunDir(folder / "models/runs" / name) for name in names]
    assert {run.name: (run.read().status, run.read().error) for run in runs} == dict.fromkeys(
        names, ("completed", None)
    )
    published = folder / "models/custom_nano"
    listed = read_list(published)
    assert listed is not None
    assert {path.name for path in published.iterdir()} == {*listed, FILE_LIST}
    assert all(is_as_written(published / name, entry) for name, entry in listed.items())
    of_runs = [{name: (run.model_dir / name).read_bytes() for name in listed} for run in runs]
    assert {name: (published / name).read_bytes() for name in listed} in of_runs
    assert len({files["model.safetensors"] for files in of_runs}) == len(runs)
    assert {path.name for path in (folder / "models").iterdir()} <= {"custom_nano", "runs", "wandb"}


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_two_runs_with_equal_budgets(tmp_path: Path) -> None:
    finish_together(tmp_path, ["one", "two"], {"train.max_steps": None, "train.budget_s": 10.0})


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [10, 50])
def test_many_trainings(number: int, tmp_path: Path) -> None:
    settings = {"train.max_steps": 2, "train.eval_every_steps": 2}
    finish_together(tmp_path, [f"run-{index}" for index in range(number)], settings)
