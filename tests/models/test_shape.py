"""Parameters are counted alike in a live model and in the headers of its files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dialogkit.config.model import ParameterCounts
from dialogkit.models.shape import count_parameters, read_shape

WIDTH, ENTRIES, POSITIONS = 16, 50, 32
SHAPE = {
    "vocab_size": ENTRIES,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
GPT2 = {"vocab_size": ENTRIES, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
KINDS: dict[str, tuple[dict[str, int], int]] = {
    "GPT2": (GPT2, POSITIONS),
    "Llama": ({**SHAPE, "intermediate_size": 24}, 0),
    "GPTNeoX": ({**SHAPE, "intermediate_size": 24}, 0),
    "OPT": ({**SHAPE, "ffn_dim": 24, "word_embed_proj_dim": WIDTH}, POSITIONS + 2),
    "Qwen2": ({**SHAPE, "intermediate_size": 24, "num_key_value_heads": 2}, 0),
}
"""Settings of an architecture, and its rows of learned positions."""


def make(kind: str, *, tied: bool) -> Any:
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind][0], tie_word_embeddings=tied)
    return getattr(transformers, f"{kind}{suffix}")(config)


def counted(folder: Path) -> ParameterCounts:
    shape = read_shape(folder)
    total = shape["parameters"]
    return ParameterCounts(total, total - shape["parameters_without_embeddings"])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_and_its_files_have_the_same_counts(kind: str, tied: bool, tmp_path: Path) -> None:
    model = make(kind, tied=tied)
    counts = count_parameters(model)
    assert counts.embedding == (ENTRIES + KINDS[kind][1]) * WIDTH
    assert counts.total == sum({p: p.numel() for p in model.parameters()}.values())
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="8KB")
    assert (tmp_path / "several/model.safetensors.index.json").is_file()
    assert counted(tmp_path / "one") == counted(tmp_path / "several") == counts
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert count_parameters(loaded) == counts


def test_buffers_and_a_copy_of_the_embeddings_in_a_file_are_no_parameters(tmp_path: Path) -> None:
    model = make("GPT2", tied=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)  # as in the files of openai-community/gpt2
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = torch.ones(ENTRIES, WIDTH)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert counted(tmp_path) == count_parameters(model)
