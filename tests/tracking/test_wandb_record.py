"""A real offline run, read back from W&B's own files: everything that it should hold, item by item."""

import json
import os
from typing import Any, NamedTuple

import pytest

from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import TINY, Finished
from tests.forks import command_line, heard, run_forked
from tests.wandb_log import history, only_offline_run, records, values


class Recorded(NamedTuple):
    """What W&B wrote of a run, beside the run's own record."""

    started: Any
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int
    tables: dict[str, list[dict[str, Any]]]
    own: RunDir
    record: RunRecord
    said: str

    def logged(self, name: str) -> list[Any]:
        """Return the values of a metric in the order of their steps."""
        return [point[name] for point in self.history if name in point]


SETTINGS: dict[str, Any] = {
    **TINY,
    "data.samples": 24,
    "train.max_steps": 25,
    "train.log_every_steps": 1,
    "train.eval_every_steps": 10,
    "generate.max_new_tokens": 8,
    "generate.test_prompts": ["Hello!", "What is 7 plus 5?"],
    "tracking.group": "my-group",
    "tracking.notes": "my notes",
}


STEP_METRICS = [
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/epoch",
    "train/tokens",
    "train/supervised_tokens",
    "perf/tokens_per_s",
    "perf/step_s",
    "perf/time_left_s",
    "system/memory_bytes",
]

