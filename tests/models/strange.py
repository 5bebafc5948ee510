"""Model folders as a stranger might hand them over: each is a small sound one with one thing wrong in it."""

import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.models.foreign import gpt2_like

Change = Callable[[Path], object]
Edit = Callable[[dict[str, Any]], object]
"""Changes what a file holds, in place."""

SHAPE = {"vocab_size": 400, "max_position_embeddings": 256}
SIZE_FIELDS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "max_position_embeddings", "head_dim",
)  # fmt: skip
ODD_SIZES: dict[str, Any] = {
    "zero": 0, "negative": -3, "fraction": 2.5, "infinite": float("inf"), "not a number": float("nan"),
    "true": True, "text": "2", "long text": "9" * 100_000, "list": [2], "object": {"a": 2}, "huge": 10**9,
    "beyond 64 bits": 10**30, "1e400": 10**400,
}  # fmt: skip
ODD_OTHERS: dict[str, Any] = {
    "model_type": [None, 5, [], {}, "", "no-such-model", "x" * 100_000, "../../x", True],
    "architectures": ["LlamaForCausalLM", 5, [5], ["NoSuchModel"], {}, [["LlamaForCausalLM"]]],
    "rms_norm_eps": [-5.0, float("nan"), float("inf"), "small", None, 10**400],
    "rope_parameters": [5, [], {"rope_type": "no-such-type"}, {"rope_theta": float("nan")}, {"rope_theta": 0}],
    "hidden_act": ["no-such-act", 5, None, "x" * 100_000],
    "torch_dtype": ["no-such-type", 5, "int8"],
    "dtype": ["no-such-type", 5],
    "pad_token_id": [-1, 10**9, "x", 2.5],
    "quantization_config": [5, {}, {"quant_method": "no-such-method"}, {"quant_method": "bitsandbytes"}],
    "attention_bias": [True, "x"],
    "tie_word_embeddings": ["x", 5],
    "auto_map": [{"AutoConfig": "strange.Strange", "AutoModelForCausalLM": "strange.Strange"}, 5],
    "layer_types": [5, ["no-such-type"] * 2],
    "transformers_version": [5, "x" * 100_000],
    "id2label": [5, {"x": "y"}],
    "attn_implementation": ["no-such-one", 5],
    "_attn_implementation": ["flash_attention_2"],
    "sliding_window": [-1, 1, 2.5, "x"],
}
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json",
    "pytorch_model.bin", "vocab.json", "preprocessor_config.json", "processor_config.json", "adapter_config.json",
)  # fmt: skip
NEEDED = FILES[:3]
INDEX = "model.safetensors.index.json"


def write_sound(folder: Path) -> Path:
    """Write a Llama of 2 layers that knows a few words, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = gpt2_like()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def set_json(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | values))

    return change


def set_bytes(name: str, content: bytes) -> Change:
    return each(remove(name), lambda folder: (folder / name).write_bytes(content))


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def each(*changes: Change) -> Change:
    """Make several changes, one after the other."""

    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def sparse(name: str, size: int, start: bytes = b"") -> Change:
    def change(folder: Path) -> None:
        remove(name)(folder)
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return change


def special(name: str, kind: str) -> Change:
    """Put something that is no regular file in the place of a file."""

    def change(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes() if path.exists() else b"{}"
        remove(name)(folder)
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "dangling link":
                path.symlink_to("nowhere")
            case "link to itself":
                path.symlink_to(path.name)
            case "link to endless zeros":
                path.symlink_to("/dev/zero")
            case "link to a pipe":
                os.mkfifo(folder / "pipe")
                path.symlink_to("pipe")
            case "socket":
                before = Path.cwd()
                os.chdir(folder)  # a socket's path may have 108 characters only
                try:
                    with socket.socket(socket.AF_UNIX) as bound:
                        bound.bind(name)
                finally:
                    os.chdir(before)
            case "link to a sound file":
                (folder / "elsewhere").mkdir(exist_ok=True)
                (folder / "elsewhere" / name).write_bytes(content)
                path.symlink_to(Path("elsewhere", name))

    return change


def header(edit: Edit) -> Change:
    """Change the header of the weights and leave the numbers as they are."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        described = json.loads(content[8 : 8 + length])
        edit(described)
        new = json.dumps(described).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])

    return change


