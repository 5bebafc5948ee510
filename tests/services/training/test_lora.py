"""A training with LoRA: small checkpoints that go on bit for bit, and a model like any other at its end."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dialogkit.api.inference import evaluate
from dialogkit.config.load import LORA_LEARNING_RATE, load_run_config, load_with_origins
from dialogkit.engine.checkpoints import read_progress
from dialogkit.engine.disk import checkpoint_bytes, require_space
from dialogkit.engine.trainer import require_finite
from dialogkit.errors import ConfigError, DivergedError, ModelError
from dialogkit.services.generate import generate
from dialogkit.services.models import list_models, show_model
from dialogkit.services.train import resume, train
from dialogkit.services.training.dry_run import dry_run
from dialogkit.services.training.result import TrainResult
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL, Finished, Trained, typed
from tests.invariants.test_resume import KillAt, Killed, flip

REST = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
LORA = {**REST, "train.method": "lora", "train.lora_rank": 4, "train.eval_every_steps": 2, "train.max_steps": 5}


@pytest.fixture(scope="module")
def base(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models in which one lies that was trained there."""
    output = tmp_path_factory.mktemp("lora") / "models"
    shutil.copytree(trained.output / "runs/shared-run", output / "runs/shared-run")
    shutil.copytree(output / "runs/shared-run/model", output / "custom_nano")
    return output / "custom_nano"


def config_of(base: Path, run: str, **more: Any) -> Any:
    return load_run_config(
        str(base), overrides={**LORA, "runtime.output_dir": str(base.parent), "name": run, **more}
    )


@pytest.fixture(scope="module")
def kept(base: Path) -> TrainResult:
    """A run whose adapter is kept, under its own name."""
    return train(config_of(base, "kept", **{"train.merge": False, "model.name": "kept-model"}))


@pytest.fixture(scope="module")
def merged(base: Path) -> TrainResult:
    """The same, merged."""
    return train(config_of(base, "merged", **{"model.name": "merged-model"}))


def newest(run: Path) -> Path:
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def test_a_merged_model_is_the_adapter_and_its_base_and_loads_anywhere(
    base: Path, kept: TrainResult, merged: TrainResult
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    assert {path.name for path in Path(merged.published_dir).iterdir()} == {path.name for path in base.iterdir()}
    ids = torch.arange(30)[None]
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(merged.published_dir).eval()(input_ids=ids).logits
        beside = AutoPeftModelForCausalLM.from_pretrained(kept.published_dir).eval()(input_ids=ids).logits
        before = AutoModelForCausalLM.from_pretrained(base).eval()(input_ids=ids).logits
    torch.testing.assert_close(whole, beside, rtol=0, atol=1e-5)
    assert (whole - before).abs().max() > 1e-3
    old, new = (load_file(Path(folder) / "model.safetensors") for folder in (base, merged.published_dir))
    assert {name for name in old if not torch.equal(old[name], new[name])} == {n for n in old if "_proj" in n}


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_alone(base: Path, kept: TrainResult) -> None:
    folder = newest(Path(kept.run_dir))
    record = RunDir(Path(kept.run_dir)).read()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == record.model.trainable_parameters
    assert not list(folder.glob("model*"))
    states = torch.load(folder / "optimizer.pt")["state"]
    assert sum(state["exp_avg"].numel() for state in states.values()) == record.model.trainable_parameters
    parameters = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    assert record.model.parameters == parameters


def test_a_damaged_adapter_is_seen_and_one_that_is_no_number_is_not_saved(kept: TrainResult, small: Any) -> None:
    from dialogkit.config.model import ModelConfig
    from dialogkit.config.train import TrainConfig
    from dialogkit.models.adapters import add_adapter

    shutil.copytree(newest(Path(kept.run_dir)), "checkpoint-5")
    assert read_progress(Path("checkpoint-5")) is not None
    flip(Path("checkpoint-5/adapter_model.safetensors"))
    assert read_progress(Path("checkpoint-5")) is None

    model = small.model()
    add_adapter(model, TrainConfig(method="lora", lora_rank=2), ModelConfig(**small.shape))
    require_finite(model, 1, 1e-3)
    model.get_parameter("model.layers.1.mlp.down_proj.lora_B.default.weight").data[3, 1] = float("nan")
    with pytest.raises(DivergedError, match=r"down_proj\.lora_B"):
        require_finite(model, 1, 1e-3)


def test_only_the_room_for_an_adapter_is_asked_for(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dialogkit.config.model import ModelConfig
    from dialogkit.config.train import TrainConfig
    from dialogkit.models.adapters import add_adapter

    model = small.model(width=256, layers=4)  # 40 MiB with the optimizer's state
    free = SimpleNamespace(free=20 * 2**20)
    monkeypatch.setattr("dialogkit.engine.disk.shutil.disk_usage", lambda _: free)
    config = TrainConfig(optimizer="adamw", method="lora", lora_rank=2)
    with pytest.raises(OSError, match="MiB are needed and 20 MiB are free"):
        require_space(tmp_path, checkpoint_bytes(model, config))
    add_adapter(model, config, ModelConfig(**small.shape))
    require_space(tmp_path, checkpoint_bytes(model, config))
    free.free = 10 * 2**20  # too little for what is beside the weights
    with pytest.raises(OSError, match="16 MiB are needed and 10 MiB are free"):
        require_space(tmp_path, checkpoint_bytes(model, config))


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "kept, dropout": {"train.merge": False, "train.lora_dropout": 0.2, "train.keep": "last"},
    "merged, the best weights": {"train.learning_rate": 0.5, "train.max_steps": 6},
    "bf16, accumulation": {"runtime.precision": "bf16", "train.batch_size": 4, "train.accumulation_steps": 2},
    "activation checkpointing": {"train.activation_checkpointing": True},
}
OFTEN = {"kept, dropout"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.faults]) for name in CONFIGURATIONS]
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(name: str, base: Path) -> None:
    def left(run: str) -> Any:
        folder = Path("models/runs") / run
        files = [*(folder / "model").glob("*.safetensors"), *newest(folder).glob("*.safetensors")]
        files += [newest(folder) / "optimizer.pt"]
        points = RunDir(folder).metrics()
        reported = [{k: v for k, v in p.items() if k.startswith(("step", "train/", "eval/"))} for p in points]
        return {
            file.parent.name + file.name: hashlib.sha256(file.read_bytes()).digest() for file in files
        }, reported

    more = {**CONFIGURATIONS[name], "runtime.output_dir": "models", "train.log_every_steps": 1}
    train(config_of(base, "whole", **more))
    with pytest.raises(Killed):
        train(config_of(base, "stopped", **more), reporter=KillAt(3))
    assert resume(RunDir(Path("models/runs/stopped"))) is not None
    assert left("stopped") == left("whole")


