"""Checks and descriptions of a model folder, read within bounds before any library reads it.

The folder is untrusted: a named pipe in place of a file never ends, and a config can claim any size.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dialogkit.config.paths import ADAPTER_CONFIG, file_kind
from dialogkit.errors import ModelError
from dialogkit.text import read_small

_MIB = 2**20
_LONGEST = {
    **dict.fromkeys((ADAPTER_CONFIG, "chat_template.jinja", "chat_template.json"), _MIB),
    **dict.fromkeys(("config.json", "special_tokens_map.json"), 16 * _MIB),
    **dict.fromkeys(("processor_config.json", "preprocessor_config.json"), 16 * _MIB),
    **dict.fromkeys(("tokenizer_config.json", "added_tokens.json"), 64 * _MIB),
    "tokenizer.json": 128 * _MIB,
    **dict.fromkeys(("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"), 256 * _MIB),
    **dict.fromkeys(("model.safetensors.index.json", "pytorch_model.bin.index.json"), 256 * _MIB),
}
"""Size limits, in bytes, of files that transformers reads into memory: many times the largest models' files."""
_OBJECTS = frozenset(name for name in _LONGEST if name.endswith(".json")) - {"tokenizer.json", "vocab.json"}
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files in the order in which transformers looks for them; the first that exists counts."""

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Settings with the context of a model, in tokens."""
_SIZES = {
    "architecture": ("model_type",),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "context": CONTEXT,
    "vocabulary": ("vocab_size",),
}
_TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_MOST_LAYERS = 10_000
_MOST_LABELS = 100_000
_LARGEST = 2**31 - 1
_MOST_SETTINGS = 1_000
_LAYER = re.compile(r"\.(\d+)\.")

Tensors = dict[str, tuple[int, ...]]
"""Shapes of tensors by name."""


def require_sound(folder: Path) -> None:
    """Raise ModelError if a model folder cannot be what it claims to be.

    Checks what would make a library hang, run out of memory or fail far from the cause: special or far too large
    files, JSON that is not an object, invalid sizes, an index that leaves the folder, damaged weight headers, and
    far more layers than the weights have.
    """
    for path in _read_by_libraries(folder):
        require_regular(path, _LONGEST.get(path.name))
    for name in sorted(_OBJECTS):
        if os.path.isfile(folder / name):
            read_object(folder / name)
    if os.path.isfile(folder / "config.json"):
        require_layers(folder, describe_folder(folder), read_tensors(folder))


def require_regular(path: Path, longest: int | None = None) -> None:
    """Raise ModelError unless a path is a regular file of at most `longest` bytes."""
    if (kind := file_kind(path)) is not None:
        raise ModelError(f"{str(path)!r} is {kind}, not a regular file")
    size = path.stat().st_size
    if longest is not None and size > longest:
        raise ModelError(f"{str(path)!r} has {size:,} bytes; the limit for this file is {longest:,}")


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder. Raises: ModelError if it is not one."""
    longest = _LONGEST.get(path.name, _MIB)
    require_regular(path, longest)
    try:
        content = json.loads(read_small(path, longest))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"{str(path)!r} is not a valid JSON file: {reason}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{str(path)!r} holds {named(content)}, not a JSON object")
    return content


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return the shape in a folder's config, under our names. Raises: ModelError."""
    path = folder / "config.json"
    config = read_object(path)
    if len(config) > _MOST_SETTINGS:  # libraries copy and compare them many times
        raise ModelError(f"{str(path)!r} has {len(config):,} settings; the limit is {_MOST_SETTINGS:,}")
    kind = config.get("model_type")
    if kind is not None and not (isinstance(kind, str) and 1 <= len(kind) <= 100):
        raise ModelError(f"model_type in {str(path)!r} is {named(kind)}, not an architecture")
    labels = config.get("num_labels")
    if labels is not None and not (type(labels) is int and 0 <= labels <= _MOST_LABELS):  # each gets a name
        raise ModelError(
            f"num_labels in {str(path)!r} is {named(labels)}, not a whole number from 0 to {_MOST_LABELS:,}"
        )
    for ours, names in _SIZES.items():
        for name in names:
            value = config.get(name)
            if ours == "architecture" or value is None:
                continue
            most = _MOST_LAYERS if ours == "layers" else _LARGEST
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ModelError(
                    f"{name} in {str(path)!r} is {named(value)}, not a whole number from 1 to {most:,}"
                )
    return describe_architecture(config)


