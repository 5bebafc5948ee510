"""Whatever a W&B server does, the training goes on to the same weights, with one warning and no long wait."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, SMALL
from tests.forks import run_forked
from tests.wandb_server import WandbServer

KEY = "c4na12y" * 6


def train_with(mode: str) -> dict[str, Any]:
    """Train a small model with short waits for W&B; return what came of it. Runs in a process of its own."""
    from dialogkit.config.load import load_run_config
    from dialogkit.services.train import train
    from dialogkit.tracking import wandb_run

    wandb_run.INIT_TIMEOUT_S = wandb_run.FINISH_TIMEOUT_S = 1.5
    warnings: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger("dialogkit.tracking").addHandler(Listen())
    overrides = {**SMALL, "tracking.wandb": mode, "train.log_every_steps": 1}
    result = train(load_run_config("custom-nano", overrides=overrides))
    return {
        "mode": result.wandb_mode,
        "folder": result.wandb_dir,
        "weights": hashlib.sha256((Path(result.model_dir) / "model.safetensors").read_bytes()).hexdigest(),
        "warnings": warnings,
    }


@pytest.fixture
def serve() -> Iterator[Callable[..., WandbServer]]:
    """Start servers that end with the test."""
    started: list[WandbServer] = []

    def start(*behaviour: str) -> WandbServer:
        started.append(WandbServer(*behaviour))
        return started[-1]

    yield start
    for server in started:
        server.vanish()


@pytest.fixture(scope="module")
def without_wandb(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(run_forked(train_with, "disabled", folder=tmp_path_factory.mktemp("without"))["weights"])


RARELY = [pytest.param(kind, marks=pytest.mark.faults) for kind in ("429", "500", "hang", "html")]


@pytest.mark.parametrize("kind", ["401", *RARELY])
def test_a_server_that_fails_at_the_start_makes_the_run_an_offline_one(
    kind: str, serve: Callable[..., WandbServer], tmp_path: Path, without_wandb: str
) -> None:
    server = serve(kind)
    told = run_forked(train_with, "auto", folder=tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert server.asked
    assert (told["mode"], told["weights"]) == ("offline", without_wandb)
    # One that answers nothing at all is not tried: the reason stands with the mode.
    assert len(told["warnings"]) == (kind != "hang")
    assert Path(told["folder"]).name.startswith("offline-run-")


@pytest.mark.faults
@pytest.mark.parametrize("then", ["vanish", "429", "500", "hang", "html"])
def test_a_server_that_fails_in_the_midst_costs_at_most_one_warning(
    then: str, serve: Callable[..., WandbServer], tmp_path: Path, without_wandb: str
) -> None:
    server = serve("accept", then)
    told = run_forked(train_with, "auto", folder=tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert (told["mode"], told["weights"]) == ("online", without_wandb)
    assert len(told["warnings"]) == 1


def test_a_server_that_accepts_gets_every_point(
    serve: Callable[..., WandbServer], tmp_path: Path, without_wandb: str
) -> None:
    server = serve("accept")
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={KEY}\nWANDB_BASE_URL={server.url}\n")
    (tmp_path / ".env").chmod(0o600)
    told = run_forked(train_with, "auto", folder=tmp_path)
    assert (told["mode"], told["weights"], told["warnings"]) == ("online", without_wandb, [])
    assert {point["train/step"] for point in server.history if "train/loss" in point} == {1, 2, 3, 4}
    files = [path for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert (
        json.loads((tmp_path / "models/runs").glob("*/run.json").__next__().read_text())["wandb"]["id"] == "run-id"
    )


def run_commands(commands: list[list[str]], crash: bool) -> list[int]:
    """Run command lines one after the other, what they say in a file; return their exit codes."""
    from dialogkit.cli.app import main
    from dialogkit.engine import trainer

    if crash:
        vars(trainer)["training_arguments"] = None
    said = os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    codes: list[int] = []
    for words in commands:
        try:
            main(words)
        except SystemExit as done:
            codes.append(int(done.code or 0))
        except TypeError:
            traceback.print_exc()
            codes.append(-1)
    return codes


@pytest.mark.parametrize("place", ["environment", "dotenv"])
@pytest.mark.faults
def test_a_key_is_nowhere_to_be_found(serve: Callable[..., WandbServer], tmp_path: Path, place: str) -> None:
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    settings = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": serve("accept").url}
    if place == "dotenv":
        (tmp_path / "work/.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    environment: dict[str, Any] = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    environment |= settings if place == "environment" else {}
    small = [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    train_words = ["train", "custom-nano", *small, "--wandb", "online"]
    commands = [
        train_words,
        ["generate", "--prompt", "Hello!", "--max-new-tokens", "2"],
        ["evaluate", "--samples", "2"],
        [*train_words, "--set", f"tracking.wandb_api_key={KEY}"],
        [*train_words, "--set", "train.learning_rate=1e1", "--set", "train.max_grad_norm=0"],
    ]
    codes = run_forked(run_commands, commands, False, folder=tmp_path / "work", **environment)
    assert codes[:4] == [0, 0, 0, 2]
    assert run_forked(run_commands, [train_words], True, folder=tmp_path / "work", **environment) == [-1]
    assert "Traceback" in (tmp_path / "work/said.txt").read_text()
    found = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert found == ([tmp_path / "work/.env"] if place == "dotenv" else [])


@pytest.mark.faults
def test_a_process_ends_soon_though_the_server_does_not_answer(
    serve: Callable[..., WandbServer], tmp_path: Path
) -> None:
    server = serve("accept", "hang")
    settings = {**SMALL, "tracking.wandb": "online"}
    small = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "dialogkit", "train", "custom-nano", *small]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "PYTHONPATH": str(REPOSITORY)}
    # Without a limit of our own, W&B's service gives up a minute later, and says nothing.
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0
    assert done.stderr.count("W&B failed") + done.stderr.count("W&B did not end") == 1
    assert "wandb sync " in done.stdout
