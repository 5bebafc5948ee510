"""A dry run measures what training would do, and writes nothing."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.run import RunConfig
from dialogkit.distributed.rank import Rank
from dialogkit.errors import InterruptedRunError, StorageError, UnavailableError
from dialogkit.services.train import train
from dialogkit.services.training.dry_run import DryRunResult, dry_run
from tests.conftest import SMALL, VOCABULARY, Finished, typed

LARGE: dict[str, Any] = {"model.tokenizer": None}
"""With the shipped tokenizer, a checkpoint is of megabytes."""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, and a working folder beside it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def test_a_dry_run_measures_and_writes_nothing(small_config: Callable[..., RunConfig], scratch: Path) -> None:
    config = small_config({"train.max_steps": 1000, "tracking.wandb": "offline"})
    measured = dry_run(config)
    assert list(Path.cwd().iterdir()) == []
    assert [path for path in scratch.rglob("*") if path.is_file()] == []
    counts = config.model.parameter_counts(VOCABULARY)
    assert counts is not None
    assert measured.parameters == counts.total
    assert (measured.device, measured.train_dialogs, measured.total_steps) == ("cpu", 8, 1000)
    assert 0 < measured.tokens_per_step <= measured.longest_batch_tokens
    assert min(measured.tokens_per_s, measured.peak_memory_bytes, measured.expected_s) > 0
    assert measured.training_s == pytest.approx(1000 * measured.tokens_per_step / measured.tokens_per_s)
    assert measured.expected_s > measured.training_s


def test_a_dry_run_is_none_of_several_processes(
    scratch: Path, dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "train custom-nano --dry-run --no-cuda"
    monkeypatch.setattr("dialogkit.cli.train.this_rank", lambda: Rank(0, 2, 0, 2))
    assert dialogkit(*words.split()) == Finished(
        2, "", f"error: --dry-run measures one process, and this is one of 2\ntry: dialogkit {words}\n"
    )


def test_a_dry_run_that_is_stopped_kept_nothing(
    small_config: Callable[..., RunConfig], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise InterruptedRunError("stopped after step 1; its checkpoint is kept", exit_code=130)

    monkeypatch.setattr("dialogkit.engine.fit.fit", stopped)
    with pytest.raises(InterruptedRunError, match="nothing was kept") as error:
        dry_run(small_config())
    assert error.value.exit_code == 130


def test_a_dry_run_predicts_what_training_does(small_config: Callable[..., RunConfig]) -> None:
    config = small_config({"train.max_steps": None})
    measured, result = dry_run(config), train(config)
    assert measured.total_steps == result.steps
    assert measured.total_steps * measured.tokens_per_step == result.metrics["train/tokens"]
    assert measured.eval_nats_per_token == pytest.approx(result.metrics["before/nats_per_token"], rel=0.01)


def test_the_command_line_has_it_too(dialogkit: Callable[..., Finished], scratch: Path) -> None:
    words = [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    done = dialogkit("train", "custom-nano", "--dry-run", "--json", "--no-cuda", *words)
    assert DryRunResult.model_validate(done.json["data"]).train_dialogs == 8
    assert list(Path.cwd().iterdir()) == []
    assert [path for path in scratch.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("architecture", "warns"), [("llama", True), ("gpt2", False)])
def test_dropout_that_does_nothing_is_reported(
    architecture: str, warns: bool, small_config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "dialogkit"):
        dry_run(small_config({"train.dropout": 0.1, "model.architecture": architecture}))
    assert ("train.dropout=0.1 does nothing" in caplog.text) == warns


def taken_name(output: Path) -> None:
    (output / "runs/taken").mkdir(parents=True)
    (output / "runs/taken/run.json").write_text("{}")


def foreign_model(output: Path) -> None:
    (output / "custom_nano").mkdir(parents=True)
    (output / "custom_nano/thesis.txt").write_text("the only copy")


def a_file(output: Path) -> None:
    output.write_text("mine")


@pytest.mark.parametrize("prepare", [taken_name, foreign_model, a_file])
def test_a_dry_run_refuses_what_the_run_refuses(
    prepare: Callable[[Path], None], small_config: Callable[..., RunConfig], scratch: Path
) -> None:
    prepare(Path("models"))
    before = sorted(Path.cwd().rglob("*"))
    said = []
    for attempt in (dry_run, train):
        with pytest.raises(StorageError) as refused:
            attempt(small_config({"name": "taken"}))
        said.append((refused.value.message, refused.value.hint))
    assert said[0] == said[1]
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_dry_run_without_a_key_for_wandb_is_refused_as_the_run_is(
    small_config: Callable[..., RunConfig], scratch: Path
) -> None:
    with pytest.raises(UnavailableError):
        dry_run(small_config({"tracking.wandb": "online"}))


def with_free(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(free)))


def bytes_written(run: Path) -> tuple[int, int]:
    """Return the size of a checkpoint and of the model of a run."""
    return (
        sum(path.stat().st_size for path in next(run.glob("checkpoint-*")).iterdir()),
        sum(path.stat().st_size for path in (run / "model").iterdir()),
    )


@pytest.mark.parametrize("attempt", [dry_run, pytest.param(train, marks=pytest.mark.faults)])
def test_a_disk_that_will_be_full_is_foreseen(
    attempt: Callable[..., Any],
    small_config: Callable[..., RunConfig],
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 4 evaluations, of which 2 are kept: a third checkpoint is complete before the first is removed.
    config = small_config({**LARGE, "train.eval_every_steps": 1, "train.max_steps": 4, "name": "foreseen"})
    with_free(20 * 2**20, monkeypatch)
    with pytest.raises(StorageError) as refused:
        attempt(config)
    assert list(Path.cwd().iterdir()) == []
    figures = r"needs (\d+) MiB .* for (\d+) checkpoints of (\d+) MiB and the model of (\d+) MiB"
    needed, count, each, model = map(float, re.findall(figures, refused.value.message)[0])
    assert "20 MiB are free" in refused.value.message
    assert count == 3
    assert needed == pytest.approx(count * each + model, abs=2)
    assert typed(refused.value, "train", "custom-nano") == (
        "dialogkit runs prune --checkpoints-only, or: choose an output folder on a disk with more space"
    )
    with_free(2 * needed * 2**20, monkeypatch)
    result = train(config)
    real_checkpoint, real_model = bytes_written(Path(result.run_dir))
    assert 0.7 * each < real_checkpoint / 2**20 <= each
    assert real_model / 2**20 <= model


def test_fewer_checkpoints_are_proposed_where_they_fit(
    small_config: Callable[..., RunConfig], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(
        {**LARGE, "train.eval_every_steps": 1, "train.max_steps": 4, "train.keep_checkpoints": 4}
    )
    with_free(70 * 2**20, monkeypatch)
    with pytest.raises(StorageError, match="for 4 checkpoints") as refused:
        dry_run(config)
    assert (typed(refused.value, "train", "custom-nano") or "").startswith("--set train.keep_checkpoints=2, or: ")
