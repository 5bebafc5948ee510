"""A run that was stopped and resumed is the run that was not stopped, bit for bit."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli.output import Output
from dialogkit.cli.train_view import render_training
from dialogkit.config.load import load_run_config
from dialogkit.config.paths import MANIFEST
from dialogkit.engine import trainer
from dialogkit.engine.checkpoints import commit, newest_valid, read_progress
from dialogkit.errors import CheckpointError, ConfigError, InterruptedRunError, ModelError, StorageError
from dialogkit.services.train import resume, train
from dialogkit.services.training import samples
from dialogkit.services.training.progress import LogReporter
from dialogkit.services.training.result import TrainResult
from dialogkit.services.training.resume import find_resumable
from dialogkit.services.training.setup import TrainingSetup
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL, Finished, typed
from tests.wandb_log import history as wandb_history
from tests.wandb_log import records as wandb_records

STEPS = 11
LONG = {**SMALL, "train.max_steps": STEPS, "train.eval_every_steps": 3, "train.log_every_steps": 2}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"runtime.precision": "bf16"},
    "fp16": {"runtime.precision": "fp16", "train.optimizer": "muon"},
    "float32": {"runtime.precision": "fp32"},
    "accumulation": {"train.batch_size": 4, "train.accumulation_steps": 2},
    "parts": {"train.batch_size": 4, "train.micro_batch_tokens": 60, "runtime.workers": 1},
    "dropout": {"model.architecture": "gpt2", "train.dropout": 0.2},
    "histograms": {"tracking.histogram_every_steps": 1},
    "the last weights": {"train.keep": "last", "train.schedule": "cosine"},
    "early stopping": {"train.early_stopping_patience": 3},
    "evaluations in between": {"train.eval_every_steps": 1},
    "several epochs": {"data.samples": 5, "train.max_steps": STEPS},
    "activation checkpointing": {"train.activation_checkpointing": True},
    "muon": {"train.optimizer": "muon"},
}


class Killed(BaseException):
    """Ends a run where no handler expects it."""


class KillAt(LogReporter):
    """A reporter that ends the process's work when a step is reported, as a crash would."""

    def __init__(self, step: int, *, by: Callable[[], Any] | None = None) -> None:
        self._step, self._by = step, by

    def header(self, info: Any) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def activity(self, text: str) -> None:
        pass

    def step(self, step: int, total: int | None, metrics: Any) -> None:
        if step >= self._step and step > 0:
            self._step = 10**9
            if self._by is None:
                raise Killed
            self._by()


def config_of(name: str, run: str, **more: Any) -> Any:
    return load_run_config("custom-nano", overrides={**LONG, **CONFIGURATIONS[name], "name": run, **more})


def history(run: str) -> list[tuple[int, dict[str, float]]]:
    """Return every logged loss and figure; times are not those of another run."""
    points = RunDir(Path("models/runs") / run).metrics()
    return [(p["step"], {k: v for k, v in p.items() if k.startswith(("train/", "eval/"))}) for p in points]


def digests(run: str) -> dict[str, str]:
    """Return the SHA-256 of the model, and of weights and optimizer of the newest checkpoint."""
    folder = Path("models/runs") / run
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    files = [folder / "model/model.safetensors", newest / "model.safetensors", newest / "optimizer.pt"]
    files += newest.glob("scaler.pt")  # in fp16
    found = {path.parent.name + "/" + path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {**found, "newest": newest.name}


@pytest.fixture(scope="module")
def whole_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config_of("plain", "whole"))
    return folder


