"""An adapter alone learns, is merged without a difference, and is read as data, whoever it is from."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dialogkit.config.model import ModelConfig
from dialogkit.config.train import TrainConfig
from dialogkit.engine.adapter_checkpoints import complete_adapter, load_adapter
from dialogkit.errors import CheckpointError, ConfigError, ModelError, UnavailableError
from dialogkit.models import adapter_source
from dialogkit.models.adapters import add_adapter, merge_adapter
from dialogkit.models.build import build_model
from dialogkit.models.context import read_context
from dialogkit.models.tokenizer import load_tokenizer
from tests.conftest import Architecture, Small, typed
from tests.hub import COMMIT, snapshot, write_gpt2

IDS = torch.arange(40)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


def randomize(model: Any, *, scale: float = 0.1) -> None:
    """Give the second matrices, which begin with zeros, something that is learned."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, scale, generator=generator)


@pytest.fixture(scope="module")
def base(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small.model(seed=1).save_pretrained(folder)
    small.tokenizer.save(folder)
    return folder


def source(folder: Path) -> ModelConfig:
    return ModelConfig(name="base", source=str(folder))


@pytest.fixture
def adapter(base: Path, small: Small) -> Path:
    """An adapter in a separate folder."""
    model = build_model(source(base), small.tokenizer)
    add_adapter(model, TrainConfig(method="lora", lora_rank=4), source(base))
    randomize(model)
    model.save_pretrained("adapter")
    complete_adapter(model, Path("adapter"))
    torch.save(logits(model), "logits.pt")
    return Path("adapter")


@pytest.mark.parametrize("rank", [2, 64])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merged_is_unmerged(small: Small, architecture: Architecture, rank: int) -> None:
    model = small.model(architecture)
    before = logits(model)
    names = set(model.state_dict())
    add_adapter(model, TrainConfig(method="lora", lora_rank=rank), ModelConfig(**small.shape))
    assert torch.equal(logits(model), before)
    randomize(model)
    unmerged = logits(model)
    assert (unmerged - before).abs().max() > 1e-2
    merge_adapter(model)
    torch.testing.assert_close(logits(model), unmerged, rtol=0, atol=1e-5)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("architecture", "settings", "layers"),
    [
        ("llama", {}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {}, {"c_attn", "c_proj", "c_fc"}),
        ("llama", {"lora_targets": ["q_proj", "mlp.up_proj"]}, {"q_proj", "up_proj"}),
    ],
)
def test_the_matrices_alone_learn_and_the_base_stays_bit_for_bit(
    small: Small, architecture: Architecture, settings: dict[str, Any], layers: set[str]
) -> None:
    model = small.model(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainConfig.model_validate({"method": "lora", "lora_rank": 4, **settings})
    add_adapter(model, config, ModelConfig(**small.shape))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == layers
    first = {name: value.clone() for name, value in model.state_dict().items() if ".lora_" in name}
    small.fit(
        model,
        small.train,
        max_steps=2,
        batch_size=4,
        learning_rate=1e-2,
        keep="last",
        activation_checkpointing=True,
    )
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(torch.equal(after[name], value) for name, value in first.items())


def test_the_first_matrices_follow_from_the_seed(small: Small) -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = small.model()
        add_adapter(model, TrainConfig(method="lora", seed=seed), ModelConfig(**small.shape))
        state: torch.Tensor = model.state_dict()["model.layers.0.mlp.up_proj.lora_A.default.weight"]
        return state

    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_target_that_is_no_linear_layer_is_reported_with_those_that_are(small: Small) -> None:
    config = TrainConfig(method="lora", lora_targets=("q_proj", "embed_tokens"))
    with pytest.raises(
        ConfigError, match=r"'embed_tokens' is not a linear layer of .*; it has down_proj, gate_proj"
    ):
        add_adapter(small.model(), config, ModelConfig(**small.shape))


def test_without_peft_the_command_that_brings_it_is_reported(
    adapter: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_source, "find_spec", lambda name: None)
    for run in (
        lambda: add_adapter(small.model(), TrainConfig(method="lora"), ModelConfig(**small.shape)),
        lambda: build_model(source(adapter), small.tokenizer),
    ):
        with pytest.raises(UnavailableError, match="LoRA needs the package peft") as reported:
            run()
        assert typed(reported.value) == "pip install 'dialogkit[lora]'"


# Adapters in folders


def test_a_folder_with_an_adapter_is_a_model(adapter: Path, base: Path, small: Small) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = build_model(source(adapter), small.tokenizer)
    torch.testing.assert_close(logits(model), torch.load("logits.pt"), rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert read_context(source(adapter)) == 256
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    torch.testing.assert_close(logits(theirs), torch.load("logits.pt"), rtol=0, atol=1e-6)
    reported = json.loads((adapter / "adapter_config.json").read_text())
    assert (reported["base_model_name_or_path"], reported["r"], reported["lora_alpha"]) == (str(base), 4, 8)


def test_a_checkpoint_of_another_adapter_is_not_loaded(adapter: Path, small: Small) -> None:
    for settings in ({"lora_rank": 2}, {"lora_rank": 4, "lora_targets": ["q_proj"]}, {"lora_targets": ["o_proj"]}):
        model = small.model()
        add_adapter(model, TrainConfig.model_validate({"method": "lora", **settings}), ModelConfig(**small.shape))
        with pytest.raises(CheckpointError, match="a different adapter from the one the settings"):
            load_adapter(model, adapter)


def change(path: Path, **settings: Any) -> None:
    path = path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def retensor(folder: Path, made: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in made(load_file(path)).items()}, path)


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("trapped", "w")


def first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "only a pickle": (only_a_pickle, "cannot be loaded"),
    "another kind": (lambda f: change(f, peft_type="LOHA"), "of type 'LOHA'"),
    "a kind that is none": (lambda f: change(f, peft_type=[1]), "of type"),
    "a module to import": (
        lambda f: change(f, megatron_core="this", megatron_config={"a": 1}),
        "it sets megatron_co",
    ),
    "layers repeated": (lambda f: change(f, layer_replication=[[0, 10**9]]), "it sets layer_replication"),
    "further weights": (lambda f: change(f, modules_to_save=["lm_head"]), "it sets modules_to_save"),
    "weights decomposed": (lambda f: change(f, use_dora=True), "it sets use_dora"),
    "what is not known": (lambda f: change(f, invented=1), "it sets invented"),
    "a rank that fills the memory": (lambda f: change(f, r=10**12), "no usable rank"),
    "another rank": (lambda f: change(f, r=5), "is not of rank 5"),
    "no alpha": (lambda f: change(f, lora_alpha=None), "no usable rank and alpha"),
    "no base": (lambda f: change(f, base_model_name_or_path=None), "does not name its base model"),
    "itself as base": (lambda f: change(f, base_model_name_or_path=str(f)), "an adapter itself"),
    "a base that is gone": (
        lambda f: change(f, base_model_name_or_path="/nowhere/at/all"),
        "which does not exist",
    ),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "not a readable adapter config"),
    "no object": (lambda f: (f / "adapter_config.json").write_text("[]"), "not a readable adapter config"),
    "no numbers": (
        lambda f: retensor(f, lambda t: {n: v * float("nan") for n, v in t.items()}),
        "cannot be loaded",
    ),
    "a matrix missing": (
        lambda f: retensor(f, lambda t: {n: v for n, v in t.items() if n != first(t)}),
        "missing",
    ),
    "another width": (lambda f: retensor(f, lambda t: {n: v[:, :3] for n, v in t.items()}), "is not of rank"),
    "a layer that is not there": (
        lambda f: retensor(f, lambda t: {n.replace("layers.1", "layers.7"): v for n, v in t.items()}),
        "matches none of its linear layers",
    ),
    "cut weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\0" * 20), "cannot be loaded"),
    "whole weights as well": (
        lambda f: (f / "model.safetensors").touch(),
        "holds a complete model and an adapter",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_strangers_adapter_is_input(what: str, adapter: Path, small: Small) -> None:
    spoil, reported = HOSTILE[what]
    spoil(adapter)
    with pytest.raises(ModelError, match=reported) as error:
        build_model(source(adapter), small.tokenizer)
    assert "\n" not in error.value.message
    assert not Path("trapped").exists()


def test_patterns_of_a_stranger_are_not_matched(adapter: Path, small: Small) -> None:
    change(adapter, target_modules="(.*)*x", init_lora_weights="pissa")
    model = build_model(source(adapter), small.tokenizer)
    torch.testing.assert_close(logits(model), torch.load("logits.pt"), rtol=0, atol=1e-5)


def test_another_base_than_it_was_trained_on_is_refused(adapter: Path, base: Path, small: Small) -> None:
    shutil.copytree(base, "changed")
    change(adapter, base_model_name_or_path="changed")
    build_model(source(adapter), small.tokenizer)
    small.model(seed=2).save_pretrained("changed")
    with pytest.raises(ModelError, match="was trained on other weights than 'changed' holds now") as reported:
        build_model(source(adapter), small.tokenizer)
    assert "base_model_name_or_path in adapter/adapter_config.json" in str(reported.value.hint)


def test_an_adapter_on_the_hub_brings_its_base_at_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    write_gpt2(home, "someone/base")
    whole, beside = (ModelConfig(source=f"someone/{name}", chat_format="plain") for name in ("base", "adapter"))
    model = build_model(whole, load_tokenizer(whole))
    add_adapter(model, TrainConfig(method="lora"), whole)
    randomize(model)
    folder = snapshot(home, "someone/adapter")
    model.save_pretrained(folder)
    complete_adapter(model, folder)
    reported = json.loads((folder / "adapter_config.json").read_text())
    assert (reported["base_model_name_or_path"], reported["revision"]) == ("someone/base", COMMIT)

    found = build_model(beside, load_tokenizer(beside))
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-5)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"is an adapter without adapter_model\.safetensors"):
        build_model(beside, load_tokenizer(whole))
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    shutil.rmtree(home / "hub/models--someone--base")
    with pytest.raises(
        UnavailableError, match=r"'someone/base', the base of the adapter 'someone/adapter', is"
    ) as no:
        load_tokenizer(beside)
    assert typed(no.value) == "hf download someone/base"
