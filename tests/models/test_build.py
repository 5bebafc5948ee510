"""Models: from scratch, from folders, from GGUF files, and what is refused."""

import json
import pickle
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

from dialogkit.config.model import ModelConfig
from dialogkit.dialog import Message, native_format
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.models.build import build_model
from dialogkit.models.context import context_length, read_context
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer
from tests.conftest import typed

CLASSES = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}
IDS = torch.arange(20)[None]
both = pytest.mark.parametrize("architecture", CLASSES)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["hello there"], vocabulary=270, output=folder)
    return {"layers": 2, "width": 16, "heads": 2, "context": 64, "tokenizer": str(folder)}


@pytest.fixture(scope="module")
def tokenizer(shape: dict[str, Any]) -> ChatTokenizer:
    return load_tokenizer(ModelConfig(**shape))


@pytest.fixture
def build(shape: dict[str, Any], tokenizer: ChatTokenizer) -> Any:
    def new(architecture: str = "gpt2", *, seed: int = 0, dropout: float = 0.0, **more: Any) -> Any:
        config = ModelConfig.model_validate({"architecture": architecture, **shape, **more})
        return build_model(config, tokenizer, seed=seed, dropout=dropout)

    return new


def load(source: Path, **options: Any) -> Any:
    config = ModelConfig(source=str(source))
    return build_model(config, load_tokenizer(config), **options)


def write(model: Any, tokenizer: ChatTokenizer, folder: Path = Path("model")) -> Path:
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def write_bin(state: Any, model: Any, tokenizer: ChatTokenizer, *, zipped: bool = True) -> Path:
    """Write a folder as those on the hub that are older than safetensors."""
    folder = write(model, tokenizer)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return folder


def change_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def same_weights(one: Any, two: Any) -> bool:
    mine, other = one.state_dict(), two.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@both
def test_a_new_model_is_a_plain_transformers_model(
    architecture: str, build: Any, tokenizer: ChatTokenizer
) -> None:
    model = build(architecture)
    assert type(model) is CLASSES[architecture]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    again = AutoModelForCausalLM.from_pretrained(write(model, tokenizer))
    assert type(again) is CLASSES[architecture]
    assert torch.equal(again.eval()(IDS).logits, model.eval()(IDS).logits)
    assert again.generation_config.eos_token_id == [tokenizer.end_of_turn_id]
    assert again.generation_config.pad_token_id == tokenizer.pad_id
    assert again.config.max_position_embeddings == 64


@both
def test_input_and_output_embeddings_are_one_tensor(
    architecture: str, build: Any, tokenizer: ChatTokenizer
) -> None:
    model = build(architecture)
    for one in (model, load(write(model, tokenizer))):
        assert one.get_input_embeddings().weight is one.get_output_embeddings().weight


@both
def test_the_weights_depend_on_the_seed_alone(architecture: str, build: Any) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = build(architecture, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_weights(build(architecture, seed=5), one)
    assert not same_weights(build(architecture, seed=6), one)


@both
def test_the_initial_weights_have_the_range_that_was_asked_for(architecture: str, build: Any) -> None:
    wide, narrow = (
        build(architecture, initializer_range=r).get_input_embeddings().weight.std() for r in (0.2, 0.02)
    )
    assert (wide / narrow).item() == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("loaded", [False, True], ids=["from scratch", "loaded"])
def test_dropout_is_that_of_the_run_and_never_in_attention(
    loaded: bool, build: Any, tokenizer: ChatTokenizer
) -> None:
    if loaded:
        folder = write(build(), tokenizer)
        change_config(folder, attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)
        model = load(folder, dropout=0.25)
    else:
        model = build(dropout=0.25)
    rates = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
    assert len(rates) == 7
    assert rates == {name: 0.0 if "attn_dropout" in name else 0.25 for name in rates}
    assert (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop) == (0.25, 0.25, 0.0)
    if loaded:
        assert {p.p for p in load(folder).modules() if isinstance(p, torch.nn.Dropout)} == {0.0}


@pytest.mark.parametrize(
    ("declared", "others"),
    [(99, {99}), ([98, 99], {98, 99}), ([-1, 10**9, True, "x", None, 1.5], set()), ({}, set())],
)
def test_the_end_of_turn_and_what_the_files_name_end_replies_of_a_loaded_model(
    declared: Any, others: set[int], build: Any, tokenizer: ChatTokenizer
) -> None:
    folder = write(build(), tokenizer)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"eos_token_id": declared if name[0] == "g" else 99}))
    model = load(folder)
    assert set(model.generation_config.eos_token_id) == {tokenizer.end_of_turn_id, *others}
    assert model.config.eos_token_id == tokenizer.end_of_turn_id