@pytest.fixture(scope="module")
def whole(whole_once: Path) -> tuple[Any, Any]:
    """Digests and history of the plain run that was not stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(whole_once)
        return digests("whole"), history("whole")


@pytest.fixture
def finished(whole_once: Path) -> RunDir:
    """A copy of the run that was not stopped."""
    shutil.copytree(whole_once / "models", "models")
    return RunDir(Path("models/runs/whole"))


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        killed("plain", "stopped", 8)
    return folder / "models"


@pytest.fixture
def run(killed_once: Path) -> RunDir:
    """A copy of a run that was killed after step 8."""
    shutil.copytree(killed_once, "models")
    return RunDir(Path("models/runs/stopped"))


def killed(name: str, run: str, step: int) -> RunDir:
    """Train until a step is reported, and no further."""
    with pytest.raises(Killed):
        train(config_of(name, run), reporter=KillAt(step))
    return RunDir(Path("models/runs") / run)


OFTEN = {"accumulation", "dropout"}
"""Without `make faults`. The plain one is resumed in the tests that follow."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.faults]) for name in CONFIGURATIONS]
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(name: str) -> None:
    train(config_of(name, "whole"))
    run = killed(name, "stopped", 5)
    assert run.read().status == "interrupted"
    assert resume(run) is not None
    assert digests("stopped") == digests("whole")
    assert history("stopped") == history("whole")
    before, after = (RunDir(Path("models/runs") / name).read().metrics for name in ("whole", "stopped"))
    for name in ("train/seconds", "perf/tokens_per_s"):
        del before[name], after[name]
    assert before == after


def test_after_a_chain_of_five_kills_nothing_differs(whole: tuple[Any, Any]) -> None:
    run = killed("plain", "stopped", 2)
    for step in (4, 6, 8, 10):
        with pytest.raises(Killed):
            resume(run, reporter=KillAt(step))
    assert resume(run) is not None
    assert (digests("stopped"), history("stopped")) == whole
    assert [resumption.step for resumption in run.read().resumed] == [0, 3, 3, 6, 9]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.faults), signal.SIGTERM])
def test_a_signal_saves_at_its_step_and_names_the_command_that_continues(
    number: signal.Signals, whole: tuple[Any, Any]
) -> None:
    with pytest.raises(InterruptedRunError, match="after step 5") as stopped:
        train(config_of("plain", "stopped"), reporter=KillAt(4, by=lambda: signal.raise_signal(number)))
    assert (stopped.value.exit_code, typed(stopped.value)) == (128 + number, "dialogkit train --resume stopped")
    run = RunDir(Path("models/runs/stopped"))
    assert (run.read().status, run.read().exit_code) == ("interrupted", 128 + number)
    assert read_progress(run.path / "checkpoint-5") is not None
    assert resume(run) is not None
    assert (digests("stopped"), history("stopped")) == whole


