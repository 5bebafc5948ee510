"""The shape of a model and its parameters, counted without loading it."""

import math
import os
from pathlib import Path
from typing import Any

from dialogkit.config.paths import ADAPTER_CONFIG
from dialogkit.models.folder import describe_folder, read_object, read_tensors, require_sound, tensor_shapes

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight")


def read_shape(folder: Path) -> dict[str, Any]:
    """Return shape and exact parameter counts of a model folder, read from its config and its weights' headers.

    Of an adapter's folder these are those of its base, where that lies on this disk, and the adapter's own.

    Raises: ModelError if the folder cannot be what it claims to be; see `models.folder.require_sound`.
    """
    require_sound(folder)
    if adapter := adapter_facts(folder):
        base = Path(adapter["base"] or "").expanduser()
        whole = os.path.isfile(base / "config.json") and not os.path.isfile(base / ADAPTER_CONFIG)
        return {**(read_shape(base) if whole else {}), **adapter}
    if not os.path.isfile(folder / "config.json"):  # GGUF
        return {}
    shape, tensors = describe_folder(folder), read_tensors(folder)
    if tensors:
        embedding = sum(math.prod(size) for name, size in tensors.items() if name.endswith(_EMBEDDINGS))
        shape["parameters"] = sum(math.prod(size) for size in tensors.values())
        shape["parameters_without_embeddings"] = shape["parameters"] - embedding
    return shape


def adapter_facts(folder: Path) -> dict[str, Any]:
    """Return the base and the parameters of the adapter in a folder; empty where there is none.

    Raises: ModelError if one of its files is damaged.
    """
    if not os.path.isfile(folder / ADAPTER_CONFIG):
        return {}
    base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    sizes = [size for path in sorted(folder.glob("*.safetensors")) for size in tensor_shapes(path).values()]
    return {"base": base if isinstance(base, str) else None, "adapter_parameters": sum(map(math.prod, sizes))}
