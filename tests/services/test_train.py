"""A training leaves what it promises, repeats from its record, and destroys nothing."""

import hashlib
import json
import os
import re
import shutil
import signal
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.data.sources import STARTER
from dialogkit.dialog import END_OF_TURN
from dialogkit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRunError,
    StorageError,
)
from dialogkit.services.train import resume, train
from dialogkit.services.training.measure import costly_evaluations
from dialogkit.services.training.progress import LogReporter
from dialogkit.services.training.result import TrainResult
from dialogkit.system.ownership import FILE_LIST
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL, TOKENIZER, Finished, Trained, typed

MODEL_FILES = {
    FILE_LIST,
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_args.bin",
}

SmallConfig = Callable[..., RunConfig]


def sets(settings: Mapping[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def digest(folder: str | Path) -> str:
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def record_of(result: TrainResult) -> RunRecord:
    return RunDir(Path(result.run_dir)).read()


def names(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def twins(small_config: SmallConfig, tmp_path_factory: pytest.TempPathFactory) -> list[TrainResult]:
    """Two runs one after the other in one folder; they differ in their seeds."""
    output = str(tmp_path_factory.mktemp("twins") / "models")
    return [train(small_config({"runtime.output_dir": output, "train.seed": seed})) for seed in (1, 2)]


# What is left


def test_a_run_leaves_exactly_the_promised_tree(trained: Trained) -> None:
    assert names(trained.output) == {"custom_nano", "runs", "wandb"}
    assert names(trained.output / "runs") == {"shared-run"}
    run = Path(trained.result.run_dir)
    checkpoints = {name for name in names(run) if re.fullmatch(r"checkpoint-\d+", name)}
    files = {
        "run.json",
        "metrics.jsonl",
        "samples.jsonl",
        "histograms.jsonl",
        "console.log",
        "report.html",
        ".lock",
        FILE_LIST,
    }
    evaluated_by_other_tests = {"evaluation"}
    assert names(run) - checkpoints - evaluated_by_other_tests == {*files, "model"}
    assert len(checkpoints) == 2
    assert names(trained.result.model_dir) == names(trained.result.published_dir) == MODEL_FILES
    assert Path(trained.result.published_dir) == trained.output / "custom_nano"


def test_the_published_files_are_those_of_the_run_and_anybody_may_read_them(trained: Trained) -> None:
    for name in MODEL_FILES - {FILE_LIST}:
        published = Path(trained.result.published_dir) / name
        assert published.samefile(Path(trained.result.model_dir) / name)
        assert (
            published.stat().st_mode & 0o777
            == (trained.output / "runs/shared-run/run.json").stat().st_mode & 0o777
        )


def test_the_folder_loads_as_an_ordinary_model_with_the_trained_weights(trained: Trained) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained.result.published_dir)
    expected = trained.trainer.model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(trained.result.published_dir)
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    assert model.config._attn_implementation == "sdpa"


def test_the_record_reports_everything_about_the_run(trained: Trained) -> None:
    record = record_of(trained.result)
    assert (record.name, record.status, record.error) == ("shared-run", "completed", None)
    assert record.command == ["dialogkit"]
    assert record.created <= str(record.finished)
    assert record.metrics == trained.result.metrics
    assert record.replies["reply_rate"] == trained.result.reply_rate
    assert record.replies["stop_rate"] == trained.result.stop_rate
    assert record.replies["mean_tokens"] == sum(reply.tokens for reply in trained.result.replies) / 8
    assert record.exit_code == 0
    assert record.duration_s == pytest.approx(trained.result.duration_s)
    assert record.environment.cpu_count == os.cpu_count()
    config = RunConfig.model_validate_json(json.dumps(record.config))
    counts = config.model.parameter_counts(record.model.vocabulary)
    assert counts is not None
    assert record.model.parameters == record.model.trainable_parameters == counts.total
    assert record.model.parameters_without_embeddings == counts.without_embeddings
    assert record.data.revision == hashlib.sha256(STARTER.read_bytes()).hexdigest()
    assert record.data.train_dialogs == 40
    assert record.schedule.total_steps == trained.result.steps == 20
    assert record.metrics["train/tokens"] == record.data.train_tokens
    assert record.metrics["train/supervised_tokens"] == record.data.train_supervised_tokens
    assert {"dialogkit", "python", "torch", "transformers"} <= record.versions.keys()
    assert record.runtime.device == "cpu"


def test_points_of_training_and_evaluation_are_logged_and_the_loss_falls(trained: Trained) -> None:
    points = RunDir(Path(trained.result.run_dir)).metrics()
    losses = {point["step"]: point["train/loss"] for point in points if "train/loss" in point}
    held_out = {point["step"]: point["eval/nats_per_token"] for point in points if "eval/nats_per_token" in point}
    assert list(losses) == list(range(1, 21))
    assert list(held_out) == [0, 5, 10, 15, 20]
    assert sum(losses[step] for step in range(16, 21)) < sum(losses[step] for step in range(1, 6)) - 2.5
    metrics = trained.result.metrics
    assert held_out[0] == metrics["before/nats_per_token"]
    # The best weights are kept. In the course of a run they are scored in its precision, at the end in float32.
    assert metrics["final/nats_per_token"] == pytest.approx(min(held_out.values()), rel=0.01)
    assert metrics["final/nats_per_token"] < metrics["before/nats_per_token"] - 0.5


def test_steps_that_were_skipped_in_fp16_are_counted_and_said(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.amp import GradScaler

    device, _, *others = GradScaler.__init__.__defaults__  # type: ignore[misc]
    monkeypatch.setattr(GradScaler.__init__, "__defaults__", (device, 2.0**100, *others))
    metrics = train(small_config({"name": "it", "runtime.precision": "fp16"})).metrics
    assert metrics["train/skipped_steps"] == metrics["train/steps"] == 4
    assert metrics["final/nats_per_token"] == metrics["before/nats_per_token"]
    said = RunDir(Path("models/runs/it"))
    assert "4 of 4 steps changed no weight: their gradients overflowed" in (said.path / "console.log").read_text()
    assert [p["train/skipped_steps"] for p in said.metrics() if "train/loss" in p] == [1, 2, 3, 4]


def test_the_rates_are_those_of_the_kept_samples(trained: Trained) -> None:
    lines = (Path(trained.result.run_dir) / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    reported = [json.loads(line) for line in lines]
    final = [sample for sample in reported if sample["table"] == "replies/final"]
    samples = [sample for sample in final if sample["reference"] is None]
    assert all(sample["reference"] for sample in final if sample not in samples)
    assert len(final) == len(samples) + 2
    assert {sample["step"] for sample in reported if sample["table"] == "replies/evaluation"} == {5, 10, 15, 20}
    assert [sample["prompt"] for sample in samples] == record_of(trained.result).config["generate"]["test_prompts"]
    assert [sample["reply"] for sample in samples] == [reply.reply for reply in trained.result.replies]
    assert {sample["step"] for sample in samples} == {20}
    stopped = [sample for sample in samples if sample["stop_reason"] == "end of turn"]
    assert trained.result.reply_rate == sum(bool(sample["reply"]) for sample in samples) / 8
    assert trained.result.stop_rate == len(stopped) / 8
    assert trained.result.stop_rate > 0
    assert all(sample["tokens"] == 16 for sample in samples if sample["stop_reason"] == "length")


# Again, and again


def test_a_run_repeats_bit_for_bit_from_its_own_record(
    twins: list[TrainResult], dialogkit: Callable[..., Finished]
) -> None:
    first = twins[0]
    done = dialogkit(
        "train", "--config", f"{first.run_dir}/run.json", "--set", "runtime.output_dir=again", "--json"
    )
    again = TrainResult.model_validate(done.json["data"])
    assert digest(again.model_dir) == digest(first.model_dir)
    ours = {name: value for name, value in again.metrics.items() if "seconds" not in name and "per_s" not in name}
    assert ours.items() <= first.metrics.items()
    assert [reply.reply for reply in again.replies] == [reply.reply for reply in first.replies]
    assert record_of(again).model == record_of(first).model
    assert record_of(again).data == record_of(first).data


def test_a_later_run_is_published_and_the_earlier_run_keeps_its_model(twins: list[TrainResult]) -> None:
    first, second = twins
    assert first.run != second.run
    assert digest(first.model_dir) != digest(second.model_dir)
    assert first.published_dir == second.published_dir
    assert digest(second.published_dir) == digest(second.model_dir)


def test_a_name_that_a_run_has_is_refused_and_that_run_stays_as_it_is(
    small_config: SmallConfig, twins: list[TrainResult]
) -> None:
    output = Path(twins[0].run_dir).parent.parent
    before = snapshot(output)
    with pytest.raises(StorageError, match="exists already"):
        train(small_config({"runtime.output_dir": str(output), "name": twins[0].run}))
    assert snapshot(output) == before


def test_a_folder_of_somebody_else_is_not_replaced(small_config: SmallConfig, tmp_path: Path) -> None:
    (tmp_path / "models/custom_nano").mkdir(parents=True)
    (tmp_path / "models/custom_nano/thesis.tex").write_text("thesis")
    with pytest.raises(StorageError, match="was not made by dialogkit"):
        train(small_config())
    assert names(tmp_path / "models/custom_nano") == {"thesis.tex"}


# When it fails


class Failing(LogReporter):
    """A reporter that raises at the second step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def header(self, info: Mapping[str, str]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def activity(self, text: str) -> None:
        pass

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code", "reason"),
    [
        (RuntimeError("the disk is gone"), "failed", 1, "the disk is gone"),
        (DivergedError("loss is nan"), "diverged", 3, "loss is nan"),
        (InterruptedRunError("stopped by SIGTERM", exit_code=143), "interrupted", 143, "stopped by SIGTERM"),
        (
            BaseExceptionGroup("two", [OSError(), KeyboardInterrupt()]),
            "interrupted",
            130,
            "two (2 sub-exceptions)",
        ),
        *(
            pytest.param(*some, marks=pytest.mark.faults)
            for some in (
                (ZeroDivisionError(), "failed", 1, "ZeroDivisionError"),
                (ExceptionGroup("two", [OSError(), ValueError()]), "failed", 1, "two (2 sub-exceptions)"),
                (KeyboardInterrupt(), "interrupted", 130, "KeyboardInterrupt"),
                (SystemExit(), "interrupted", 130, "SystemExit"),
                (SystemExit(7), "interrupted", 7, "7"),
                (SystemExit("no more"), "interrupted", 1, "no more"),
                (GeneratorExit(), "interrupted", 130, "GeneratorExit"),
                (CancelledError(), "interrupted", 130, "CancelledError"),
            )
        ),
    ],
)
def test_a_run_that_ends_early_says_why_and_publishes_nothing(
    small_config: SmallConfig, tmp_path: Path, error: BaseException, status: str, code: int, reason: str
) -> None:
    with pytest.raises(type(error)):
        train(small_config({"name": "early"}), reporter=Failing(error))
    assert names(tmp_path / "models") == {"runs"}
    run = RunDir(tmp_path / "models/runs/early")
    record = run.read()
    assert (record.status, record.exit_code, record.error) == (status, code, reason)
    reported = (run.path / "console.log").read_text().splitlines()[-1]
    assert reported.endswith("try: train resume=early") == (status == "interrupted")
    assert record.finished is not None
    assert record.data.train_dialogs == 8
    assert [point["step"] for point in run.metrics()] == [0, 1, 2]
    assert not run.model_dir.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(7)])
def test_a_run_that_a_reporter_interrupts_is_resumed_to_the_same_weights(
    small_config: SmallConfig, twins: list[TrainResult], error: BaseException
) -> None:
    settings = {"train.seed": 1, "name": "early", "train.eval_every_steps": 1}
    with pytest.raises(type(error)):
        train(small_config(settings), reporter=Failing(error))
    run = RunDir(Path("models/runs/early"))
    assert run.checkpoints()
    result = resume(run)
    assert result is not None
    assert (record_of(result).status, record_of(result).exit_code) == ("completed", 0)
    assert digest(result.model_dir) == digest(twins[0].model_dir)


# Without its folder


class Losing(LogReporter):
    """Removes or moves the run folder at a step, or once training is done."""

    def __init__(self, when: int | str, do: Callable[[], object]) -> None:
        self.when, self.do = when, do

    def activity(self, text: str) -> None:
        if text == self.when:
            self.do()

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        if step == self.when:
            self.do()
            self.steps = step
        assert self.when not in range(1, step), "a step was logged after the folder was gone"


RUN = Path("models/runs/gone")


def replace_run() -> None:
    RUN.rename("other")
    RUN.mkdir()
    (RUN / "mine").touch()


LOSSES: dict[str, Callable[[], object]] = {
    "removed": lambda: shutil.rmtree(RUN),
    "moved": lambda: RUN.rename("models/runs/other"),
    "all removed": lambda: shutil.rmtree("models"),
    "replaced": replace_run,
}


@pytest.mark.parametrize("when", [2, pytest.param("answering the test prompts", marks=pytest.mark.faults)])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_folder_that_goes_while_training_is_one_true_sentence(
    small_config: SmallConfig, loss: str, when: int | str
) -> None:
    config = small_config({"name": "gone", "generate.test_prompts": [], "tracking.held_out_replies": 0})
    words = ["dialogkit", "train", "custom-nano", "--tag", "two words"]
    with pytest.raises(CheckpointError) as reported:
        train(config, command=words, reporter=Losing(when, LOSSES[loss]))
    assert (reported.value.message, reported.value.exit_code) == (
        f"the run folder '{RUN}' was removed or moved while training", 1,
    )  # fmt: skip
    assert typed(reported.value) == "dialogkit train custom-nano --tag 'two words'"
    assert not Path("models/custom_nano").exists()
    assert names(RUN) == {"mine"} if loss == "replaced" else not RUN.exists()


def test_of_a_run_folder_that_was_moved_the_list_shows_the_new_name(
    small_config: SmallConfig, dialogkit: Callable[..., Finished]
) -> None:
    config = small_config({"name": "gone", "train.eval_every_steps": 1})
    with pytest.raises(CheckpointError) as reported:
        train(config, reporter=Losing(2, LOSSES["moved"]))
    assert typed(reported.value) == "dialogkit runs list"
    assert [row["name"] for row in dialogkit("runs", "list", "--json").json["data"]] == ["other"]
    done = dialogkit("train", "--resume", "other")
    assert done.code == 0, done.err
    assert dialogkit("runs", "show", "other", "--json").json["data"]["status"] == "completed"
    assert json.loads(Path("models/runs/other/run.json").read_text())["name"] == "gone"


def test_refused_data_leaves_nothing_behind(small_config: SmallConfig, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"topic": "Hi", "remark": "Hello"}\n')
    with pytest.raises(DataError, match="topic"):
        train(small_config({"data.dataset": "bad.jsonl", "name": "bad"}))
    assert names(tmp_path) == {"bad.jsonl"}


class Slow(LogReporter):
    """Takes a second to say what begins."""

    def header(self, info: Mapping[str, str]) -> None:
        time.sleep(1)


def test_a_budget_that_the_start_took_leaves_nothing_behind(small_config: SmallConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a budget of 1 s is too short to train") as reported:
        train(small_config({"train.budget_s": 1.0, "train.max_steps": None}), reporter=Slow())
    assert str(typed(reported.value)).startswith("--budget")
    assert not list((tmp_path / "models").glob("runs/*"))


def test_a_budget_that_does_not_bind_changes_nothing_that_is_learned_or_logged(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    runs = [
        train(small_config({"train.budget_s": budget, "name": name, "runtime.output_dir": str(tmp_path / name)}))
        for name, budget in (("plain", None), ("budget", 3600.0))
    ]
    assert digest(runs[0].model_dir) == digest(runs[1].model_dir)
    records = [record_of(result) for result in runs]
    assert records[0].schedule == records[1].schedule
    points = [
        [
            (point["step"], name, value)
            for point in RunDir(Path(result.run_dir)).metrics()
            for name, value in point.items()
            if name.startswith(("train/loss", "train/learning_rate", "eval/nats_per_token"))
        ]
        for result in runs
    ]
    assert points[0] == points[1]


class Lost(LogReporter):
    """Is reported to stop where somebody catches every exception, as libraries do where they look for others."""

    def activity(self, text: str) -> None:
        with suppress(Exception):
            signal.raise_signal(signal.SIGTERM)


def test_a_stop_that_a_library_lost_is_heard_before_the_first_step(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM") as reported:
        train(small_config({"name": "lost"}), reporter=Lost())
    assert reported.value.exit_code == 143
    run = RunDir(tmp_path / "models/runs/lost")
    assert run.read().status == "interrupted"
    assert [point["step"] for point in run.metrics()] == [0]


# On the command line


def test_with_json_stdout_is_one_envelope_and_stderr_plain_lines(dialogkit: Callable[..., Finished]) -> None:
    settings = {name: value for name, value in SMALL.items() if name != "data.samples"}
    words = ["train", "custom-nano", "--json", "--samples", "8", *sets(settings)]
    done = dialogkit(*words)
    assert (done.code, done.json.keys()) == (0, {"data", "hint"})
    result = TrainResult.model_validate(done.json["data"])
    assert record_of(result).command == ["dialogkit", *words]
    lines = done.err.splitlines()
    for name, reported in (("model", "custom-nano"), ("data", "8 of "), ("W&B", "disabled"), ("run", result.run)):
        assert any(line.startswith(name) and reported in line for line in lines), name
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps if "loss" in line and "held-out" not in line] == [
        "1/4", "2/4", "3/4", "4/4",
    ]  # fmt: skip
    assert [line.split()[1] for line in steps if "held-out" in line] == ["0/4", "4/4"]
    assert not re.search(r"[^\n\x20-\x7e]", done.err)


def test_a_failure_on_the_command_line_is_its_sentence(dialogkit: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    done = dialogkit("train", "custom-nano", *sets(SMALL))
    assert done.code == StorageError.exit_code
    assert done.out == ""
    assert done.err.startswith("error: cannot create 'models/runs/")
    assert "Traceback" not in done.err


# Models of the user


def test_a_model_file_with_a_tokenizer_of_its_own_trains(
    dialogkit: Callable[..., Finished], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("Hello! How are you? I am fine.\n" * 5)
    assert dialogkit("tokenizer", "train", "texts.txt", "--output", "my-tokens", "--vocab-size", "300").code == 0
    shape = {"layers": 1, "width": 16, "heads": 2, "context": 64, "tokenizer": "./my-tokens"}
    (tmp_path / "my-model.json").write_text(json.dumps({"model": shape, "train": {"learning_rate": 0.02}}))
    rest = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    done = dialogkit("train", "./my-model.json", "--json", *sets(rest))
    result = TrainResult.model_validate(done.json["data"])
    assert result.published_dir == "models/my_model"
    record = record_of(result)
    entries = json.loads(Path("my-tokens/tokenizer.json").read_text())["model"]["vocab"]
    assert (record.model.name, record.model.vocabulary, record.model.layers) == (
        "my-model",
        len(entries),
        1,
    )
    assert record.config["train"]["learning_rate"] == 0.02
    assert result.metrics["final/nats_per_token"] < result.metrics["before/nats_per_token"]
    assert dialogkit("generate", "--prompt", "Hello!", "--max-new-tokens", "2").code == 0


def test_a_model_of_the_gpt2_architecture_trains_from_scratch(small_config: SmallConfig, tmp_path: Path) -> None:
    shape = {
        "architecture": "gpt2",
        "layers": 1,
        "width": 16,
        "heads": 2,
        "context": 64,
        "tokenizer": str(TOKENIZER),
    }
    (tmp_path / "mine.json").write_text(json.dumps({"model": shape}))
    rest = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    config = load_run_config("mine.json", overrides={**rest, "train.learning_rate": 0.02})
    result = train(config)
    saved = json.loads((Path(result.model_dir) / "config.json").read_text())
    assert (saved["model_type"], saved["n_layer"], saved["n_embd"]) == ("gpt2", 1, 16)
    assert result.metrics["final/nats_per_token"] < result.metrics["before/nats_per_token"]
    counts = config.model.parameter_counts(record_of(result).model.vocabulary)
    assert counts is not None
    assert record_of(result).model.parameters == counts.total


@pytest.mark.parametrize(
    ("budget_s", "evaluation_s", "dialogs", "reported"),
    [
        (300, 35, 1000, (300, "1,000 dialogs take 35%")),
        (300, 100, 1000, (100, "take 100%")),
        (300, 400, 1000, (50, "take 100%")),
        (3600, 35, 1000, None),
        (60, 10, 40, None),
        (60, 0.0, 40, None),
    ],
)
def test_evaluations_that_take_much_of_a_budget_are_reported(
    budget_s: float, evaluation_s: float, dialogs: int, reported: tuple[int, str] | None
) -> None:
    warning = costly_evaluations(budget_s, evaluation_s, dialogs)
    if reported is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning[0] == reported[0]
        assert reported[1] in warning[1]