@pytest.mark.parametrize("place", ["scores", "replies"])
def test_a_signal_in_an_evaluation_leaves_it_and_it_is_made_up_for(
    place: str, whole: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = (TrainingSetup, "score") if place == "scores" else (samples, "reply_to_all")
    real, calls = getattr(owner, name), []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3 - (place == "replies"):  # there is a score before the first step
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(InterruptedRunError, match="after step 6"):
            train(config_of("plain", "stopped"))
    run = RunDir(Path("models/runs/stopped"))
    progress = read_progress(run.path / "checkpoint-6")
    assert progress is not None
    assert progress.evaluation_due
    assert resume(run) is not None
    assert (digests("stopped"), history("stopped")) == whole


def test_sigterm_before_the_first_step_is_recorded() -> None:
    class AtHeader(KillAt):
        def header(self, info: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError) as stopped:
        train(config_of("plain", "early"), reporter=AtHeader(99))
    assert (stopped.value.exit_code, RunDir(Path("models/runs/early")).read().status) == (143, "interrupted")


def test_wandb_gets_one_run_and_no_step_twice(whole: tuple[Any, Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        train(config_of("plain", "stopped", **{"tracking.wandb": "offline"}), reporter=KillAt(5))
    run = RunDir(Path("models/runs/stopped"))
    result = resume(run)
    folders = sorted(Path("models/wandb").glob("offline-run-*"))
    assert result is not None
    assert result.wandb_dirs == list(map(str, folders))
    assert f"W&B: wandb sync {folders[0]} {folders[1]}" in (run.path / "console.log").read_text()
    output = Output()
    render_training(output, result)
    assert "W&B:    dialogkit runs sync stopped\n" in capfd.readouterr().out
    assert {folder.name.split("-")[3] for folder in folders} == {run.read().wandb.id}
    assert len(folders) == 2
    points = [point for folder in folders for point in wandb_history(wandb_records(folder))]
    steps = [point["train/step"] for point in points if "train/loss" in point]
    assert steps == [step for step, metrics in whole[1] if "train/loss" in metrics]


def test_a_run_that_was_through_only_gets_its_end(finished: RunDir) -> None:
    record = finished.read()
    shutil.rmtree(finished.model_dir)
    finished.write(record.model_copy(update={"status": "running"}))
    before = digests_of_checkpoints(finished)
    result = resume(finished)
    assert isinstance(result, TrainResult)
    assert digests_of_checkpoints(finished) == before
    assert result.metrics["final/nats_per_token"] == record.metrics["final/nats_per_token"]
    assert result.steps == STEPS


def digests_of_checkpoints(run: RunDir) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.path.glob("checkpoint-*/*"))}


def test_a_relative_dataset_is_found_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Say {number}.", "response": f"{number}!"} for number in range(30)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = {"data.dataset": "mine.jsonl", "runtime.output_dir": str(tmp_path / "models")}
    with pytest.raises(Killed):
        train(config_of("plain", "stopped", **output), reporter=KillAt(5))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(RunDir(tmp_path / "models/runs/stopped")) is not None


def test_a_finished_run_resumed_ten_times_changes_nothing(
    finished: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    before = state_of(Path("models"))
    for words in [["--resume", "whole"], ["custom-nano", "--resume", "models/runs/whole"]] * 5:
        done = dialogkit("train", *words)
        assert (done.code, done.out) == (0, "the run whole is finished: there is nothing to do\n")
        assert state_of(Path("models")) == before


def state_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return when each file of a folder was written, and what it holds."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


# What is not taken


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WEIGHTS, STATE = "model.safetensors", "trainer_state.json"
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "half of the weights": lambda folder: cut(folder / WEIGHTS, 0.5),
    "nearly all of the weights": lambda folder: cut(folder / WEIGHTS, 0.999),
    "empty weights": lambda folder: cut(folder / WEIGHTS, 0),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a flipped bit in the weights": lambda folder: flip(folder / WEIGHTS),
    "half of the optimizer": lambda folder: cut(folder / "optimizer.pt", 0.5),
    "an empty optimizer": lambda folder: cut(folder / "optimizer.pt", 0),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "a flipped bit in the optimizer": lambda folder: flip(folder / "optimizer.pt"),
    "half of the state": lambda folder: cut(folder / STATE, 0.5),
    "an empty state": lambda folder: cut(folder / STATE, 0),
    "no state": lambda folder: (folder / STATE).unlink(),
    "no schedule": lambda folder: (folder / "scheduler.pt").unlink(),
    "half of the random state": lambda folder: cut(folder / "rng_state.pth", 0.5),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "half of the configuration": lambda folder: cut(folder / "config.json", 0.5),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "no arguments": lambda folder: (folder / "training_args.bin").unlink(),
    "an empty folder": empty,
    # Of the manifest itself, and what is no file
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half of the manifest": lambda folder: cut(folder / MANIFEST, 0.5),
    "a flipped bit in the manifest": lambda folder: flip(folder / MANIFEST),
    "another manifest": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "a link": lambda folder: link(folder / "rng_state.pth"),
    "a pipe": lambda folder: pipe(folder / "rng_state.pth"),
    "a pipe as manifest": lambda folder: pipe(folder / MANIFEST),
}
NEWEST, ALL = ["checkpoint-6"], ["checkpoint-3", "checkpoint-6"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_a_checkpoint_is_seen(damage: str, run: RunDir) -> None:
    assert sorted(path.name for path in run.path.glob("checkpoint-*")) == ALL
    DAMAGES[damage](run.path / "checkpoint-6")
    found = newest_valid(run.path)
    assert found is not None
    assert (found[0].name, found[1].step) == ("checkpoint-3", 3)
    assert {path.name for path in run.path.glob("*checkpoint-*")} == {"checkpoint-3", "torn-checkpoint-6"}
    DAMAGES[damage](run.path / "checkpoint-3")
    assert newest_valid(run.path) is None


def some(number: int) -> list[Any]:
    """Return the damages, all but the first ones marked as long. A link is refused before it is looked at."""
    damages = [damage for damage in DAMAGES if damage != "a link"]
    return [*damages[:number], *(pytest.param(damage, marks=pytest.mark.faults) for damage in damages[number:])]


@pytest.mark.parametrize("damage", some(1))
def test_a_run_continues_from_the_checkpoint_before_a_damaged_one_and_says_so(
    damage: str, whole: tuple[Any, Any], run: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    DAMAGES[damage](run.path / "checkpoint-6")
    done = dialogkit("train", "--resume", "stopped")
    assert (done.code, "Traceback" in done.err) == (0, False)
    assert "checkpoint-6 is torn or damaged, and is kept aside as torn-checkpoint-6\n" in done.err
    assert "resuming from step 3, checkpoint-3\n" in done.err
    assert "torn-checkpoint-6" in (run.path / "console.log").read_text()
    assert (run.path / "torn-checkpoint-6").is_dir()
    assert (digests("stopped"), history("stopped")) == whole


@pytest.mark.parametrize("damage", some(1))
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_as_often_as_it_is_tried(
    damage: str, run: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    for name in ALL:
        DAMAGES[damage](run.path / name)
    points = history("stopped")
    for _ in range(2):
        done = dialogkit("train", "--resume", "stopped")
        assert (done.code, done.out) == (1, "")
        assert done.err.splitlines()[-2:] == [
            "error: no checkpoint of the run 'stopped' is complete; 2 torn ones set aside",
            "try: dialogkit train --resume stopped --force",
        ]
        assert len(done.err.splitlines()) <= 4
        assert {path.name for path in run.path.glob("*checkpoint-*")} == {f"torn-{name}" for name in ALL}
        assert history("stopped") == points


def test_where_all_is_damaged_force_begins_again(whole: tuple[Any, Any], run: RunDir) -> None:
    for name in ALL:
        flip(run.path / name / WEIGHTS)
    assert resume(run, force=True) is not None
    assert (digests("stopped"), history("stopped")) == whole
    assert {path.name for path in run.path.glob("torn-*")} == {f"torn-{name}" for name in ALL}


def test_a_run_that_ended_in_its_first_save_begins_again(whole: tuple[Any, Any]) -> None:
    run = killed("plain", "stopped", 3)
    (run.path / "checkpoint-3").mkdir()
    (run.path / "checkpoint-3/config.json").write_text("{")
    assert resume(run) is not None
    assert (digests("stopped"), history("stopped")) == whole
    assert (run.path / "torn-checkpoint-3").is_dir()


def test_where_the_best_checkpoint_is_damaged_the_best_of_the_others_is_taken_and_that_is_said(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, dialogkit: Callable[..., Finished]
) -> None:
    shutil.rmtree(run.path)
    real, calls = TrainingSetup.score, iter(range(99))

    def worse_and_worse(*args: Any, **kwargs: Any) -> Any:
        return {**real(*args, **kwargs), "nats_per_token": 1.0 + next(calls)}

    monkeypatch.setattr(TrainingSetup, "score", worse_and_worse)
    best = run.path / "checkpoint-3"
    damaging = KillAt(10, by=lambda: flip(best / WEIGHTS))
    with pytest.raises(CheckpointError, match="checkpoint-3, whose weights are the best, was damaged") as stopped:
        train(config_of("plain", "stopped"), reporter=damaging)
    assert (stopped.value.exit_code, typed(stopped.value)) == (1, "dialogkit train --resume stopped")
    assert not run.model_dir.exists()
    done = dialogkit("train", "--resume", "stopped")
    assert done.code == 0
    assert (
        "checkpoint-3, the best so far, is torn or damaged, and is kept aside as torn-checkpoint-3: "
        "the best now begins with checkpoint-11"
    ) in " ".join(done.err.split())
    assert digests("stopped")["model/model.safetensors"] == digests("stopped")["checkpoint-11/model.safetensors"]


def test_a_best_checkpoint_that_was_lost_is_made_up_for_by_what_follows(
    whole: tuple[Any, Any], run: RunDir
) -> None:
    progress = read_progress(run.path / "checkpoint-6")
    assert progress is not None
    state = run.path / "checkpoint-6" / STATE
    state.write_text(json.dumps({**json.loads(state.read_text()), "best_global_step": 3, "best_metric": 0.01}))
    commit(run.path / "checkpoint-6", progress)
    flip(run.path / "checkpoint-3" / WEIGHTS)
    assert resume(run) is not None
    assert (digests("stopped"), history("stopped")) == whole


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"train.learning_rate": 0.1}, "train.learning_rate is 0.01, not 0.1"),
        ({"train.batch_size": 4}, "train.batch_size is 2, not 4"),
        ({"data.samples": 9}, "data.samples is 8, not 9"),
        ({"train.seed": 1}, "train.seed is 42, not 1"),
        ({"runtime.precision": "fp32"}, "runtime.precision is 'auto', not 'fp32'"),
    ],
)
def test_a_change_that_alters_what_is_learned_is_refused(
    changes: dict[str, Any], reported: str, run: RunDir
) -> None:
    before = run.read()
    with pytest.raises(ConfigError, match="cannot resume with different conditions") as refused:
        resume(run, changes=changes)
    assert reported in refused.value.message
    assert run.read() == before