def test_a_run_does_not_go_on_beside_another_base(base: Path) -> None:
    from dialogkit.models.build import build_model
    from dialogkit.models.tokenizer import load_tokenizer

    shutil.copytree(base, "mine")
    with pytest.raises(Killed):
        train(config_of(Path("mine"), "stopped", **{"runtime.output_dir": "models"}), reporter=KillAt(3))
    model = config_of(Path("mine"), "x").model
    built = build_model(model, load_tokenizer(model))
    built.get_input_embeddings().weight.data += 1
    built.save_pretrained("mine")
    with pytest.raises(ConfigError, match="cannot resume with different conditions: the base of the adapter was"):
        resume(RunDir(Path("models/runs/stopped")))


# What is kept is a model like any other


def test_an_adapter_is_named_talked_to_and_measured(base: Path, kept: TrainResult) -> None:
    output = base.parent
    folder = Path(kept.published_dir)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(output / "runs/shared-run/model")
    assert not (folder / "config.json").exists()
    row = {row.name: row for row in list_models(output=output)}["kept-model"]
    assert (row.trained, row.base, row.layers) == (True, settings["base_model_name_or_path"], 2)
    assert row.adapter_parameters == RunDir(Path(kept.run_dir)).read().model.trainable_parameters
    shown = show_model(str(newest(Path(kept.run_dir))), output=output)
    assert (shown.base, shown.adapter_parameters) == (row.base, row.adapter_parameters)
    for name in ("kept-model", "kept", kept.published_dir, str(newest(Path(kept.run_dir)))):
        assert generate(name, "Hello!", output=output).replies[0].tokens > 0
    figures = evaluate(["kept-model"], quick=True, output=output).rows[0]
    assert figures.nats_per_token == pytest.approx(kept.metrics["final/nats_per_token"], abs=1e-5)
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert "| method | LoRA, rank 4, alpha 8, dropout 0:" in card


