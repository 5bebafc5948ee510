"""Fills a hub cache on disk as the hub's own libraries would, so that names work without a network."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(home: Path, hub_id: str) -> Path:
    """Make the snapshot folder of a model in the cache under HF_HOME, and return it."""
    repository = home / "hub" / f"models--{hub_id.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def gpt2_tokenizer(folder: Path, texts: Iterable[str]) -> int:
    """Write a byte-level BPE tokenizer in GPT-2's two files, and return its number of entries."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(folder))
    return int(tokenizer.get_vocab_size())


def write_gpt2(home: Path, hub_id: str, *, weights: str = "safetensors") -> Path:
    """Put a random small GPT-2 into the cache, as safetensors or `pytorch_model.bin`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = snapshot(home, hub_id)
    entries = gpt2_tokenizer(folder, ["Hello! How are you? I am fine, thank you. The cat sat on the mat."] * 4)
    end = entries - 1 if entries > 50_000 else 0
    config = GPT2Config(
        vocab_size=entries, n_layer=2, n_embd=32, n_head=2, n_positions=256, bos_token_id=end, eos_token_id=end
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    if weights == "bin":
        state = model.state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_alpaca(home: Path, rows: int = 60) -> None:
    """Put rows of Alpaca's shape into the cache of `datasets`, under the name of the Alpaca-GPT4 dataset."""
    from datasets import DatasetInfo, Features, Value
    from datasets.arrow_writer import ArrowWriter

    folder = home / "datasets/vicgalle___alpaca-gpt4/default/0.0.0" / COMMIT
    folder.mkdir(parents=True)
    features = Features({name: Value("string") for name in ("instruction", "input", "output", "text")})
    with ArrowWriter(path=str(folder / "alpaca-gpt4-train.arrow"), features=features) as writer:
        for number in range(rows):
            writer.write(
                {
                    "instruction": f"Which number comes after {number}?",
                    "input": "",
                    "output": f"{number + 1} comes after {number}.",
                    "text": "ignored",
                }
            )
        count, size = writer.finalize()
    DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name="alpaca-gpt4",
        config_name="default",
        version="0.0.0",
        splits={"train": {"name": "train", "num_bytes": size, "num_examples": count}},
    ).write_to_directory(str(folder))
    os.utime(folder)
