"""Pretrained models train by their names from the hub's cache, without a network, and keep their chat format."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dialogkit.dialog import plain_format, turns_format
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.services.generate import GenerateResult, generate
from dialogkit.services.train import TrainResult, train
from dialogkit.tracking.rundir import RunDir
from tests.conftest import SMALL, Finished, run_process
from tests.hub import write_gpt2

END = "<|endoftext|>"
REST = {
    name: value for name, value in SMALL.items() if not name.startswith(("model.", "data.samples", "train.max"))
}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub as downloads leave it: GPT-2 with safetensors, DialoGPT with a pickle."""
    home = tmp_path_factory.mktemp("hub-home")
    gpt2 = write_gpt2(home, "openai-community/gpt2")
    dialogpt = write_gpt2(home, "microsoft/DialoGPT-small", weights="bin")
    assert (gpt2 / "model.safetensors").exists()
    assert {path.name for path in dialogpt.iterdir()} >= {"pytorch_model.bin", "vocab.json", "merges.txt"}
    assert not any((dialogpt / name).exists() for name in ("model.safetensors", "tokenizer.json"))
    return home


def in_home(home: Path, folder: Path, *words: str) -> Finished:
    return run_process(*words, cwd=folder, HF_HOME=str(home), HF_HUB_OFFLINE="1")


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
    words = [
        "train",
        name,
        "--preset",
        "test",
        "--samples",
        "20",
        "--set",
        "train.max_steps=4",
        *settings,
        "--json",
    ]
    done = in_home(hub, tmp_path, *words)
    assert done.code == 0, done.err
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
    replies = generate(model, ["Hello!", "Why?"])
    assert isinstance(replies, GenerateResult)
    assert generate(name, ["Hello!", "Why?"]).replies[1].reply == replies.replies[1].reply


def test_what_is_not_in_the_cache_is_one_sentence_at_once(tmp_path: Path) -> None:
    done = in_home(tmp_path / "empty", tmp_path, "train", "gpt2-medium", *("--set", "tracking.wandb=disabled"))
    assert (done.code, done.out) == (UnavailableError.exit_code, "")
    assert done.err.splitlines() == [
        "error: the hub cannot be reached and 'openai-community/gpt2-medium' is not in its cache",
        "try: connect once to fetch it, give a model folder, or: dialogkit train custom-tiny",
    ]
