"""Shared fixtures: an isolated home, a run of the command line, and one small trained model for many tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Before any library reads them: no network, no colours, a fixed width, no W&B server.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", NO_COLOR="1", COLUMNS="100", WANDB_MODE="offline", TERM="dumb"
)
for name in ("WANDB_API_KEY", "HF_TOKEN", "FORCE_COLOR"):
    os.environ.pop(name, None)

TINY: dict[str, Any] = {"model.layers": 2, "model.width": 32, "model.heads": 2, "model.context": 256}
"""Overrides that make custom-nano a model of 2 layers, small enough for many trainings."""


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home and caches in a temporary folder, for this process and those that tests start."""
    home = tmp_path_factory.mktemp("home")
    os.environ.update(
        HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"), DIALOGKIT_CACHE=str(home / ".cache/dialogkit"),
        HF_HOME=str(home / ".cache/huggingface"), NETRC=str(home / ".netrc"),
    )
    return home


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Finished(NamedTuple):
    """A finished command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def dialogkit(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run the shipped entry point in this process."""

    def run(*words: str) -> Finished:
        from dialogkit.cli.app import main

        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(list(words))
        out, err = capfd.readouterr()
        return Finished(int(exit_info.value.code or 0), out, err)

    return run


def run_process(*words: str, cwd: Path | None = None, stdin: str = "", **environment: str) -> Finished:
    """Run `dialogkit WORDS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "dialogkit", *words],
        cwd=cwd, input=stdin, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Trained(NamedTuple):
    """A finished small training."""

    result: Any
    trainer: Any
    output: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, isolated_home: Path) -> Trained:
    """A 2-layer custom-nano trained on 40 starter dialogs with W&B offline; shared by many tests."""
    from dialogkit.config.load import load_run_config
    from dialogkit.services import train as service

    output = tmp_path_factory.mktemp("trained") / "models"
    config = load_run_config(
        "custom-nano",
        overrides={**TINY, "data.samples": 40, "train.learning_rate": 1e-2, "runtime.output_dir": str(output),
                   "runtime.device": "cpu", "name": "shared-run", "generate.max_new_tokens": 16},
    )
    result, trainer = service._train(config, origins={}, command=["dialogkit"], reporter=service.LogReporter())
    return Trained(result, trainer, output)
