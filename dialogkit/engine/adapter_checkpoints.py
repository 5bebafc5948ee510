"""Checkpoints of a model with an adapter: only the adapter, and which base model it belongs to."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from dialogkit.errors import CheckpointError


def has_adapter(model: Any) -> bool:
    """Return whether a model has an adapter; only the adapter is then trained and saved."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def complete_adapter(model: Any, folder: Path) -> None:
    """Write the base model into a saved adapter: its path or hub id, commit and digest of the weights."""
    base = model.adapter_base
    path = folder / ADAPTER_CONFIG_NAME
    settings = json.loads(path.read_bytes())
    settings |= {"base_model_name_or_path": base["base"], "revision": base["revision"], "inference_mode": True}
    # Peft writes a set, whose order differs between processes.
    settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _set_metadata(folder / ADAPTER_SAFE_WEIGHTS_NAME, {"format": "pt", **base["metadata"]})


def _set_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Write the metadata of a safetensors file in this order; the library's order varies.

    The first 8 bytes are the length of a JSON header with the offset of each tensor in the rest.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({**json.loads(content[8:end]), "__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def load_adapter(model: Any, folder: Path) -> None:
    """Load a checkpoint into a model's adapter. Raises: CheckpointError if the shapes differ."""
    from peft import set_peft_model_state_dict

    try:
        found = set_peft_model_state_dict(model, load_file(folder / ADAPTER_SAFE_WEIGHTS_NAME))
        fits = not found.unexpected_keys and not any(".lora_" in name for name in found.missing_keys)
    except (OSError, RuntimeError):
        fits = False
    if not fits:
        raise CheckpointError(
            f"{folder.name} holds a different adapter from the one the settings of the run describe"
        )