def describe_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape in a transformers configuration, under our names."""
    shape = {}
    for ours, theirs in _SIZES.items():
        if (value := next((config[name] for name in theirs if config.get(name) is not None), None)) is not None:
            shape[ours] = value
    return shape


def read_tensors(folder: Path) -> Tensors:
    """Return the shapes of the tensors in a folder's safetensors files; empty if it has none.

    Raises: ModelError if a file or its index is damaged, or the index leads out of the folder.
    """
    files = [path for path in _weights_files(folder) if path.suffix == ".safetensors"]
    return {name: shape for path in files for name, shape in tensor_shapes(path).items()}


def tensor_shapes(path: Path) -> Tensors:
    """Return the shapes of the tensors in a safetensors file, whose header is checked against its size."""
    from safetensors import safe_open

    require_regular(path)
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever the library raises for damaged files
        raise ModelError(f"{str(path)!r} cannot be loaded: {error}") from None


def require_layers(folder: Path, shape: Mapping[str, Any], tensors: Tensors) -> None:
    """Raise ModelError if a config claims far more layers than its weights have: building them takes long."""
    numbers = [int(found[1]) for name in tensors if (found := _LAYER.search(name))]
    claimed, held = shape.get("layers", 0), max(numbers, default=-1) + 1
    if held and claimed > 2 * held:  # if only a few are missing, loading names them
        raise ModelError(
            f"{str(folder / 'config.json')!r} claims {claimed:,} layers, but the weights beside it hold {held:,}"
        )


def weights_bytes(folder: Path) -> int:
    """Return the size of the safetensors files in a folder; 0 without any. Raises: ModelError."""
    return sum(path.stat().st_size for path in _weights_files(folder) if path.suffix == ".safetensors")


def _read_by_libraries(folder: Path) -> Iterator[Path]:
    """Yield the existing files of a folder that libraries may open."""
    templates = folder / "additional_chat_templates"
    for parent, pattern in ((folder, "*"), (templates, "*.jinja")):
        try:
            found = sorted(parent.glob(pattern)) if parent.is_dir() else []
        except OSError as error:
            raise ModelError(f"the folder {str(parent)!r} cannot be read: {error.strerror}") from None
        yield from (
            path
            for path in found
            if parent == templates
            or path.name in _LONGEST
            or path.suffix in (".safetensors", ".bin", ".gguf")
            # generation_config.json has its own reader; no library opens it.
            or (path.name != "generation_config.json" and path.suffix in _TEXTS and _is_pipe_or_device(path))
        )


def _is_pipe_or_device(path: Path) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _weights_files(folder: Path) -> list[Path]:
    """Return the files with a folder's weights; an index may spread them over several."""
    chosen = read_object(folder / "config.json").get("transformers_weights")
    if chosen is not None:
        if not isinstance(chosen, str) or Path(chosen).name != chosen or not os.path.isfile(folder / chosen):
            raise ModelError(
                f"transformers_weights in {str(folder / 'config.json')!r} is {named(chosen)}, not a file beside it"
            )
        return [folder / chosen]
    chosen = next((folder / name for name in _WEIGHTS if os.path.isfile(folder / name)), None)
    if chosen is None:
        return []
    if chosen.suffix != ".json":
        return [chosen]
    map_ = read_object(chosen).get("weight_map")
    if not isinstance(map_, dict) or not map_:
        raise ModelError(f"weight_map in {str(chosen)!r} is {named(map_)}, not a map of tensors to files")
    files = []
    for name in dict.fromkeys(value if isinstance(value, str) else named(value) for value in map_.values()):
        # An untrusted folder must not lead to the rest of the disk.
        if Path(name).name != name or not os.path.isfile(folder / name):
            raise ModelError(f"{str(chosen)!r} names the weights file {name!r}, which is not in its folder")
        files.append(folder / name)
    return files


def named(value: object) -> str:
    """Return a JSON value as text, shortened."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"  # longer ones cannot even be written
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]} ... (of {len(text):,} characters)"
