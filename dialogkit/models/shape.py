"""The shape of a model and its parameters, counted in a live model or in the headers of its files.

Both counts agree: each tensor once, buffers left out. Embeddings are those of the input, of tokens and of learned
positions; an output layer counts as one only where it is tied to them.
"""

import math
import os
from pathlib import Path
from typing import Any

from dialogkit.config.model import ParameterCounts
from dialogkit.config.paths import ADAPTER_CONFIG
from dialogkit.models.folder import (
    Tensors,
    describe_folder,
    read_object,
    read_tensors,
    require_sound,
    tensor_shapes,
)

_EMBEDDINGS = frozenset(
    {
        *("wte", "embed_tokens", "embed_in", "word_embeddings", "tok_embeddings", "embeddings"),
        *("wpe", "embed_positions", "position_embeddings"),
    }
)
"""Modules with embeddings of tokens and of positions, in transformers' models."""
_OUTPUTS = frozenset({"lm_head", "embed_out"})


def count_parameters(model: Any) -> ParameterCounts:
    """Return the parameter counts of a transformers model."""
    from torch.nn import Embedding

    embeddings = [module for module in model.modules() if isinstance(module, Embedding)]
    inside = {parameter for module in embeddings for parameter in module.parameters(recurse=False)}
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCounts(total, sum(parameter.numel() for parameter in inside))


def count_tensors(tensors: Tensors, *, tied: bool) -> ParameterCounts:
    """Return the parameter counts of a model by the names and shapes of the tensors in its files.

    In a `tied` model the output layer is that of the embeddings, and a copy of them counts for nothing.
    """
    total = embedding = 0
    for name, shape in tensors.items():
        *_, module, kind = ("", *name.split("."))
        if _is_buffer(kind, shape) or (tied and module in _OUTPUTS and kind == "weight"):
            continue
        total += math.prod(shape)
        embedding += math.prod(shape) if module in _EMBEDDINGS and kind == "weight" else 0
    return ParameterCounts(total, embedding)


def _is_buffer(kind: str, shape: tuple[int, ...]) -> bool:
    """Return whether old files hold a tensor that is computed: masks of attention, and rotary frequencies."""
    return kind in ("masked_bias", "inv_freq") or (kind == "bias" and len(shape) == 4)


def read_shape(folder: Path) -> dict[str, Any]:
    """Return shape and exact parameter counts of a model folder, read from its config and its weights' headers.

    For an adapter's folder: those of its base, if that is on this disk, and the adapter's own.

    Raises: ModelError if the folder is invalid; see `models.folder.require_sound`.
    """
    require_sound(folder)
    if adapter := adapter_info(folder):
        base = Path(adapter["base"] or "").expanduser()
        usable = os.path.isfile(base / "config.json") and not os.path.isfile(base / ADAPTER_CONFIG)
        return {**(read_shape(base) if usable else {}), **adapter}
    if not os.path.isfile(folder / "config.json"):  # GGUF
        return {}
    shape, tensors = describe_folder(folder), read_tensors(folder)
    if tensors:
        # Transformers leaves the entry out where it is true.
        tied = read_object(folder / "config.json").get("tie_word_embeddings") in (None, True)
        counts = count_tensors(tensors, tied=tied)
        shape["parameters"] = counts.total
        shape["parameters_without_embeddings"] = counts.without_embeddings
    return shape


def adapter_info(folder: Path) -> dict[str, Any]:
    """Return the base and the parameters of the adapter in a folder; empty if it holds none.

    Raises: ModelError if one of its files is damaged.
    """
    if not os.path.isfile(folder / ADAPTER_CONFIG):
        return {}
    base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    sizes = [size for path in sorted(folder.glob("*.safetensors")) for size in tensor_shapes(path).values()]
    return {"base": base if isinstance(base, str) else None, "adapter_parameters": sum(map(math.prod, sizes))}
