"""Situations in which commands fail that are typed right, with a part of the hint that each leads to."""

import fcntl
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.hint_rows import ROWS, TRAIN
from tests.conftest import SMALL

Situation = Callable[[pytest.MonkeyPatch], Any]

RUN = Path("models/runs/shared-run")


def edit_record(change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of the run."""
    record = json.loads((RUN / "run.json").read_text())
    change(record)
    (RUN / "run.json").write_text(json.dumps(record))


def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was stopped after its last checkpoint."""
    shutil.rmtree(RUN / "model")
    edit_record(lambda record: record.update(status="interrupted", finished=None))


def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Another process trains the run."""
    stopped(monkeypatch)
    file = (RUN / ".lock").open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file  # held until it is closed


def checkpoints() -> list[Path]:
    return sorted(RUN.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


def tear(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))


def torn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest checkpoint is damaged."""
    tear(checkpoints()[-1])


def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """All checkpoints of a stopped run are damaged."""
    stopped(monkeypatch)
    for checkpoint in checkpoints():
        tear(checkpoint)


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the run is no JSON."""
    (RUN / "run.json").write_text("{")


def remains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, without a finished model."""
    unreadable(monkeypatch)
    shutil.rmtree(RUN / "model")


def edited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting in the record of a stopped run is wrong."""
    stopped(monkeypatch)
    edit_record(lambda record: record["config"]["train"].update(epochs=0))


def edited_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the data in the record is wrong."""
    edit_record(lambda record: record["config"]["data"].update(samples=0))


def data_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset of the run is gone."""
    edit_record(lambda record: record["config"]["data"].update(dataset="gone.jsonl"))


def linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run holds a link."""
    stopped(monkeypatch)
    (RUN / "link").symlink_to("/tmp")


def half_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was being deleted."""
    (RUN / "run.json").rename(RUN / ".pruned.json")


def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the model is taken by something else."""
    shutil.rmtree("models/custom_nano")
    Path("models/custom_nano").mkdir()
    Path("models/custom_nano/thesis.txt").write_text("the only copy")


def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own settings are wrong."""
    for folder in (RUN / "model", Path("models/custom_nano")):
        (folder / "generation_config.json").write_text('{"temperature": -1, "do_sample": true}')


def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own settings are no JSON."""
    for folder in (RUN / "model", Path("models/custom_nano")):
        (folder / "generation_config.json").write_text("{")


def template(text: str) -> Situation:
    """The model has a chat template of this text."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(RUN / "model", "mine")
        Path("mine/chat_template.jinja").write_text(text)

    return prepare


def pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a model are no tensors."""
    import pickle

    shutil.copytree(RUN / "model", "mine")
    Path("mine/model.safetensors").unlink()
    Path("mine/pytorch_model.bin").write_bytes(pickle.dumps({"a": Path("x")}, protocol=2))


def unknown_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind of a model is unknown."""
    shutil.copytree(RUN / "model", "mine")
    Path("mine/config.json").write_text('{"model_type": "zzz"}')


def ggufs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder holds two GGUF files."""
    Path("mine").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (Path("mine") / name).write_bytes(b"GGUF")


def adapter(base: str | None) -> Situation:
    """A folder holds an adapter of this base."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(RUN / "model", "mine")
        Path("mine/model.safetensors").rename("mine/adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        Path("mine/adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))

    return prepare


def lacking(package: str) -> Situation:
    """A package is not installed."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        from importlib.util import find_spec

        for module in ("adapter_source", "sources"):
            monkeypatch.setattr(
                f"dialogkit.models.{module}.find_spec", lambda name: None if name == package else find_spec(name)
            )

    return prepare


def disk(free: int) -> Situation:
    """The disk has little room."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))

    return prepare


def memory(free: int) -> Situation:
    """The machine has little memory."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("memory_plan", "setup"):
            monkeypatch.setattr(f"dialogkit.services.training.{module}.free_bytes", lambda: free)

    return prepare


def memory_of_replies(free: int) -> Situation:
    """The model leaves little memory."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dialogkit.services.inference_memory.free_bytes", lambda: free)

    return prepare


def environment(**values: str) -> Situation:
    """The environment holds these values."""

    def prepare(monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return prepare


def two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two runs, which were not evaluated on the same dialogs."""
    shutil.copytree(RUN, RUN.with_name("second"))
    record = json.loads((RUN / "run.json").read_text())
    (RUN.with_name("second") / "run.json").write_text(json.dumps({**record, "name": "second"}))


def long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a table has megabytes."""
    Path("long.csv").write_text("prompt,response\na," + '"' + "b\n" * 2**21 + '"\n')


def broken_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset is a link to nowhere."""
    Path("link.jsonl").symlink_to("nowhere.jsonl")


def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is where the export of the model goes."""
    Path("exports/shared-run-q8_0").mkdir(parents=True)
    Path("exports/shared-run-q8_0/Modelfile").write_text("mine")


def exported_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a page for the browser, made of the model."""
    Path("exports/page").mkdir(parents=True)
    Path("exports/page/model.onnx").touch()
    Path("exports/page/certificate.json").write_text('{"model": "shared-run"}')


def exported_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is also a GGUF file of it."""
    exported_page(monkeypatch)
    Path("exports/shared-run-q8_0").mkdir()
    Path("exports/shared-run-q8_0/shared-run-q8_0.gguf").write_bytes(b"GGUF")


def packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Parquet file is gzipped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), "packed.parquet")
    Path("packed.parquet.gz").write_bytes(gzip.compress(Path("packed.parquet").read_bytes()))
    Path("packed.parquet").unlink()


def other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two runs, which were trained on different datasets."""
    two_runs(monkeypatch)
    second = RUN.with_name("second") / "run.json"
    record = json.loads(second.read_text())
    record["config"]["data"]["dataset"] = "shop.jsonl"
    record["data"]["revision"] = "0" * 64
    second.write_text(json.dumps(record))


def kept_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder holds a trained adapter of the model."""
    from dialogkit.config.load import load_run_config
    from dialogkit.services.train import train

    changed = {"train.method": "lora", "train.merge": False, "train.optimizer": "adamw", "name": "adapted"}
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    result = train(
        load_run_config("models/custom_nano", overrides={**settings, **changed, "runtime.output_dir": "lora"})
    )
    shutil.copytree(result.model_dir, "mine")


def own_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model lies where one of its name is published."""
    shutil.copytree(RUN / "model", "models/mine")


def gguf_without_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a GGUF file and no package to read it."""
    ggufs(monkeypatch)
    lacking("gguf")(monkeypatch)


WITHOUT_STOP = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
WITHOUT_TEXT = "{% for m in messages %}<|user|>{% endfor %}"
REFUSING = "{{ raise_exception('never') }}"
MINE = "train mine"
LAUNCHED = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}

SITUATIONS: list[tuple[Situation, str, str]] = [
    (stopped, f"{TRAIN} --name shared-run", "train --resume shared-run"),
    (stopped, "generate shared-run", "train --resume shared-run"),
    (stopped, "train --from shared-run", "train --resume shared-run"),
    (stopped, "train --resume shared-run --lr 1", "train --resume shared-run"),
    (stopped, "train --resume shared-run --name other", "train --resume shared-run"),
    (stopped, "train custom-tiny --resume shared-run", "train --resume shared-run"),
    (stopped, "train --resume shared-run --devices 3", "--devices 2"),
    (held, "generate shared-run", "runs show shared-run"),
    (held, "train --resume shared-run", "runs show shared-run"),
    (held, "runs prune shared-run", "runs show shared-run"),
    (lost, "train --resume shared-run", "train --resume shared-run --force"),
    (lost, "generate shared-run", "train --resume shared-run --force"),
    (unreadable, "runs list", "runs show shared-run"),
    (unreadable, "runs show shared-run", "generate models/runs/shared-run/model --prompt"),
    (unreadable, "train --resume last", "runs show shared-run"),
    (remains, "runs show shared-run", "train --from models/runs/shared-run/checkpoint-"),
    (edited, "train --resume shared-run", "config validate models/runs/shared-run/run.json"),
    (edited_data, "evaluate shared-run", "runs show shared-run"),
    (data_moved, "evaluate shared-run", "runs show shared-run"),
    (linked, "train --resume shared-run", "runs show shared-run"),
    (half_deleted, f"{TRAIN} --name shared-run", "runs prune shared-run --yes"),
    (foreign, TRAIN, "--set model.name=my-custom_nano"),
    (own_settings, "generate shared-run --use-model-settings", "generate shared-run"),
    (own_settings, "train models/custom_nano --set generate.use_model_settings=true", "=false"),
    (no_settings, "evaluate shared-run --samples 4 --use-model-settings", "evaluate shared-run"),
    (template(WITHOUT_STOP), MINE, "--set model.chat_format=plain"),
    (template(WITHOUT_TEXT), MINE, "--set model.chat_format=plain"),
    (template(REFUSING), MINE, "--set model.chat_format=plain"),
    (template(WITHOUT_STOP), "generate mine", "train mine --set model.chat_format=plain"),
    (pickled, "generate mine", "safetensors"),
    (pickled, MINE, "safetensors"),
    (unknown_kind, "generate mine", "models list"),
    (ggufs, "generate mine", "mine/a.gguf"),
    (adapter(None), "generate mine", "base_model_name_or_path"),
    (adapter("./gone"), "generate mine", "base_model_name_or_path"),
    (adapter("someone/gone"), "generate mine", "hf download someone/gone"),
    (lacking("peft"), "train models/custom_nano --method lora", "pip install 'dialogkit[lora]'"),
    (disk(2**20), TRAIN, "runs prune --checkpoints-only"),
    (disk(15 * 2**20), f"{TRAIN} --set train.keep_checkpoints=9", "runs prune --checkpoints-only"),
    (memory(2**10), TRAIN, "models list"),
    (memory(2**25), f"{TRAIN} --set train.activation_checkpointing=true", "models list"),
    (memory(2**26), TRAIN, "--set train.activation_checkpointing=true"),
    (memory(95_000_000), TRAIN, "--fit-batch"),
    (memory_of_replies(150_000), "generate shared-run --max-new-tokens 200", "--max-new-tokens "),
    (memory_of_replies(2**10), "evaluate shared-run", "models list"),
    (memory_of_replies(2**10), "generate shared-run", "shorten the prompt, or: dialogkit models list"),
    (environment(RANK="x", WORLD_SIZE="2"), TRAIN, "unset RANK WORLD_SIZE"),
    (environment(**LAUNCHED, RANK="x"), TRAIN, "torchrun"),
    (environment(**LAUNCHED, RANK="5"), TRAIN, "torchrun"),
    (environment(RANK="5", WORLD_SIZE="2"), TRAIN, "unset RANK WORLD_SIZE"),
    (environment(RANK="0", WORLD_SIZE="2"), TRAIN, "unset RANK WORLD_SIZE"),
    (two_runs, "runs compare shared-run second", "evaluate shared-run second"),
    (two_runs, "runs best", "generate s"),
    (other_data, "runs compare shared-run second", "evaluate shared-run second --dataset"),
    (other_data, "evaluate shared-run second", "evaluate shared-run second --dataset"),
    (own_base, "train models/mine --method lora --no-merge", "model.name=my-mine"),
    (kept_adapter, "train mine --method lora --no-merge", "merge"),
    (gguf_without_reader, "generate mine/a.gguf", "pip install 'dialogkit[gguf]'"),
    (torn, "train --from models/runs/shared-run/checkpoint-20", "train --from models/runs/shared-run/checkpoint-"),
    (long_row, f"{TRAIN} --dataset long.csv", "fix that line"),
    (broken_link, f"{TRAIN} --dataset link.jsonl", "--dataset"),
    (exported, "export shared-run", "--force"),
    (own_settings, "export shared-run", "correct or delete its generation_config.json"),
    (lacking("gguf"), "export shared-run", "pip install 'dialogkit[gguf]'"),
    (pickled, "push mine tiny --dry-run", "--include-pickle"),
    (exported_page, "push exports/page tiny --dry-run", "push shared-run tiny --dry-run, or: dialogkit export sh"),
    (
        exported_both,
        "push exports/page tiny --dry-run",
        "or: dialogkit push exports/shared-run-q8_0 tiny --dry-run",
    ),
    (own_base, "push models/mine tiny --dry-run --bundle", "push models/mine tiny --dry-run"),
    (lacking("onnx"), "export shared-run --to onnx", "pip install 'dialogkit[onnx]'"),
    (packed, f"{TRAIN} --dataset packed.parquet.gz --set data.streaming=true", "gunzip packed.parquet.gz && "),
]

UNREACHED = {
    "needs a GPU; tests/engine/test_device.py and tests/services/machine make one up": [
        "engine/device.py:_device:2",
        "engine/device.py:_device:3",
        "services/machine/checks.py:_with_build",
        "services/training/recorder.py:Recorder/gpu_use",
        "services/training/summary.py:warnings",
        "services/training/summary.py:warnings:2",
    ],
    "needs several GPUs": [
        "distributed/launcher.py:resolve_devices",
    ],
    "needs several processes": [
        "distributed/launcher.py:_require_free",
        "distributed/launcher.py:_lost",
        "distributed/launcher.py:_apart",
        "distributed/launcher.py:_apart:2",
        "distributed/rank.py:reject_foreign_settings",
        "distributed/rank.py:reject_foreign_settings:2",
        "cli/train.py:_dry_run",
        "data/stream.py:_Blocks/_own",
        "data/stream.py:DialogStream/require_position:2",
        "services/training/agreement.py:require_same_request",
        "services/runs/resolve.py:refuse_sharded",
    ],
    "needs a machine with other hardware, disks or settings; tests/services/machine makes them up": [
        *(
            f"services/machine/checks.py:{name}"
            for name in (
                "_packages",
                "_packages:2",
                "_install",
                "_gpus",
                "_gpus:2",
                "_memory",
                "_output",
                "_output:2",
                "_output:3",
                "_output:4",
                "_cache",
                "_wandb",
                "_wandb:2",
                "_wandb:3",
                "_wandb:4",
                "_hub",
                "_hub:3",
                "_hub:4",
                "_devices",
                "_devices:2",
                "_cluster",
                "_cluster:2",
                "_shm",
            )
        ),
    ],
    "needs a program around the package": [
        "config/load.py:parse_sets",
        "api/inference.py:_with_settings",
        "api/inference.py:_with_settings:2",
        "api/inference.py:_with_settings:3",
        "api/training.py:_require_settings",
        "api/training.py:_require_settings:2",
        "api/training.py:summary",
        "config/load.py:require_overrides",
        "config/problems.py:require_number",
        "services/training/resume.py:started_from",
        "examples/__init__.py:copy_examples",
        "services/chat.py:Chat/say",
        "services/training/lifecycle.py:_require_processes",
        "services/training/lifecycle.py:_require_processes:2",
        "system/compute_lock.py:require_threads",
        "system/compute_lock.py:_compute_in_fork",
        "services/runs/compare.py:sync_runs:2",
    ],
    "needs a training of a reference run; tests/services/test_plan.py makes one up": [
        "services/training/recorder.py:Recorder/plan",
        "services/training/recorder.py:Recorder/plan:2",
    ],
    "needs the lm-evaluation-harness": [
        "services/evaluation/lm_eval.py:",
        "services/evaluation/lm_eval.py:TaskSuite/run",
        "services/evaluation/lm_eval.py:_text_of",
        "services/evaluation/lm_eval.py:_expanded",
        "services/evaluation/lm_eval.py:_load",
        "services/evaluation/lm_eval.py:_load:2",
        "services/evaluation/lm_eval.py:_load:3",
    ],
    "needs a model whose replies take more memory than its scores": [
        "services/evaluation/scoring.py:replies_to",
    ],
    "needs a secret that no setting refuses; tests/services/cluster/test_job.py finds some": [
        "services/cluster/job.py:plan",
        "services/cluster/job.py:require_no_secrets",
        "services/cluster/job.py:require_no_secrets:2",
    ],
    "needs a budget that ends between the start and the first step; tests/engine/test_budget.py makes one up": [
        "engine/budget.py:BudgetCallback/on_train_begin",
        "services/training/measure.py:measure_untrained",
        "services/training/measure.py:plan_budget",
    ],
    "needs a run that diverges; tests/services/test_train.py makes one": [
        "engine/callbacks.py:diverged",
        "engine/callbacks.py:diverged:2",
    ],
    "needs a pickle in a checkpoint; tests/faults/test_hostile.py makes one": [
        "engine/fit.py:fit",
    ],
    "leads to a run of a thousand steps": [
        "services/training/setup.py:TrainingSetup/_stream",
    ],
    "needs a server that ends; tests/services/test_serve.py makes one": [
        "services/serve.py",
    ],
    "needs a hub that answers, or fails in the middle": [
        "models/adapter_source.py:model_file",
        "data/sources.py:_from_hub:2",
        "data/sources.py:_from_hub:3",
        "data/sources.py:fetch_file",
        "data/sources.py:fetch_file:2",
        "data/shards.py:_hub_stream",
    ],
    "needs a server of W&B": [
        "cli/runs.py:sync_command",
        "cli/runs.py:sync_command:2",
        "services/runs/compare.py:sync_runs",
        "services/runs/compare.py:_folders_of",
    ],
    "needs a model of a rare kind; tests/models makes them": [
        "data/prepare.py:none_fits",
        "engine/attention.py:use_packed_attention",
        "models/adapters.py:add_adapter:3",
        "models/adapters.py:merge_into",
        "models/build.py:_require_embeddings",
        "models/build.py:_require_buildable",
        "models/vocabulary.py:load_vocabulary",
        "models/vocabulary.py:_require_reader",
        "models/byte_level.py",
        "models/onnx_file.py",
        "services/exporting/web_page.py",
        "models/tokenizer.py:ChatTokenizer/__init__",
        "models/chat_template.py:TemplateFormat/_render",
        "models/chat_template.py:TemplateFormat/_render:3",
    ],
    "needs memory that runs out during a step": [
        "engine/fit.py:_out_of_memory",
        "engine/fit.py:_out_of_memory:2",
        "engine/fit.py:_out_of_memory:3",
    ],
    "needs a copy that is not faithful; tests/services/test_export.py makes one": [
        "services/export.py:export:3",
        "services/export.py:export:4",
    ],
    "needs onnxruntime-web; tests/services/test_export.py has a stand-in for it": [
        "cli/export.py:_next",
        "services/export.py:export:2",
    ],
    "needs a folder without it; tests/services/exporting/test_web_runtime.py makes one": [
        "services/exporting/web_runtime.py:",
    ],
    "needs a hub to write to, or what must not go there; tests/services/test_push.py makes them": [
        "cli/push.py:push_command",
        "cli/push.py:push_command:2",
        "services/push.py:push:2",
        "services/exporting/card_head.py:as_yaml",
        "services/exporting/hub_card.py:_head_of",
        "services/exporting/hub_files.py:Upload/require_no_secrets",
        "services/exporting/hub_repository.py:",
        "services/exporting/hub_repository.py:require_hub",
        "services/exporting/hub_repository.py:require_hub:2",
        "services/exporting/hub_repository.py:require_hub:3",
        "services/exporting/hub_repository.py:send",
        "services/exporting/hub_repository.py:_open",
        "services/exporting/hub_repository.py:_refusals",
        "services/exporting/hub_repository.py:_unavailable",
        "services/exporting/hub_repository.py:_unavailable:2",
        "services/exporting/hub_repository.py:_unavailable:3",
    ],
    "needs a pattern that takes seconds to match": [
        "data/checks.py:_matches",
    ],
    "needs a standard input that is closed": [
        "cli/chat.py:chat_command",
    ],
    "needs the end of a run to be disturbed": [
        "services/training/lifecycle.py:_record_end",
        "services/training/lifecycle.py:_record_end:2",
        "services/training/lifecycle.py:_end_without_folder",
        "services/training/lifecycle.py:_end_without_folder:2",
        "services/training/publish.py:_publish",
        "services/training/publish.py:_publish:2",
        "services/training/publish.py:_write_report",
    ],
    "needs a file that changes, cannot be read, or is of gigabytes": [
        "services/inspect.py:_Texts/__init__",
        "data/open_files.py:readable:2",
        "data/parquet.py:ParquetRows/_opened",
        "data/stream.py:DialogStream/require_position",
        "data/stream.py:DialogStream/_groups",
        "data/not_datasets.py:wrong_encoding",
        "data/worlds/folder.py:_files",
    ],
}
"""Places that make a hint which no command here prints, by the reason; a file stands for all of its places."""
