"""Finds and reads LoRA adapters without their weights: where they lie, what they set, and which base they need.

Nothing here loads torch, so that a tokenizer or a context can be read in a moment.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dialogkit.config.load import HUB_ID
from dialogkit.config.model import ModelConfig
from dialogkit.config.paths import ADAPTER_CONFIG
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.hints import Call, Shell
from dialogkit.models.folder import named, read_object, require_sound
from dialogkit.models.sources import local_source
from dialogkit.system.hub import from_hub
from dialogkit.system.network import hub_reachable

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Settings that are read, follow from the model and the weights, or matter only in training.
_ACCEPTED = frozenset(
    {
        "base_model_name_or_path", "revision", "peft_type", "r", "lora_alpha", "use_rslora",
        "auto_mapping", "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "lora_dropout", "peft_version", "target_modules", "task_type",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, and its base model."""

    folder: Path
    base: ModelConfig
    settings: dict[str, Any]
    """Its config, checked."""


def require_peft() -> None:
    """Raise UnavailableError if peft is not installed."""
    if find_spec("peft") is None:
        raise UnavailableError("LoRA needs the package peft", hint=Shell("pip install 'dialogkit[lora]'"))


def find_adapter(config: ModelConfig) -> Adapter | None:
    """Return the adapter at a model's source, a folder or hub id; None if the source is a complete model.

    Raises: ModelError for an adapter that is not LoRA, or whose base is missing.
    """
    source = config.source or ""
    local = local_source(source)
    if local is None and not HUB_ID.match(source):
        return None
    path = model_file(config, ADAPTER_CONFIG)
    if path is None:
        return None
    folder = path.parent
    if local is None and model_file(config, ADAPTER_WEIGHTS) is None:
        raise ModelError(
            f"{source!r} is an adapter without {ADAPTER_WEIGHTS}, the only file its weights are read from"
        )
    if local is not None and [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]:
        raise ModelError(f"{source!r} holds a complete model and an adapter; keep them in separate folders")
    settings = _read_settings(source, folder / ADAPTER_CONFIG)
    require_sound(folder)
    return Adapter(folder, _base_of(source, config, folder, settings), settings)


def tokenizer_source(config: ModelConfig) -> ModelConfig:
    """Return the source to read the tokenizer from: the adapter's base if the adapter brings none."""
    adapter = find_adapter(config)
    if adapter is None or (adapter.folder / "tokenizer.json").is_file():
        return config
    return adapter.base if model_file(config, "tokenizer.json") is None else config


def _read_settings(source: str, path: Path) -> dict[str, Any]:
    """Return an adapter's config. Raises: ModelError unless it is plain LoRA."""
    try:
        settings = read_object(path)
    except ModelError as error:
        raise ModelError(f"{error.message}: not a readable adapter config") from None
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{source!r} is an adapter of type {kind!r}; only LORA is supported")
    rank, alpha, scaled = settings.get("r"), settings.get("lora_alpha"), settings.get("use_rslora", False)
    sound = (
        isinstance(rank, int)
        and isinstance(alpha, int | float)
        and bool not in (type(rank), type(alpha))
        and 1 <= rank <= 65_536
        and -1e9 < alpha < 1e9  # false for NaN
    )
    if not sound or not isinstance(scaled, bool):
        raise ModelError(
            f"the adapter {source!r} has no usable rank and alpha (r {named(rank)}, lora_alpha {named(alpha)})"
        )
    _refuse_variants(source, settings)
    return {**settings, "use_rslora": scaled}


def _refuse_variants(source: str, settings: dict[str, Any]) -> None:
    """Raise ModelError if an adapter is anything but pairs of matrices beside linear layers."""
    require_peft()
    from peft import LoraConfig

    plain = LoraConfig().to_dict()
    for name, value in settings.items():
        if name in _ACCEPTED or not value or value == plain.get(name) or (name, value) == ("bias", "none"):
            continue
        raise ModelError(f"the adapter {source!r} is not plain LoRA: it sets {name}")


def _base_of(source: str, config: ModelConfig, folder: Path, settings: dict[str, Any]) -> ModelConfig:
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise ModelError(f"the adapter {source!r} does not name its base model", hint=set_base(folder))
    base = config.model_copy(update={"source": name, "revision": revision or None})
    is_local = local_source(name) is not None
    if not is_local and not HUB_ID.match(name):
        raise ModelError(
            f"the adapter {source!r} needs its base model {name!r}, which does not exist",
            hint=f"restore it, or {set_base(folder)}",
        )
    if model_file(base, ADAPTER_CONFIG) is not None:
        raise ModelError(
            f"the adapter {source!r} needs its base {name!r}, which is an adapter itself and not a complete model"
        )
    if not is_local and not hub_reachable() and model_file(base, "config.json") is None:
        raise UnavailableError(
            f"the hub cannot be reached, and {name!r}, the base of the adapter {source!r}, is not in its cache",
            hint=Shell(f"hf download {name}"),
        )
    return base


def set_base(folder: Path) -> str:
    """Return advice for an adapter whose base is not found."""
    return f"set base_model_name_or_path in {folder / ADAPTER_CONFIG} to its location"


def model_file(config: ModelConfig, file: str) -> Path | None:
    """Return a file of a model, local, fetched or cached; None if it has none or the hub cannot be asked."""
    if (local := local_source(config.source or "")) is not None:
        return local / file if os.path.isfile(local / file) else None
    from transformers.utils import cached_file

    try:
        found = from_hub(
            lambda online: cached_file(
                config.source or "",
                file,
                revision=config.revision,
                local_files_only=not online,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            ),
            lacking=f"{config.source!r} is not in its cache",
            hint=Call("doctor", network=True),
        )
    # No such model, or no answer: the loading that follows reports it.
    except (OSError, ValueError, UnavailableError):
        return None
    return None if found is None else Path(found)
