"""Pretrained models train by their names from the hub's cache, without a network, and keep their chat format."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import load_run_config
from dialogkit.dialog import plain_format, turns_format
from dialogkit.errors import UnavailableError
from dialogkit.services.generate import generate
from dialogkit.services.train import train
from dialogkit.services.training import TrainResult
from dialogkit.tracking.rundir import RunDir
from tests.conftest import SMALL, Finished, run_process
from tests.hub import write_gpt2
from tests.models.foreign import INST, chatml, sentencepiece_like

END = "<|endoftext|>"
REST = {
    name: value for name, value in SMALL.items() if not name.startswith(("model.", "data.samples", "train.max"))
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub as downloads leave it: GPT-2 with safetensors, DialoGPT with a pickle."""
    from transformers import AutoTokenizer

    home = tmp_path_factory.mktemp("hub-home")
    gpt2 = write_gpt2(home, "openai-community/gpt2")
    dialogpt = write_gpt2(home, "microsoft/DialoGPT-small", weights="bin")
    AutoTokenizer.from_pretrained(gpt2).backend_tokenizer.save(str(gpt2 / "tokenizer.json"))
    assert {path.name for path in gpt2.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert {path.name for path in dialogpt.iterdir()} >= {"pytorch_model.bin", "vocab.json", "merges.txt"}
    assert not any((dialogpt / name).exists() for name in ("model.safetensors", "tokenizer.json"))
    return home


def in_home(home: Path, folder: Path, *words: str) -> Finished:
    return run_process(*words, cwd=folder, HF_HOME=str(home), HF_HUB_OFFLINE="1", COLUMNS="200")


@pytest.mark.parametrize(
    ("name", "hub_id", "format_"),
    [
        ("gpt2-small", "openai-community/gpt2", plain_format(END)),
        ("dialogpt-small", "microsoft/DialoGPT-small", turns_format(END)),
    ],
)
def test_a_name_of_the_catalogue_trains_from_the_cache(
    hub: Path, tmp_path: Path, name: str, hub_id: str, format_: Any
) -> None:
    settings = [word for key, value in REST.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["--preset", "test", "--samples", "20", "--set", "train.max_steps=4", *settings]
    done = in_home(hub, tmp_path, "train", name, *words, "--json")
    assert done.code == 0, done.err
    told = {line.split()[0] for line in done.err.splitlines() if not line.endswith(" ...")}
    assert told == {"model", "device", "precision", "data", "steps", "run", "W&B", "starter:", "step"}
    result = TrainResult.model_validate(done.json["data"])
    assert result.published_dir == f"models/{name.replace('-', '_')}"
    record = RunDir(tmp_path / result.run_dir).read()
    assert (record.model["source"], record.model["architecture"]) == (hub_id, "gpt2")
    assert record.data["train_dialogs"] == 20
    assert result.metrics["final/nats_per_token"] < result.metrics["before/nats_per_token"]

    model = Path(result.published_dir)
    assert (model / "model.safetensors").is_file()
    assert not (model / "pytorch_model.bin").exists()
    assert (model / "chat_template.jinja").read_text() == format_.template()
    assert f"base_model: {hub_id}" in (model / "README.md").read_text()
    # The trained model stands on its own: no cache is needed any more, nor is its name.
    assert [reply.tokens > 0 for reply in generate(model, ["Hello!", "Why?"]).replies] == [True, True]
    assert [reply.model for reply in generate(name, "Hello!").replies] == [name]


def test_a_name_of_the_catalogue_replies_without_a_training(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub / "hub"))
    replies = generate(["gpt2-small", "dialogpt-small"], "Hello!", config=GenerateConfig(max_new_tokens=3)).replies
    assert [reply.model for reply in replies] == ["gpt2-small", "dialogpt-small"]


def test_what_is_not_in_the_cache_is_one_sentence_at_once(tmp_path: Path) -> None:
    done = in_home(tmp_path / "empty", tmp_path, "train", "gpt2-medium", *("--set", "tracking.wandb=disabled"))
    assert (done.code, done.out) == (UnavailableError.exit_code, "")
    assert done.err.splitlines() == [
        "error: the hub cannot be reached and 'openai-community/gpt2-medium' is not in its cache",
        "try: dialogkit doctor --network",
    ]


@pytest.mark.parametrize("tokenizer", [chatml(), sentencepiece_like(INST)], ids=["ChatML", "Llama 2"])
def test_a_model_folder_keeps_the_chat_template_that_it_brings(tokenizer: Any) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, pipeline

    torch.manual_seed(0)
    tokenizer.save_pretrained("chat-model")
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_layer=1, n_embd=32, n_head=2, n_positions=256, initializer_range=0.3
    )
    GPT2LMHeadModel(shape).save_pretrained("chat-model")
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    result = train(load_run_config("./chat-model", overrides={**settings, "train.learning_rate": 1e-3}))
    assert result.metrics["final/nats_per_token"] < result.metrics["before/nats_per_token"]

    template = (Path(result.model_dir) / "chat_template.jinja").read_text()
    assert template == tokenizer.chat_template
    greedy = GenerateConfig(temperature=0, repetition_penalty=1, max_new_tokens=12)
    prompts = ["Hello!", "How many?"]
    chat = pipeline("text-generation", model=result.model_dir, device="cpu")
    theirs = [
        chat([{"role": "user", "content": prompt}], do_sample=False, max_new_tokens=12)[0]["generated_text"][-1]
        for prompt in prompts
    ]
    ours = [reply.reply for reply in generate(None, prompts, config=greedy).replies]
    assert ours == [turn["content"].strip() for turn in theirs]
    assert all(ours)