def test_a_model_of_half_precision_is_loaded_for_training(build: Any, tokenizer: ChatTokenizer) -> None:
    model = build()
    folder = write(model.to(torch.bfloat16), tokenizer)
    again = load(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert same_weights(again, model.float())


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(build: Any, tokenizer: ChatTokenizer) -> None:
    with pytest.raises(
        ModelError, match=f"vocabulary of 300, but its tokenizer has {tokenizer.vocabulary}"
    ) as refused:
        build(vocabulary=300)
    assert typed(refused.value) == f"--set model.vocabulary={tokenizer.vocabulary}"
    assert build(vocabulary=tokenizer.vocabulary).config.vocab_size == tokenizer.vocabulary


@pytest.mark.parametrize(
    ("added", "reported"),
    [
        (["[PAD]"], "has 1 token for which its model, with 270 embeddings, has none: '[PAD]' (270)"),
        ([f"<{n}>" for n in range(9)], "has 9 tokens .* none: '<0>' (270), .* '<4>' (274) and 4 more"),
    ],
    ids=["one", "many"],
)
def test_the_tokens_without_an_embedding_are_named(
    added: list[str], reported: str, build: Any, shape: Any
) -> None:
    mine = load_tokenizer(ModelConfig(**shape))
    mine.hf.add_special_tokens({"additional_special_tokens": added})
    folder = write(build(), mine)
    with pytest.raises(ModelError, match=re.escape(reported).replace(r"\.\*", ".*")) as refused:
        load(folder)
    assert typed(refused.value) == (
        f"remove {'it' if len(added) == 1 else 'them'} from the tokenizer, or save the model with "
        f"{270 + len(added)} embeddings (resize_token_embeddings in transformers)"
    )


def test_a_window_of_attention_does_not_shorten_the_context(build: Any) -> None:
    model = build("llama")
    assert context_length(model.config) == context_length(build("gpt2").config) == 64
    model.config.sliding_window = 32  # of attention, which reaches further from layer to layer
    assert context_length(model.config) == 64


@both
def test_the_context_is_known_without_the_weights(
    architecture: str, build: Any, tokenizer: ChatTokenizer, shape: dict[str, Any]
) -> None:
    model = build(architecture)
    assert read_context(ModelConfig.model_validate({"architecture": architecture, **shape})) == 64
    folder = write(model, tokenizer)
    (folder / "model.safetensors").unlink()
    assert read_context(ModelConfig(source=str(folder))) == context_length(model.config) == 64
    change_config(folder, sliding_window=32)
    assert read_context(ModelConfig(source=str(folder))) == 64
    with pytest.raises(UnavailableError, match="'somebody/else' is not in its cache"):
        read_context(ModelConfig(source="somebody/else"))


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_older_than_safetensors_are_loaded(zipped: bool, build: Any, tokenizer: ChatTokenizer) -> None:
    model = build()
    # As in DialoGPT's file: the mask is stored, and the output layer beside the embeddings that it equals.
    mask = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8) for layer in range(2)}
    head = {"lm_head.weight": model.transformer.wte.weight.detach().clone()}
    folder = write_bin({**model.state_dict(), **mask, **head}, model, tokenizer, zipped=zipped)
    assert same_weights(load(folder), model)


class Payload:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_inside_weights_is_not_run(kind: str, build: Any, tokenizer: ChatTokenizer) -> None:
    state = {"transformer.wte.weight": torch.zeros(2), "more": Payload()}
    folder = write_bin(state, build(), tokenizer, zipped=kind == "zip")
    if kind == "bare pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    with pytest.raises(ModelError, match="could run code") as refused:
        load(folder)
    assert "safetensors" in str(refused.value.hint)
    assert "weights_only" not in refused.value.message
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(Payload()))
    assert Path("ran").exists(), "the payload works where it is run"