def raw(edit: Callable[[bytes], bytes], name: str = "model.safetensors") -> Change:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def changed_byte(at: int, byte: int, *, within: int | None = None) -> Callable[[bytes], bytes]:
    """Return what changes a byte of a content, or of its first `within` bytes."""

    def edit(content: bytes) -> bytes:
        nth = at % (within or len(content))
        return content[:nth] + bytes([byte]) + content[nth + 1 :]

    return edit


def header_length(size: int) -> Change:
    """Give the header of the weights another length."""
    return raw(lambda content: struct.pack("<Q", size) + content[8:])


def first(described: dict[str, Any]) -> dict[str, Any]:
    return next(value for key, value in described.items() if key != "__metadata__")


def first_tensor(**values: Any) -> Change:
    """Change what the header says of the first tensor."""
    return header(lambda described: first(described).update(values))


def tensors(edit: Edit) -> Change:
    """Change the tensors and write them as a sound file."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(folder / "model.safetensors")
        edit(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def fill(name: str, value: float) -> Change:
    return tensors(lambda held: held[name].view(-1)[3:4].fill_(value))


def tokenizer(edit: Edit) -> Change:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        described = json.loads(path.read_text())
        edit(described)
        path.write_text(json.dumps(described))

    return change


def giant(folder: Path) -> None:
    """Make config and weights agree on a model of 400 GB, of which nothing is on the disk."""
    config = json.loads((folder / "config.json").read_text())
    set_json("config.json", intermediate_size=10**9, num_hidden_layers=1)(folder)
    path, at, described = folder / "model.safetensors", 0, {}
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [config["vocab_size"], 32], "lm_head.weight": [config["vocab_size"], 32],
        "model.norm.weight": [32], "model.layers.0.input_layernorm.weight": [32],
        "model.layers.0.post_attention_layernorm.weight": [32],
        **{f"model.layers.0.self_attn.{n}_proj.weight": [32, 32] for n in "qkvo"},
        "model.layers.0.mlp.gate_proj.weight": [10**9, 32], "model.layers.0.mlp.up_proj.weight": [10**9, 32],
        "model.layers.0.mlp.down_proj.weight": [32, 10**9],
    }  # fmt: skip
    for name, shape in shapes.items():
        size = 4
        for side in shape:
            size *= side
        described[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    start = json.dumps(described).encode()
    sparse(path.name, 8 + len(start) + at, struct.pack("<Q", len(start)) + start)(folder)


def tokenizer_in_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "tokenizer.json").unlink()
    set_json("tokenizer_config.json", tokenizer_file=str(folder / "pipe"))(folder)


def sharded(edit: Edit) -> Change:
    """Give the weights an index, with one thing wrong in it."""

    def change(folder: Path) -> None:
        from safetensors import safe_open

        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        with safe_open(folder / "model-00001-of-00001.safetensors", framework="pt") as file:
            names = list(file.keys())
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        edit(index)
        (folder / INDEX).write_text(json.dumps(index))

    return change


def adapter(**settings: Any) -> Change:
    """Make the folder one of an adapter, of which each case names another base."""

    def change(folder: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink()
        base = settings.get("base_model_name_or_path")
        if base == "itself":
            settings["base_model_name_or_path"] = str(folder)
        if base == "a pipe":
            os.mkfifo(folder / "base")
            settings["base_model_name_or_path"] = str(folder / "base")
        if base == "a folder with a pipe":
            (folder / "base").mkdir()
            os.mkfifo(folder / "base" / "config.json")
            settings["base_model_name_or_path"] = str(folder / "base")
        if base == "a circle":
            (folder / "base").mkdir()
            back = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(folder)}
            (folder / "base" / "adapter_config.json").write_text(json.dumps(back))
            settings["base_model_name_or_path"] = str(folder / "base")
        content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", **settings}
        (folder / "adapter_config.json").write_text(json.dumps(content))

    return change


def adapter_of_sound(edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> Change:
    """Make an adapter whose base is sound and beside it."""

    def change(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        base = folder / "base"
        base.mkdir()
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.rename(base / path.name)
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        held = {name.format("A"): torch.zeros(2, 32), name.format("B"): torch.zeros(32, 2)}
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
        edit(config, held)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(held, folder / "adapter_model.safetensors")

    return change


def grown(described: dict[str, Any], count: int) -> None:
    at = max(described["model"]["vocab"].values())
    described["model"]["vocab"] |= {f"strange{n}": at + n for n in range(1, count + 1)}


def regex(pattern: str) -> Change:
    def edit(described: dict[str, Any]) -> None:
        described["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                described["pre_tokenizer"],
            ],
        }

    return tokenizer(edit)


Q = "model.layers.0.self_attn.q_proj.weight"
DEEP = 100_000


def index_to(name: Any) -> Change:
    """Let the index name this file for a tensor."""
    return sharded(lambda index: index["weight_map"].update({Q: name}))


def adapter_with(settings: dict[str, Any]) -> Change:
    return adapter_of_sound(lambda config, tensors: config.update(settings))


def cases() -> Iterator[tuple[str, Change]]:
    """Yield what is strange in each folder, and the change that makes it so."""
    yield "sound", lambda folder: None
    for kind, content in {
        "empty": b"", "a list": b"[]", "null": b"null", "a number": b"5", "text": b'"x"', "nothing": b"{}",
        "a deep list": b"[" * DEEP + b"]" * DEEP, "a deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "deep inside": b'{"model_type": "llama", "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        "half": b'{"model_type": "lla', "zeros": bytes(1000), "binary": bytes(range(256)),
        "a list of rows": b'[{"model_type": "llama"}]', "long number": b'{"vocab_size": ' + b"9" * 10_000 + b"}",
        "latin-1": '{"model_type": "llama", "note": "\u00e9"}'.encode("latin-1"),
        "utf-16": '{"model_type": "llama"}'.encode("utf-16"), "a mark first": b"\xef\xbb\xbf{}",
        "surrogate": b'{"model_type": "\\ud800"}', "terminal codes": b'{"model_type": "\\u001b[2J\\u202e"}',
    }.items():  # fmt: skip
        yield f"config is {kind}", set_bytes("config.json", content)
    yield "config of 9 GB", sparse("config.json", 9 * 2**30)
    yield "config of 9 GB that begins well", sparse("config.json", 9 * 2**30, b'{"model_type": "llama"}')
    yield (
        "config of 20 MB",
        raw(lambda c: b'{"note": "' + b"x" * 20_000_000 + b'", ' + c.strip()[1:], "config.json"),
    )
    for field in SIZE_FIELDS:
        for kind, value in ODD_SIZES.items():
            yield f"{field} is {kind}", set_json("config.json", **{field: value})
    for field, values in ODD_OTHERS.items():
        for number, value in enumerate(values):
            yield f"{field} {number}", set_json("config.json", **{field: value})
    yield "a field with a long name", set_json("config.json", **{"x" * 100_000: 1})
    yield "a hundred thousand fields", set_json("config.json", **{f"x{n}": n for n in range(100_000)})
    for labels in (10**12, 2 * 10**7, -1, True, "x", 1.5):
        yield f"{labels!r} labels", set_json("config.json", num_labels=labels)
    yield "heads that do not divide the width", set_json("config.json", num_attention_heads=3)
    yield "more layers than the weights", set_json("config.json", num_hidden_layers=3)
    yield "fewer layers than the weights", set_json("config.json", num_hidden_layers=1)
    yield "wider than the weights", set_json("config.json", hidden_size=64)
    yield "wider by far than the weights", set_json("config.json", hidden_size=2**20, intermediate_size=2**22)
    yield "another architecture", set_json("config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    yield "an encoder", set_json("config.json", model_type="bert", architectures=["BertModel"])
    yield "a model of pictures", set_json("config.json", model_type="clip", architectures=["CLIPModel"])
    yield "encoder and decoder", set_json("config.json", model_type="t5", architectures=["T5Model"])
    yield "experts without end", set_json("config.json", model_type="mixtral", num_local_experts=10**9)
    yield "a small context", set_json("config.json", max_position_embeddings=4)

    for name in FILES:
        for kind in (
            "pipe", "folder", "dangling link", "link to itself", "link to endless zeros", "link to a pipe",
            "socket",
        ):  # fmt: skip
            yield f"{name} is a {kind}", special(name, kind)
        if name in NEEDED:
            yield f"{name} is missing", remove(name)
            yield f"{name} is a link to a sound file", special(name, "link to a sound file")
    for name in FILES[3:7] + FILES[7:9]:
        for kind, content in {
            "empty": b"", "a list": b"[]", "null": b"null", "a number": b"5", "text": b'"x"', "half": b'{"a": ',
            "a deep list": b"[" * DEEP + b"]" * DEEP, "binary": bytes(range(256)),
        }.items():  # fmt: skip
            yield f"{name} is {kind}", set_bytes(name, content)
        yield f"{name} of 9 GB", sparse(name, 9 * 2**30)

    yield "weights empty", set_bytes("model.safetensors", b"")
    yield "weights of 4 bytes", set_bytes("model.safetensors", b"\x01\x00\x00\x00")
    for kind, size in {
        "0": 0, "1": 1, "too long": 10**7, "2^40": 2**40, "2^63": 2**63, "2^64-1": 2**64 - 1, "100 MB": 10**8,
    }.items():  # fmt: skip
        yield f"weights' header of length {kind}", header_length(size)
    for kind, content in {
        "no JSON": b"hello there", "a list": b"[]", "null": b"null", "a number": b"5", "deep": b"[" * DEEP,
        "binary": bytes(range(128, 256)), "tensors that are numbers": b'{"a": 5}', "empty": b"{}",
        "tensors that are lists": b'{"a": []}', "metadata a number": b'{"__metadata__": 5}',
        "metadata of numbers": b'{"__metadata__": {"a": 5}}', "no shape": b'{"a": {"dtype": "F32"}}',
        "deep in a tensor": b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    }.items():  # fmt: skip
        yield (
            f"weights' header is {kind}",
            set_bytes("model.safetensors", struct.pack("<Q", len(content)) + content + bytes(64)),
        )
    yield "weights' header of 100 MB", sparse("model.safetensors", 10**8 + 8, struct.pack("<Q", 10**8) + b"{")
    yield "weights sparse, 9 GB", sparse("model.safetensors", 9 * 2**30)
    yield "weights sparse, 4 TB", sparse("model.safetensors", 4 * 2**40, struct.pack("<Q", 10**8))
    odd: list[Any] = [5, None, "x", [-1, 5], [2.5], ["x"], [10**30], [2**40, 2**40], [True], [[4]], [float("nan")]]
    for number, shape in enumerate([*odd, [1] * 5000, []]):
        yield f"a shape {number}", first_tensor(shape=shape)
    dtypes: list[Any] = [5, None, "F31", "x" * 100_000, [], "I64", "F8_E4M3"]
    for number, dtype in enumerate(dtypes):
        yield f"a dtype {number}", first_tensor(dtype=dtype)
    for number, offsets in enumerate([(0, 10**12), (-8, 8), (64, 0), (8, 72), (2**63, 2**63 + 8)]):
        yield f"an offset {number}", first_tensor(data_offsets=offsets)
    yield "offsets no list", first_tensor(data_offsets=5)
    yield "offsets text", first_tensor(data_offsets=["a", "b"])
    yield "offsets of three", first_tensor(data_offsets=[0, 1, 2])
    yield "weights sparse and sound, 400 GB", giant
    yield "two tensors in one place", header(lambda h: h.update(strange=dict(first(h))))
    yield "a tensor with a long name", header(lambda h: h.update({"x" * 100_000: h.pop(next(iter(h)))}))
    yield "a tensor with a name of terminal codes", header(lambda h: h.update({"\x1b[2J": h.pop(Q)}))
    yield "weights cut off", raw(lambda c: c[:-100])
    yield "weights cut off in the header", raw(lambda c: c[:100])
    yield "weights longer", raw(lambda c: c + bytes(100))
    yield "weights a web page", set_bytes("model.safetensors", b"<!DOCTYPE html><html>not found</html>")
    yield "weights a pointer", set_bytes("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")
    yield "weights without a tensor", tensors(lambda t: t.pop(Q))
    yield "weights with no tensor", tensors(lambda t: t.clear())
    yield "weights with a tensor more", tensors(lambda t: t.update(strange=t[Q].clone()))
    yield "weights with a tensor of another shape", tensors(lambda t: t.update({Q: t[Q][:5].clone()}))
    yield "weights with a tensor of no dimension", tensors(lambda t: t.update({Q: t[Q][0, 0].clone()}))
    yield "weights of whole numbers", tensors(lambda t: t.update({Q: t[Q].long()}))
    yield "weights of complex numbers", tensors(lambda t: t.update({Q: t[Q].cfloat()}))
    yield "weights of half precision", tensors(lambda t: t.update({k: v.half() for k, v in t.items()}))
    for name in (Q, "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        for value in (float("nan"), float("inf"), -float("inf")):
            yield f"{value} in {name}", fill(name, value)
    yield "weights near the largest number", tensors(lambda t: t["model.norm.weight"].fill_(3e38))
    yield "weights of nothing but zeros", tensors(lambda t: [v.zero_() for v in t.values()])

    shards: list[Any] = ["../../x", "/etc/passwd", "", "no-such.safetensors", 5, None, [], "x" * 100_000, "."]
    for number, shard in enumerate(shards):
        yield f"an index to {number}", index_to(shard)
    indices: list[Any] = [[], None, 5, {}, {"weight_map": 5}, {"weight_map": {}}, {"weight_map": []}]
    for number, index in enumerate(indices):
        yield f"an index {number}", each(sharded(dict.clear), set_bytes(INDEX, json.dumps(index).encode()))
    yield "an index without metadata", sharded(lambda i: i.pop("metadata"))
    yield (
        "an index of many files",
        sharded(lambda i: i.update(weight_map={f"x{n}": f"x{n}.safetensors" for n in range(50_000)})),
    )

    for kind, content in {
        "empty": b"", "a list": b"[]", "null": b"null", "nothing": b"{}", "half": b'{"model": {',
        "deep": b"[" * DEEP, "binary": bytes(range(256)), "a number": b"5",
    }.items():  # fmt: skip
        yield f"tokenizer is {kind}", set_bytes("tokenizer.json", content)
    yield "tokenizer of 9 GB", sparse("tokenizer.json", 9 * 2**30)
    yield "tokenizer_file elsewhere", tokenizer_in_a_pipe
    weights: list[Any] = ["../../x.safetensors", "/dev/zero", 5, [], "", "no-such.safetensors"]
    for number, file in enumerate(weights):
        yield f"transformers_weights {number}", set_json("config.json", transformers_weights=file)
    yield "tokenizer without words", tokenizer(lambda t: t["model"].update(vocab={}, merges=[]))
    yield "tokenizer without model", tokenizer(lambda t: t.pop("model"))
    yield "tokenizer of no known kind", tokenizer(lambda t: t["model"].update(type="Strange"))
    yield "tokenizer with an id beyond the model", tokenizer(lambda t: t["model"]["vocab"].update({"!": 10_000}))
    yield "tokenizer with an id beyond 32 bits", tokenizer(lambda t: t["model"]["vocab"].update({"!": 2**33}))
    yield "tokenizer with a negative id", tokenizer(lambda t: t["model"]["vocab"].update({"!": -1}))
    yield "tokenizer with an id twice", tokenizer(lambda t: t["model"]["vocab"].update({"!": 5}))
    yield "tokenizer larger than the model", tokenizer(lambda t: grown(t, 500))
    yield "tokenizer with merges of nothing", tokenizer(lambda t: t["model"].update(merges=[["no", "where"]]))
    yield "tokenizer without pre-tokenizer", tokenizer(lambda t: t.update(pre_tokenizer=None))
    yield "tokenizer without decoder", tokenizer(lambda t: t.update(decoder=None))
    yield "tokenizer with a special token beyond the model", tokenizer(
        lambda t: t["added_tokens"].append(
            {
                "id": 5000, "content": "<|im_end|>", "special": True, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False,
            }
        )
    )  # fmt: skip
    patterns = ["(a+)+$", "(x+x+)+y", "(?:(?:.*)*)*$", "(", "\\", "[z-a]", "(?<=a+)b", "(a|a)*b"]
    for number, pattern in enumerate(patterns):
        yield f"tokenizer with a pattern {number}", regex(pattern)
    yield "tokenizer with a slow pattern", regex("(H|He|Hel|l|lo|o|.|\\s|[a-z]+|[a-z\\s]+)+\\x00")
    yield (
        "tokenizer with a pattern to replace",
        tokenizer(
            lambda t: t.update(normalizer={"type": "Replace", "pattern": {"Regex": "(.+)+\\x00"}, "content": "x"})
        ),
    )
    yield "tokenizer that makes texts longer", tokenizer(
        lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 2000}
        ] * 3})
    )  # fmt: skip
    token_settings: list[dict[str, Any]] = [
        {"tokenizer_class": 5}, {"tokenizer_class": "NoSuchTokenizer"}, {"tokenizer_class": "../x"},
        {"eos_token": None}, {"eos_token": 5}, {"eos_token": "not a token"}, {"eos_token": ["a"]},
        {"eos_token": {"content": 5}}, {"model_max_length": "x"}, {"model_max_length": -1},
        {"chat_template": 5}, {"chat_template": ["x"]}, {"chat_template": "{{"},
        {"chat_template": "x" * 2_000_000},
        {"added_tokens_decoder": 5}, {"added_tokens_decoder": {"x": {}}}, {"extra_special_tokens": 5},
        {"added_tokens_decoder": {"-1": {"content": "x"}}}, {"padding_side": "up"}, {"auto_map": 5},
        {"auto_map": {"AutoTokenizer": ["strange.Strange", None]}}, {"vocab_file": "/etc/passwd"},
    ]  # fmt: skip
    for number, settings in enumerate(token_settings):
        yield f"tokenizer_config {number}", set_json("tokenizer_config.json", **settings)
    for number, template in enumerate(
        [
            "{% for i in range(10**9) %}{% endfor %}", "{{ 'x' * 10**9 }}", "{% include '/etc/passwd' %}",
            "{{ 1/0 }}", "{% for", "", "{{ messages[0]['content'].__class__.__mro__ }}",
            "{{ raise_exception('no') }}", "{{ 'x' * 10**11 }}", "{{ 10**10**9 }}", "{{ range(10**9) | list }}",
        ]
    ):  # fmt: skip
        yield f"a chat template {number}", set_bytes("chat_template.jinja", template.encode())
    yield "a chat template that is no text", set_bytes("chat_template.jinja", bytes(range(128, 256)))
    yield "a chat template of 9 GB", sparse("chat_template.jinja", 9 * 2**30)

    bases: list[Any] = [
        "itself", "a pipe", "a folder with a pipe", "a circle", "", 5, None, "/dev/zero", "x" * 100_000, "\0",
    ]  # fmt: skip
    for base in bases:
        yield f"an adapter of {str(base)[:20]!r}", adapter(base_model_name_or_path=base)
    adapters: list[dict[str, Any]] = [
        {"r": 0}, {"r": -1}, {"r": 2.5}, {"r": True}, {"r": 10**30}, {"r": "2"}, {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400}, {"peft_type": "IA3"}, {"peft_type": 5}, {"r": 3}, {"revision": 5},
        {"lora_alpha": True}, {"target_modules": 5},
    ]  # fmt: skip
    for number, settings in enumerate(adapters):
        yield f"an adapter with settings {number}", adapter_with(settings)
    yield "an adapter sound", adapter_of_sound(lambda c, t: None)
    yield (
        "an adapter of no number",
        adapter_of_sound(lambda c, t: [v.fill_(float("nan")) for v in t.values()]),
    )
    yield (
        "an adapter of another width",
        adapter_of_sound(lambda c, t: t.update({k: v.new_zeros(2, 9) for k, v in t.items() if "lora_A" in k})),
    )
    yield "an adapter of half a pair", adapter_of_sound(lambda c, t: t.pop(next(iter(t))))
    for kind in ("pipe", "link to endless zeros", "folder", "socket"):
        in_place = special("adapter_model.safetensors", kind)
        yield f"an adapter whose weights are a {kind}", each(adapter_of_sound(lambda c, t: None), in_place)

    begun = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a"
    for kind, content in {
        "empty": b"", "text": b"hello", "magic alone": b"GGUF",
        "counts without end": b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 16,
        "a long string": b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**60),
        "a long list": begun + struct.pack("<IIQ", 9, 4, 2**60) + bytes(64),
        "a list of lists": begun + struct.pack("<IIQ", 9, 9, 2**40) + bytes(64),
    }.items():  # fmt: skip
        yield f"GGUF {kind}", each(remove("config.json", "model.safetensors"), set_bytes("x.gguf", content))
    yield "GGUF a pipe", each(remove(*NEEDED), special("x.gguf", "pipe"))
    yield "GGUF sparse, 9 GB", each(remove(*NEEDED), sparse("x.gguf", 9 * 2**30, b"GGUF\x03\x00\x00\x00"))
    chance = random.Random(7)
    for number in range(30):
        at, byte = chance.randrange(10**6), chance.randrange(256)
        yield f"a byte of the weights changed {number}", raw(changed_byte(at, byte, within=1500))
    for number in range(20):
        at, byte = chance.randrange(10**6), chance.randrange(256)
        name = chance.choice(["config.json", "tokenizer.json", "tokenizer_config.json"])
        yield f"a byte of {name} changed {number}", raw(changed_byte(at, byte), name)


CASES = dict(cases())


def make(kind: str, sound: Path, folder: Path) -> Path:
    """Copy a sound folder and make it strange."""
    shutil.copytree(sound, folder)
    CASES[kind](folder)
    return folder
