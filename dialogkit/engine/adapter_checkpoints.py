"""What a checkpoint of an adapted model holds: the adapter alone, and whose it is."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from dialogkit.errors import CheckpointError


def is_adapted(model: Any) -> bool:
    """Return whether a model has an adapter, which alone learns and is saved."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def complete_adapter(model: Any, folder: Path) -> None:
    """Write into an adapter that was saved which model it belongs to: place, commit, digest of the weights."""
    base = model.adapter_base
    path = folder / ADAPTER_CONFIG_NAME
    settings = json.loads(path.read_bytes())
    settings |= {"base_model_name_or_path": base["base"], "revision": base["revision"], "inference_mode": True}
    # Peft writes a set, which has another order in each process.
    settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _set_metadata(folder / ADAPTER_SAFE_WEIGHTS_NAME, {"format": "pt", **base["metadata"]})


def _set_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Give a safetensors file its metadata, in this order: the library writes them in another one each time.

    The first 8 bytes are the length of a JSON header, which tells where in the rest each tensor lies.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({**json.loads(content[8:end]), "__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def load_adapter(model: Any, folder: Path) -> None:
    """Give a model's adapter the weights of a checkpoint. Raises: CheckpointError if they are of another shape."""
    from peft import set_peft_model_state_dict

    try:
        found = set_peft_model_state_dict(model, load_file(folder / ADAPTER_SAFE_WEIGHTS_NAME))
        fits = not found.unexpected_keys and not any(".lora_" in name for name in found.missing_keys)
    except (OSError, RuntimeError):
        fits = False
    if not fits:
        raise CheckpointError(f"{folder.name} holds another adapter than the settings of the run ask for")