def test_code_beside_weights_is_not_run(build: Any, tokenizer: ChatTokenizer) -> None:
    folder = write(build(), tokenizer)
    change_config(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "mine.M", "AutoConfig": "mine.C"})
    (folder / "mine.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_model(ModelConfig(source=str(folder)), tokenizer)
    assert not Path("ran").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def drop_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    del state["transformer.h.0.ln_1.weight"]
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "cannot be loaded: "),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be loaded: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (lambda folder: change_config(folder, model_type="nope"), "model type `nope`"),
        (lambda folder: change_config(folder, n_embd="wide"), "n_embd"),
        (
            lambda folder: change_config(folder, n_positions=32),
            "'transformer.wpe.weight' is missing or has another shape",
        ),
        (lambda folder: change_config(folder, n_layer=3), r"'transformer\.h\.2.*' \(and 11 more\)"),
        (
            lambda folder: drop_tensor(folder / "model.safetensors"),
            r"'transformer\.h\.0\.ln_1\.weight' is missing",
        ),
    ],
    ids=["cut", "empty", "no weights", "bad config", "unknown type", "bad value", "shape", "layers", "tensor"],
)
def test_a_damaged_folder_is_one_sentence(
    damage: Any, reported: str, build: Any, tokenizer: ChatTokenizer
) -> None:
    folder = write(build(), tokenizer)
    damage(folder)
    with pytest.raises(ModelError, match=reported) as refused:
        build_model(ModelConfig(source=str(folder)), tokenizer)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("junk", [b"", b"abc" * 100], ids=["empty", "junk"])
def test_a_damaged_old_weights_file_is_one_sentence(junk: bytes, build: Any, tokenizer: ChatTokenizer) -> None:
    folder = write_bin({}, build(), tokenizer)
    (folder / "pytorch_model.bin").write_bytes(junk)
    with pytest.raises(ModelError) as refused:
        load(folder)
    assert "\n" not in refused.value.message


def test_a_source_on_an_unreachable_hub_is_reported_without_trying(
    monkeypatch: pytest.MonkeyPatch, tokenizer: ChatTokenizer
) -> None:
    def no_network(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    config = ModelConfig(source="someone/something")
    for use in (lambda: load_tokenizer(config), lambda: build_model(config, tokenizer)):
        with pytest.raises(UnavailableError, match="'someone/something' is not in its cache") as refused:
            use()
        assert typed(refused.value) == "dialogkit doctor --network"


@pytest.mark.parametrize("source", ["x" * 300, "~nobody-of-that-name/model"])
def test_a_source_that_can_be_no_path_is_no_crash(source: str) -> None:
    with pytest.raises(UnavailableError, match="is not in its cache"):
        load_tokenizer(ModelConfig(source=source))


def write_gguf(path: Path, model: Any, tokenizer: ChatTokenizer) -> Path:
    """Write a Llama with its tokenizer as llama.cpp's converter does."""
    gguf = pytest.importorskip("gguf")
    config, entries = model.config, tokenizer.hf.get_vocab()
    tokens = sorted(entries, key=entries.__getitem__)
    merges = json.loads(tokenizer.hf.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.end_of_turn_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_chat_template(tokenizer.hf.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            # Rotary pairs lie side by side there, and half a head apart here.
            halves = values.reshape(config.num_attention_heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_an_ordinary_model(build: Any, tokenizer: ChatTokenizer) -> None:
    model = build("llama").eval()
    Path("folder").mkdir()
    file = write_gguf(Path("folder/model.gguf"), model, tokenizer)
    prompt = [Message("user", "hello there, <|end_of_turn|> \u00fc")]
    for source in (file, file.parent):
        config = ModelConfig(source=str(source))
        mine = load_tokenizer(config)
        assert mine.vocabulary == tokenizer.vocabulary
        assert mine.hf.chat_template == native_format().template()
        assert mine.encode_prompt(prompt) == tokenizer.encode_prompt(prompt)
        loaded = build_model(config, mine).eval()
        assert read_context(config) == context_length(loaded.config)
        assert type(loaded) is LlamaForCausalLM
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)
    again = load(write(loaded, mine, Path("saved")))
    assert same_weights(again, loaded)
    assert "quantization_config" not in json.loads(Path("saved/config.json").read_text())


def test_a_folder_with_several_gguf_files_asks_for_one() -> None:
    for name in ("a.gguf", "b.gguf"):
        Path(name).touch()
    with pytest.raises(ModelError, match=r"several GGUF files \(a\.gguf, b\.gguf\)") as refused:
        load_tokenizer(ModelConfig(source="."))
    assert refused.value.hint == "name one: a.gguf"


def test_gguf_without_its_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("model.gguf").touch()
    monkeypatch.setattr("dialogkit.models.sources.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="need the package gguf") as refused:
        load_tokenizer(ModelConfig(source="model.gguf"))
    assert typed(refused.value) == "pip install 'dialogkit[gguf]'"


def test_a_file_that_is_no_gguf_is_one_sentence() -> None:
    Path("model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="cannot be loaded") as refused:
        load_tokenizer(ModelConfig(source="model.gguf"))
    assert "\n" not in refused.value.message
