"""Whatever dialogkit removes or replaces in real runs, evaluations and prunings, other people's files stay."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.inference import evaluate
from dialogkit.errors import StorageError
from dialogkit.services.runs.prune import prune_runs
from dialogkit.services.runs.report import write_report
from dialogkit.services.train import resume, train
from dialogkit.services.training.progress import LogReporter
from dialogkit.system.ownership import FILE_LIST
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Finished, typed

SmallConfig = Callable[..., Any]
RUN, MODEL = Path("models/runs/one"), Path("models/custom_nano")
PLACES = {
    RUN: ["notes.txt", "plots/loss.png", "model.safetensors"],
    RUN / "checkpoint-2": ["notes.txt", "my.model", "vocab.txt", "onnx/model.onnx"],
    RUN / "checkpoint-6": ["pytorch_model.bin"],
    RUN / "model": ["spm.model", "notes.txt"],
    RUN / "evaluation": ["my-analysis.json", "human-replies.jsonl"],
    MODEL: ["notes.txt", "onnx/model.onnx", ".git/HEAD", "model-00001-of-00002.safetensors"],
}
"""Files of somebody's by the folder that they are in. Checkpoint 2 is rotated, checkpoint 6 is pruned."""
TEN = [folder / name for folder, names in PLACES.items() for name in names]


class Busy(LogReporter):
    """Somebody who puts their files beside those of a run while it trains."""

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        for folder, names in PLACES.items():
            for name in names:
                if folder.is_dir() and not (folder / name).exists():
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_text("mine")


def test_files_of_others_outlive_training_rotation_publishing_evaluation_and_pruning(
    small_config: SmallConfig, dialogkit: Callable[..., Finished]
) -> None:
    settings = {"train.max_steps": 8, "train.eval_every_steps": 2, "train.keep": "last"}
    train(small_config({**settings, "name": "one"}), reporter=Busy())
    assert {path.name for path in RUN.glob("checkpoint-*") if (path / "manifest.json").is_file()} == {
        "checkpoint-6",
        "checkpoint-8",
    }
    evaluate(["one"], quick=False, samples=4)
    Busy().step(0, None, {})
    assert [path for path in TEN if not path.is_file()] == []
    train(small_config({"name": "two"}))
    evaluate(["one"], quick=False, samples=4)
    reported = {row.name: row.foreign for row in prune_runs(output="models").rows}
    assert (RUN / "checkpoint-6/pytorch_model.bin") in map(Path, reported["one"])
    done = dialogkit("runs", "prune", "one", "two", "--yes")
    assert (done.code, RunDir(RUN).exists) == (0, False)
    there = {
        path: path.read_text() for path in Path("models").rglob("*") if path.is_file() and RUN in path.parents
    }
    assert there == {path: "mine" for path in TEN if RUN in path.parents}
    assert {path: path.read_text() for path in TEN} == dict.fromkeys(TEN, "mine")


@pytest.mark.faults
def test_what_somebody_changed_is_kept_beside_what_replaces_it(small_config: SmallConfig) -> None:
    train(small_config({"name": "one", "tracking.report": True}))
    evaluate(["one"], quick=False, samples=4)
    figures = next((RUN / "evaluation").glob("*-dialogs.json"))
    changed = [figures, RUN / "report.html", MODEL / "README.md"]
    for path in changed:
        text = path.read_text()
        path.unlink()  # a published file is another link to that of the run
        path.write_text(f"{text}<!-- and my notes -->\n")
    evaluate(["one"], quick=False, samples=4)
    train(small_config({"name": "two"}))
    for path in changed:
        assert path.with_name(f"{path.name}.kept-1").read_text().endswith("my notes -->\n"), path
        assert "my notes" not in path.read_text()
    report = write_report(["one", "two"], to="both.html")
    write_report(["one", "two"], to="both.html")
    Path(report.path).write_text(Path(report.path).read_text() + "\n")
    with pytest.raises(StorageError, match="is not an unchanged report of dialogkit"):
        write_report(["one", "two"], to="both.html")


def test_what_somebody_wrote_into_the_logs_of_a_run_outlives_it(
    small_config: SmallConfig, dialogkit: Callable[..., Finished]
) -> None:
    train(small_config({"name": "first", "tracking.report": True}))
    run = RunDir(RUN.with_name("renamed"))
    RUN.with_name("first").rename(run.path)
    changed = [run.path / name for name in ("console.log", "metrics.jsonl", "report.html", "model/README.md")]
    for path in changed:
        path.write_text(f"{path.read_text()}my notes\n")
    planned, done = dialogkit("runs", "prune", "renamed"), dialogkit("runs", "prune", "renamed", "--yes")
    assert (planned.code, done.code) == (0, 0)
    assert all(f"kept: {path}\n" in planned.err for path in changed)
    there = [path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file()]
    assert sorted(map(str, there)) == [
        "console.log.kept-1",
        "metrics.jsonl.kept-1",
        "model/README.md",
        "report.html.kept-1",
    ]
    assert "skipped" not in dialogkit("runs", "list").err


def test_a_model_that_an_older_version_did_not_finish_is_kept_aside(
    small_config: SmallConfig, dialogkit: Callable[..., Finished]
) -> None:
    train(small_config({"name": "one"}))
    run = RunDir(RUN)
    (run.model_dir / FILE_LIST).unlink()
    run.write(run.read().model_copy(update={"status": "interrupted"}))
    weights = (run.model_dir / "model.safetensors").read_bytes()
    done = dialogkit("train", "--resume", "one")
    assert done.code == 0, done.err
    assert "renamed to model.kept-1" in done.err
    assert (run.model_dir / "model.safetensors").read_bytes() == weights
    assert (RUN / "model.kept-1/model.safetensors").read_bytes() == weights


class Blocking(LogReporter):
    """Somebody who puts a folder of theirs where the model goes, at the end of training."""

    def activity(self, text: str) -> None:
        if text == "answering the test prompts":
            MODEL.mkdir()
            (MODEL / "thesis.tex").write_text("mine")


def test_a_model_that_cannot_be_published_is_whole_in_its_run_and_can_be_published_later(
    small_config: SmallConfig, dialogkit: Callable[..., Finished]
) -> None:
    with pytest.raises(
        StorageError, match="the finished model is complete in 'models/runs/one/model'"
    ) as reported:
        train(small_config({"name": "one"}), reporter=Blocking())
    assert reported.value.exit_code == 1
    assert (MODEL / "thesis.tex").read_text() == "mine"
    record = RunDir(RUN).read()
    assert (record.status, record.exit_code) == ("failed", 1)
    assert dialogkit("generate", "one", "--prompt", "Hello!").code == 0
    weights = (RUN / "model/model.safetensors").read_bytes()
    move, command = str(typed(reported.value)).split(" && ")
    assert os.system(move) == 0
    assert dialogkit(*command.split()[1:]).code == 0
    assert (MODEL / "model.safetensors").read_bytes() == weights
    assert MODEL.with_name("custom_nano.kept-1").joinpath("thesis.tex").read_text() == "mine"
    assert RunDir(RUN).read().status == "completed"
    assert resume(RunDir(RUN)) is None
