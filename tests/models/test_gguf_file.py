"""GGUF files: the weights and words of each architecture, and what llama.cpp could not compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError
from dialogkit.models.gguf_file import WEIGHT_TYPES, read_gguf, write_gguf
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer
from tests.conftest import TOKENIZER, VOCABULARY

IDS = torch.arange(20)[None]
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 5,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 5,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**SHAPE, "tie_word_embeddings": True}),
    "llama untied": ("llama", {**SHAPE, "tie_word_embeddings": False, "head_dim": 32}),
    "qwen2": ("qwen2", {**SHAPE, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**SHAPE, "tie_word_embeddings": True, "head_dim": 32}),
    "gpt2": ("gpt2", GPT2),
    "gpt2 narrow": ("gpt2", {**GPT2, "n_embd": 40, "n_inner": 64}),
}


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer(ModelConfig(tokenizer=str(TOKENIZER), layers=1, width=8, heads=1, context=16))


def model_of(kind: str, **settings: Any) -> Any:
    name, shape = SHAPES[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **shape, **settings)).float().eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases begin as ones and zeros, which hide a mistake
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return model


def write(model: Any, tokenizer: ChatTokenizer, weight_type: Any = "f32") -> Any:
    return write_gguf(Path("m.gguf"), model, tokenizer, weight_type, name="mine", sampling=GenerateConfig())


@pytest.mark.parametrize("kind", SHAPES)
def test_the_weights_come_back_as_exactly_as_their_type_keeps_them(kind: str, tokenizer: ChatTokenizer) -> None:
    model = model_of(kind)
    errors = []
    for weight_type in WEIGHT_TYPES:
        written = write(model, tokenizer, weight_type)
        copy = read_gguf(Path("m.gguf"), model)
        assert type(copy) is type(model)
        errors.append(float((copy(IDS).logits - model(IDS).logits).abs().max()))
        narrow = kind == "gpt2 narrow" and weight_type.startswith("q")
        assert any("attn_qkv" in name for name in written.kept_f16) == narrow
    assert errors[0] == 0
    assert kind == "gpt2 narrow" or 0 < errors[1] < errors[2] < errors[3]


def test_a_file_tells_llama_cpp_what_it_needs(tokenizer: ChatTokenizer) -> None:
    from gguf import GGUFReader

    write(model_of("llama"), tokenizer, "q8_0")
    fields = {name: field.contents() for name, field in GGUFReader("m.gguf").fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    wanted = {
        "general.architecture": "llama", "general.name": "mine", "general.file_type": 7,
        "llama.context_length": 64, "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10_000.0,
        "llama.attention.head_count_kv": 2, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": tokenizer.end_of_turn_id, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.hf.chat_template, "general.sampling.top_k": 50,
    }  # fmt: skip
    assert {name: fields[name] for name in wanted} == wanted
    assert fields["general.sampling.temp"] == pytest.approx(0.7)
    assert [tokens.index(token) for token in ("<|user|>", "<|end_of_turn|>")] == [3, 5]
    assert fields["tokenizer.ggml.token_type"][:7] == [3] * 6 + [1]
    assert (len(tokens), len(fields["tokenizer.ggml.merges"])) == (VOCABULARY, 250)


def test_more_ends_of_a_reply_have_places_and_the_rest_is_named(tokenizer: ChatTokenizer) -> None:
    from gguf import GGUFReader

    with_ends = load_tokenizer(ModelConfig(tokenizer=str(TOKENIZER), layers=1, width=8, heads=1, context=16))
    with_ends.reply_stop_ids = frozenset({0, 1, 2, 5})
    written = write(model_of("gpt2"), with_ends)
    fields = GGUFReader("m.gguf").fields
    assert [fields[f"tokenizer.ggml.{end}_token_id"].contents() for end in ("eos", "eot", "eom")] == [5, 0, 1]
    assert written.notes == ("GGUF has no place for more ends of a reply: '<|system|>'",)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "the model has hidden_act 'gelu', and llama.cpp computes llama"),
        ("llama", {"attention_bias": True}, "the model has attention_bias True"),
        ("gpt2", {"activation_function": "relu"}, "the model has activation_function 'relu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "scales its rotary positions ('linear')",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    kind: str, settings: dict[str, Any], message: str, tokenizer: ChatTokenizer
) -> None:
    with pytest.raises(ModelError) as refused:
        write(model_of(kind, **settings), tokenizer)
    assert message in refused.value.message
    assert not Path("m.gguf").exists()


def test_an_unknown_architecture_is_refused_by_name(tokenizer: ChatTokenizer) -> None:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neox", **shape, intermediate_size=64))
    with pytest.raises(ModelError, match="'gpt_neox' cannot be exported to GGUF; those of gpt2, llama"):
        write(model, tokenizer)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern: str, **others: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **others}
    return {"type": "Sequence", "pretokenizers": [step, BYTES]}


def tokenizer_of(rules: dict[str, Any]) -> ChatTokenizer:
    """Return the tokenizer of the tests with other rules."""
    folder = Path("tokenizer")
    folder.mkdir()
    for file in TOKENIZER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= rules.get("model", {})
    rules = {name: rule for name, rule in rules.items() if name != "model"}
    (folder / "tokenizer.json").write_text(json.dumps(content | rules))
    return load_tokenizer(ModelConfig(tokenizer=str(folder), layers=1, width=8, heads=1, context=16))


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        ({"pre_tokenizer": split(LLAMA3), "model": {"ignore_merges": True}}, "llama-bpe"),
        ({"pre_tokenizer": split(LLAMA3.replace("{1,3}", ""))}, "qwen2"),
        ({"pre_tokenizer": {**BYTES, "use_regex": True, "trim_offsets": False}}, "gpt-2"),
    ],
)
def test_a_way_to_split_texts_has_llama_cpps_name(rules: dict[str, Any], name: str) -> None:
    from gguf import GGUFReader

    write(model_of("llama"), tokenizer_of(rules))
    assert GGUFReader("m.gguf").fields["tokenizer.ggml.pre"].contents() == name


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"pre_tokenizer": split(LLAMA3)},
            "splits texts as none that is known here does (Split",
        ),
        ({"pre_tokenizer": split(LLAMA3.replace("{1,3}", "{1,2}"))}, "splits texts as none that is known"),
        (
            {"pre_tokenizer": {**BYTES, "use_regex": True, "add_prefix_space": True}},
            "splits texts as none that is known",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "the tokenizer normalizes texts (Lowercase)"),
        ({"model": {"byte_fallback": True}}, "the tokenizer is BPE with byte fallback"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as refused:
        write(model_of("llama"), tokenizer_of(rules))
    assert message in refused.value.message