def test_a_change_that_alters_nothing_is_reported_and_taken(
    dialogkit: Callable[..., Finished], run: RunDir
) -> None:
    done = dialogkit("train", "--resume", "last", "--project", "another", "--set", "generate.seed=1")
    assert done.code == 0
    assert "changed: tracking.project is 'dialog-model-training', not 'another'" in done.err
    assert run.read().config["tracking"]["project"] == "another"


def test_another_processor_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch, run: RunDir) -> None:
    monkeypatch.setattr("dialogkit.engine.device.processor_name", lambda: "another processor")
    with pytest.raises(ConfigError, match="another processor") as refused:
        resume(run)
    assert "--force" in str(typed(refused.value))
    assert run.read().status == "interrupted"
    assert resume(run, force=True) is not None


@pytest.mark.faults
@pytest.mark.parametrize(("before", "after"), [("fp16", "fp32"), ("float32", "fp16")])
def test_a_run_can_be_forced_into_and_out_of_fp16(before: str, after: str) -> None:
    run = killed(before, "stopped", 5)
    changes = {"runtime.precision": after}
    with pytest.raises(ConfigError, match="cannot resume with different conditions"):
        resume(run, changes=changes)
    assert resume(run, changes=changes, force=True) is not None
    trained = [metrics for _, metrics in history("stopped") if "train/loss" in metrics]
    assert ("train/skipped_steps" in trained[-1]) == (after == "fp16")


