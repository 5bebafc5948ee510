"""What the Tab key offers, asked as a shell asks, and that it loads nothing slow."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer._completion_classes import BashComplete

from dialogkit.cli import complete
from dialogkit.cli.app import app
from dialogkit.config.load import model_names, parse_sets, preset_names
from dialogkit.config.paths import NEWEST
from dialogkit.config.problems import known_settings
from dialogkit.data.sources import NAMED
from tests.conftest import REPOSITORY, Finished

SLOW = {"torch", "transformers", "datasets", "wandb", "tokenizers", "numpy", "dialogkit.config.run"}


def offered(*words: str) -> list[str]:
    """Return what is offered for the last word of a command."""
    *before, begun = words
    root: Any = typer.main.get_command(app)
    found = BashComplete(root, {}, "dialogkit", "_DIALOGKIT_COMPLETE").get_completions(before, begun)
    return [item.value for item in found]


@pytest.fixture(autouse=True)
def files(in_temporary_folder: Path) -> None:
    for run in ("models/runs/first", "models/runs/second", "elsewhere/runs/third", "shards"):
        Path(run).mkdir(parents=True)
    os.utime("models/runs/first", (1, 1))
    for file in ("shop.jsonl", "shop.csv.gz", "notes.txt", "mine.json", "shards/one.parquet"):
        Path(file).touch()
    Path("models/my_model").mkdir()
    Path("models/my_model/README.md").write_text("---\ntags: [dialogkit, x]\n---\n")


def test_commands_and_options_are_offered() -> None:
    assert {"train", "generate", "runs"} <= set(offered(""))
    assert offered("runs", "pr") == ["prune"]
    assert offered("train", "--ep") == ["--epochs"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", ""], {*model_names(), "mine.json", "models/", "shards/", "elsewhere/"}),
        (["train", "--model", "custom-t"], {"custom-tiny"}),
        (["generate", "my"], {"my_model"}),
        (["chat", "--model", "f"], {"first"}),
        (["evaluate", "first", "s"], {"second", "shards/"}),
        (["generate", "--output-dir", "elsewhere", "t"], {"third"}),
        (["train", "--from", ""], {"first", "second"}),
        (["train", "--resume", ""], {NEWEST, "first", "second"}),
        (["runs", "compare", "first", "s"], {"second"}),
        (["runs", "prune", ""], {"first", "second"}),
        (["train", "--preset", ""], set(preset_names())),
        (["train", "-c", "pro"], {"production"}),
        (
            ["train", "--dataset", "s"],
            {"starter", "smalltalk", "smalltalk-core", "shop.jsonl", "shop.csv.gz", "shards/"},
        ),
        (["data", "inspect", "./sh"], {"./shop.jsonl", "./shop.csv.gz", "./shards/"}),
        (["evaluate", "--dataset", "shards/"], {"shards/one.parquet"}),
        (["train", "--set", "train.opt"], {"train.optimizer=adamw", "train.optimizer=muon"}),
        (["config", "show", "--set", "data.streaming=t"], {"data.streaming=true"}),
        (["train", "--wandb", "o"], {"online", "offline"}),
        (["launch", "slurm", "--", ""], {"train"}),
    ],
)
def test_values_are_offered(words: list[str], expected: set[str]) -> None:
    assert set(offered(*words)) == expected


def test_the_newest_runs_come_first() -> None:
    assert offered("runs", "show", "") == ["second", "first"]


def test_every_setting_is_offered_as_a_word_that_is_taken() -> None:
    found = offered("train", "--set", "")
    assert {word.partition("=")[0] for word in found} == {name for name in known_settings() if "." in name}
    assert len(parse_sets(found)) == len({word.partition("=")[0] for word in found})


def test_the_datasets_with_a_short_name_are_all() -> None:
    assert set(complete.DATASETS) == set(NAMED)


def as_bash(*words: str) -> subprocess.CompletedProcess[str]:
    """Ask as the function does that `--install-completion` writes for bash; report the loaded modules."""
    script = "import sys, dialogkit.__main__ as m\ntry: m.main()\nfinally: print(*sys.modules, file=sys.stderr)"
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "_DIALOGKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["generate", ""], "my_model"), (["train", "--set", "train.ep"], "train.epochs=1.0")],
)
def test_bash_gets_lines_and_nothing_slow_is_loaded(words: list[str], expected: str) -> None:
    done = as_bash("dialogkit", *words)
    assert done.returncode == 0
    assert expected in done.stdout.splitlines()
    loaded = set(done.stderr.split())
    assert "typer" in loaded
    assert loaded & SLOW == set()


def test_the_script_for_a_shell_calls_this_program(monkeypatch: pytest.MonkeyPatch, dialogkit: Any) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    done: Finished = dialogkit("--show-completion")
    assert (done.code, done.err) == (0, "")
    assert "_DIALOGKIT_COMPLETE=complete_bash" in done.out
    assert dialogkit("--install-completion").code == 0
    assert "_DIALOGKIT_COMPLETE=complete_bash" in (Path.home() / ".bash_completions/dialogkit.sh").read_text()
