"""Trackers beside W&B: what they get, where they write, and that they cannot end a run."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.errors import UnavailableError
from dialogkit.services.train import train
from dialogkit.tracking import trackers
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.trackers import require_trackers, tracker_places
from tests.conftest import typed

TENSORBOARD = {"tracking.trackers": ["tensorboard"], "train.log_every_steps": 1, "train.eval_every_steps": 2}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars of an event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_gets_the_points_of_the_run_in_its_folder(small_config: Callable[..., Any]) -> None:
    run = RunDir(Path(train(small_config(TENSORBOARD)).run_dir))
    logged = scalars(run.path / "tensorboard")
    for name in ("train/loss", "train/learning_rate", "eval/nats_per_token", "eval/bits_per_byte"):
        mine = [(p["step"], p[name]) for p in run.metrics() if name in p and p["step"] > 0]
        assert [step for step, _ in logged[name]] == [step for step, _ in mine]
        assert [value for _, value in logged[name]] == pytest.approx([value for _, value in mine], rel=1e-5)
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    assert {path.name for path in Path.cwd().iterdir()} == {"models"}


def test_a_tracker_that_fails_costs_one_warning(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    caplog.set_level(logging.WARNING, "dialogkit")
    result = train(small_config(TENSORBOARD))
    assert (result.steps, [record.message for record in caplog.records]) == (
        4,
        ["tensorboard failed (OSError); the run continues without it"],
    )


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    require_trackers([])
    with pytest.raises(UnavailableError, match="the tracker trackio") as refused:
        require_trackers(["trackio"])
    assert typed(refused.value) == "pip install 'dialogkit[trackio]'"


def test_the_places_that_a_user_has_set_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    with tracker_places(tmp_path / "run", tmp_path, "my-project"):
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://elsewhere"
        assert os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio")
        assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "my-project"
    assert "TRACKIO_DIR" not in os.environ