def test_a_run_that_is_being_trained_is_not_trained_by_another(run: RunDir) -> None:
    with run.locked(), pytest.raises(StorageError, match=f"is being trained by process {os.getpid()}"):
        resume(run)
    assert run.read().status == "interrupted"


@pytest.mark.parametrize(
    ("name", "model", "sentence"),
    [
        ("last", "custom-tiny", "no unfinished run of custom-tiny"),
        ("stoped", None, r"no run 'stoped' .*did you mean 'stopped'"),
        ("stopped", "custom-tiny", "trains custom-nano, not custom-tiny"),
    ],
)
def test_what_cannot_be_resumed_is_reported(name: str, model: str | None, sentence: str, run: RunDir) -> None:
    with pytest.raises(ModelError, match=sentence):
        find_resumable(name, model=model, output=Path("models"))


def test_a_new_run_starts_from_the_weights_of_another(
    finished: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    done = dialogkit("train", "--from", "whole", "--name", "second", *words)
    assert done.code == 0, done.err
    second = RunDir(Path("models/runs/second")).read()
    assert second.model.name == "custom-nano"
    assert second.metrics["before/nats_per_token"] == pytest.approx(
        finished.read().metrics["final/nats_per_token"], rel=1e-6
    )


def test_a_disk_that_is_full_costs_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(99))

    def full(*args: Any, **options: Any) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        commit(*args, **options)

    monkeypatch.setattr(trainer, "commit", full)
    with pytest.raises(CheckpointError, match="checkpoint of step 6 cannot be written: no space left") as stopped:
        train(config_of("plain", "full"))
    assert (stopped.value.exit_code, typed(stopped.value)) == (1, "dialogkit train --resume full")
    run = RunDir(Path("models/runs/full"))
    assert [path.name for path in run.path.glob("*checkpoint-*")] == ["checkpoint-3"]
    assert read_progress(run.path / "checkpoint-3") is not None
    assert resume(run) is not None