SUMMARY = [
    "replies/reply_rate",
    "replies/stop_rate",
    "replies/mean_tokens",
    "replies/mean_seconds",
    "replies/mean_repetition",
    "final/nats_per_token",
    "final/bits_per_byte",
    "perf/tokens_per_s",
    "train/seconds",
    "status",
    "created",
    "finished",
    "duration_s",
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    sets = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    words = ["train", "custom-nano", "--no-cuda", "--name", "a-run", "--tag", "mine", *sets]
    done = Finished(*run_forked(heard, command_line, words, folder=folder, timeout=240, **os.environ))
    assert done.code == 0, done.err
    wandb_folder = only_offline_run(folder / "models")
    found = records(wandb_folder)
    started = next(record.run for record in found if record.HasField("run"))
    config = values(started.config.update)
    summary: dict[str, Any] = {}
    for entry in found:
        config |= values(entry.config.update)
        summary |= values(entry.summary.update)
    tables: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(wandb_folder.glob("files/media/table/**/*.table.json")):
        shown = json.loads(path.read_text())
        name = str(path.relative_to(wandb_folder / "files/media/table")).rpartition("_")[0].rpartition("_")[0]
        tables.setdefault(name, []).extend(dict(zip(shown["columns"], row, strict=True)) for row in shown["data"])
    own = RunDir(folder / "models/runs/a-run")
    said = done.out + done.err
    return Recorded(
        started, config, history(found), summary, found[-1].exit.exit_code, tables, own, own.read(), said
    )


def test_the_run_has_its_name_project_tags_group_and_notes(recorded: Recorded) -> None:
    run = recorded.started
    assert (run.display_name, run.project) == ("a-run", "dialog-model-training")
    assert set(run.tags) == {"custom-nano", "test", "single-model", "pipeline", "mine"}
    assert (run.run_group, run.notes) == ("my-group", "my notes")


@pytest.mark.parametrize(
    ("part", "names"),
    {
        "model_facts": "parameters trainable_parameters parameters_without_embeddings layers heads width context "
        "vocabulary architecture dtype",
        "data_facts": "dataset format license revision rows kept cut dropped train_dialogs train_tokens "
        "train_supervised_tokens eval_dialogs",
        "runtime_facts": "device device_name device_reason precision precision_reason",
        "schedule": "total_steps log_every_steps eval_every_steps",
        "environment": "platform cpu cpu_count memory_bytes executable folder git gpu host",
        "versions": "dialogkit python torch transformers tokenizers datasets accelerate safetensors numpy wandb",
    }.items(),
)
def test_the_configuration_reports_the_facts(recorded: Recorded, part: str, names: str) -> None:
    assert set(names.split()) <= recorded.config[part].keys()
    assert (
        recorded.config[part]
        == json.loads(recorded.record.model_dump_json())[
            {"model_facts": "model", "data_facts": "data", "runtime_facts": "runtime"}.get(part, part)
        ]
    )


def test_the_configuration_holds_every_setting_with_its_origin(recorded: Recorded) -> None:
    settings = {name for name in recorded.config if "/" in name}
    assert {"train/learning_rate", "train/seed", "generate/seed", "data/dataset", "model/layers"} <= settings
    assert {name.replace("/", ".") for name in settings} <= recorded.config["origins"].keys()
    assert recorded.config["origins"]["train.max_steps"] == "command line"
    assert recorded.config["command"].startswith("dialogkit train custom-nano --no-cuda --name a-run")


@pytest.mark.parametrize("name", STEP_METRICS)
def test_each_step_has_its_metrics(recorded: Recorded, name: str) -> None:
    steps = [(point["train/step"], point["train/tokens"]) for point in recorded.history if name in point]
    assert {step for step, _ in steps} >= set(range(1, 26))
    assert [tokens for _, tokens in steps] == sorted(tokens for _, tokens in steps)


@pytest.mark.parametrize("name", ["nats_per_token", "perplexity", "bits_per_byte", "accuracy"])
def test_each_evaluation_has_its_figures_over_steps_and_tokens(recorded: Recorded, name: str) -> None:
    points = [point for point in recorded.history if f"eval/{name}" in point]
    assert [point["train/step"] for point in points] == [0, 10, 20, 25]
    tokens = [point["train/tokens"] for point in points]
    assert tokens == sorted(set(tokens))
    assert tokens[0] == 0
    assert recorded.summary[f"before/{name}"] == pytest.approx(points[0][f"eval/{name}"])


@pytest.mark.parametrize("kind", ["weights", "gradients"])
def test_a_run_of_25_steps_has_histograms(recorded: Recorded, kind: str) -> None:
    name = f"{kind}/model.layers.0.self_attn.q_proj.weight"
    assert recorded.logged(f"{name}/_type") == ["histogram"] * len(recorded.logged(f"{name}/_type"))
    steps = [point["train/step"] for point in recorded.history if f"{name}/_type" in point]
    assert len(steps) >= 5
    local = [json.loads(line) for line in (recorded.own.path / "histograms.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in local if name in entry] == steps
    assert [entry[name]["counts"] for entry in local if name in entry] == recorded.logged(f"{name}/values")


def test_the_lengths_of_the_dialogs_are_a_histogram(recorded: Recorded) -> None:
    (counts,) = recorded.logged("data/dialog_tokens/values")
    assert sum(counts) == recorded.record.data.train_dialogs == 24


def test_every_evaluation_and_the_end_have_a_table_of_replies(recorded: Recorded) -> None:
    columns = ["prompt", "reply", "reference", "tokens", "seconds", "tokens_per_s", "stop_reason", "repetition"]
    final = recorded.tables["replies/final"]
    assert [row["prompt"] for row in final[:2]] == ["Hello!", "What is 7 plus 5?"]
    assert [row["reference"] is None for row in final] == [True, True, False, False]
    assert all(list(row) == columns for table in recorded.tables.values() for row in table)
    assert len(recorded.tables["replies/evaluation"]) == 3 * 4


@pytest.mark.parametrize("name", SUMMARY)
def test_the_summary_has_the_results(recorded: Recorded, name: str) -> None:
    assert name in recorded.summary


def test_the_end_is_reported(recorded: Recorded) -> None:
    assert (recorded.exit_code, recorded.summary["status"]) == (0, "completed")
    assert f"wandb sync models/wandb/{only_offline_run(recorded.own.path.parents[1]).name}" in recorded.said


def test_the_folder_of_the_run_reports_the_same_without_wandb(recorded: Recorded) -> None:
    mine: dict[int, dict[str, Any]] = {point["step"]: {} for point in recorded.own.metrics()}
    for point in recorded.own.metrics():
        mine[point["step"]] |= {name: value for name, value in point.items() if "/" in name}
    theirs: dict[int, dict[str, float]] = {step: {} for step in mine}
    for point in recorded.history:
        scalars = {name: v for name, v in point.items() if isinstance(v, int | float) and not name.startswith("_")}
        theirs[point["train/step"]] |= {
            name: v for name, v in scalars.items() if name in mine[point["train/step"]]
        }
    assert mine == theirs
    samples = [json.loads(line) for line in (recorded.own.path / "samples.jsonl").read_text().splitlines()]
    assert [s["reply"] for s in samples if s["table"] == "replies/final"] == [
        row["reply"] for row in recorded.tables["replies/final"]
    ]
    assert "held-out loss" in (recorded.own.path / "console.log").read_text()