def test_where_the_base_is_gone_the_sentence_says_what_to_do(
    kept: TrainResult, tmp_path: Path, dialogkit: Callable[..., Finished]
) -> None:
    shutil.copytree(kept.published_dir, "alone")
    settings = Path("alone/adapter_config.json")
    gone = {**json.loads(settings.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}
    settings.write_text(json.dumps(gone))
    for words in (["generate", "alone", "--prompt", "Hello!"], ["evaluate", "alone"], ["chat", "alone"]):
        done = dialogkit(*words)
        assert (done.code, done.out) == (ModelError.exit_code, "")
        assert done.err.splitlines()[-2:] == [
            f"error: the adapter 'alone' needs its base model '{tmp_path}/gone', which does not exist",
            "try: restore it, or set base_model_name_or_path in alone/adapter_config.json to its location",
        ]
    assert dialogkit("models", "show", "alone").code == 0


def test_what_learned_beside_a_base_can_be_learned_from(
    base: Path, kept: TrainResult, dialogkit: Callable[..., Finished]
) -> None:
    sets = [word for name, value in REST.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    words = ["train", "--from", "kept", "--method", "lora", "--output-dir", str(base.parent), *sets]
    done = dialogkit(*words, "--no-merge")
    assert (done.code, "needs a complete model" in done.err) == (2, True)
    done = dialogkit(*words, "--set", "model.name=second", "--json")
    assert done.code == 0, done.err
    assert "learns" in done.err
    result = done.json["data"]
    before = result["metrics"]["before/nats_per_token"]
    assert before == pytest.approx(kept.metrics["final/nats_per_token"], abs=1e-5)
    assert (Path(result["published_dir"]) / "model.safetensors").is_file()


# Settings


@pytest.mark.parametrize(
    ("model", "more", "reported", "hint"),
    [
        ("custom-nano", {}, "'custom-nano' starts from random weights", "dialogkit train {base} --method lora"),
        ("{base}", {"train.optimizer": "muon"}, "train.optimizer: muon", "--set train.optimizer=adamw"),
    ],
)
def test_what_lora_is_not_for_is_refused(
    base: Path, model: str, more: dict[str, Any], reported: str, hint: str
) -> None:
    settings = {**LORA, "train.optimizer": "adamw", "runtime.output_dir": str(base.parent), **more}
    config = load_run_config(model.format(base=base), overrides=settings)
    for run in (train, dry_run):
        with pytest.raises(ConfigError, match=reported) as error:
            run(config)
        assert str(typed(error.value)).startswith(hint.format(base=base))


def test_an_adapter_does_not_take_the_place_of_its_base(base: Path) -> None:
    shutil.copytree(base, "models/lonely")
    with pytest.raises(ConfigError, match="replace its own base model, 'models/lonely'"):
        train(config_of(Path("models/lonely"), "x", **{"train.merge": False, "runtime.output_dir": "models"}))
    assert not Path("models/runs").exists()


def test_a_dry_run_reports_how_much_learns(base: Path) -> None:
    measured = dry_run(config_of(base, "dry", **{"runtime.output_dir": "elsewhere"}))
    assert 0 < measured.trainable_parameters < measured.parameters / 8


def test_lora_has_a_learning_rate_of_its_own_unless_one_is_given(tmp_path: Path) -> None:
    given = {"train": {"learning_rate": 3e-5}}
    (tmp_path / "own.json").write_text(json.dumps(given))
    (tmp_path / "lora.json").write_text(json.dumps({"train": {"method": "lora"}}))
    (tmp_path / "model.json").write_text(json.dumps({"model": {"source": "a/b"}, **given}))
    lora = {"train.method": "lora"}

    def rate(model: str = "gpt2-small", **words: Any) -> tuple[float, str]:
        loaded = load_with_origins(model, **words)
        return loaded.config.train.learning_rate, loaded.origins["train.learning_rate"]

    assert rate() == (1e-4, "model gpt2-small")
    assert rate(overrides=lora) == (LORA_LEARNING_RATE, "method lora")
    assert rate(config_file=tmp_path / "lora.json") == (LORA_LEARNING_RATE, "method lora")
    assert rate(overrides={**lora, "train.learning_rate": 0.5}) == (0.5, "command line")
    assert rate(config_file=tmp_path / "own.json", overrides=lora)[0] == 3e-5
    assert rate(str(tmp_path / "model.json"), overrides=lora)[0] == 3e-5
    assert rate(config_file=tmp_path / "lora.json", overrides={"train.method": "full"})[0] == 1e-4
