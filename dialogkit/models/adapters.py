"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685), with peft: small matrices beside frozen linear layers.

Adapted models stay plain transformers classes: their linear layers are wrapped in place. Merging adds the product
of the matrices to the weights and restores the layers. Only two files of an adapter's folder are read, its JSON
and its safetensors; peft itself would load a pickle, import a module that a config names, and match its patterns.
"""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dialogkit.config.load import HUB_ID
from dialogkit.config.model import ModelConfig
from dialogkit.config.paths import ADAPTER_CONFIG
from dialogkit.config.train import TrainConfig
from dialogkit.errors import ConfigError, ModelError, UnavailableError, did_you_mean
from dialogkit.hints import Call, Change, Shell
from dialogkit.models.folder import named, read_object, require_sound
from dialogkit.models.sources import find_gguf, local_source, unusable
from dialogkit.system.hub import from_hub
from dialogkit.system.network import hub_reachable

_WEIGHTS = "adapter_model.safetensors"
_DIGEST = "base_sha256"
"""The header entry of an adapter's weights that identifies the base it was trained on."""

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


def add_adapter(model: Any, config: TrainConfig, source: ModelConfig) -> None:
    """Add LoRA matrices to a model, in place, and freeze everything else.

    The seed initializes the first matrix of each pair; the second starts at zero. An adapter records the `source`
    of its model's weights.

    Raises: UnavailableError without peft; ConfigError for a target that is no linear layer, or if the adapter is
    to be kept and its base is an adapter too.
    """
    require_peft()
    if not config.merge and find_adapter(source) is not None:
        raise ConfigError(
            f"train.merge: a kept adapter needs a complete model as its base, and {source.source!r} is an adapter",
            hint=Change({"train.merge": True}),
        )
    linear = _linear_layers(model)
    suffixes = sorted({name.rpartition(".")[2] for name in linear})
    for target in config.lora_targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ConfigError(
                f"train.lora_targets: {target!r} is no linear layer of {source.name}"
                f"{did_you_mean(target, suffixes)}; it has {', '.join(suffixes)}",
                hint=Change({"train.lora_targets": suffixes[:2]}),
            )
    targets = sorted(config.lora_targets) or [name for name in suffixes if name not in _untouchable(model)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            _inject(
                model,
                rank=config.lora_rank,
                alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
                targets=targets,
                lora_dropout=config.lora_dropout,
            )
        except ValueError as error:  # peft knows layers of some architectures that it must not touch
            raise ConfigError(
                f"train.lora_targets: {error}", hint=Change({"train.lora_targets": list[str]()})
            ) from None
    model.adapter_base = _identify_base(source)


def _untouchable(model: Any) -> frozenset[str]:
    """Return the linear layers that fused kernels of a state-space model read past their modules."""
    return frozenset({"out_proj"}) if "mamba" in model.config.model_type else frozenset()


def _identify_base(source: ModelConfig) -> dict[str, Any]:
    """Return the location of an adapter's base and the identity of its weights: a hub commit or a digest."""
    name = source.source or ""
    local = local_source(name)
    if local is None:
        fetched = model_file(source, "config.json")
        cached = fetched is not None and fetched.parent.parent.name == "snapshots"  # in a folder for each commit
        commit = fetched.parent.name if fetched is not None and cached else source.revision
        return {"base": name, "revision": commit, "metadata": {}}
    return {"base": os.path.abspath(local), "revision": None, "metadata": {_DIGEST: digest_of(source)}}


def digest_of(source: ModelConfig) -> str:
    """Return the SHA-256 over all weight files of a local model."""
    path = find_gguf(source)
    folder = Path(os.path.expanduser(source.source or ""))
    files = [path] if path is not None else sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def merge_adapter(model: Any) -> None:
    """Merge LoRA matrices into the weights; the model is then an ordinary one, with all parameters trainable.

    Raises: ValueError if a merged weight is NaN or infinite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge(safe_merge=True)
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer.get_base_layer())
    model.requires_grad_(True)
    del model.peft_config
    model._hf_peft_config_loaded = False


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
    if local is None and model_file(config, _WEIGHTS) is None:
        raise ModelError(f"{source!r} is an adapter without {_WEIGHTS}, the only file its weights are read from")
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


def merge_into(model: Any, adapter: Adapter) -> None:
    """Merge an adapter into its base model.

    Raises: ModelError if it was trained on other weights or is damaged; UnavailableError without peft.
    """
    from safetensors import safe_open

    require_peft()
    place = str(adapter.folder)
    try:
        with safe_open(adapter.folder / _WEIGHTS, framework="pt") as file:
            trained_on = (file.metadata() or {}).get(_DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:
        raise unusable(place, error) from None
    if trained_on is not None and trained_on != digest_of(adapter.base):
        raise ModelError(
            f"the adapter {place!r} was trained on other weights than {adapter.base.source!r} holds now",
            hint=f"restore them, or {_set_base(adapter.folder)}",
        )
    require_finite(f"the adapter {place!r}", tensors.items())
    _merge_tensors(model, adapter, tensors)


@torch.no_grad()
def require_finite(what: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ModelError if weights hold NaN or infinity."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        least, most = torch.aminmax(tensor)  # NaN propagates to both; unlike a mask, needs no memory
        if not (torch.isfinite(least) and torch.isfinite(most)):
            found = "NaN" if torch.isnan(least) else "infinity"
            raise ModelError(f"{what} cannot be loaded: its tensor {name!r} holds {found}")


def _merge_tensors(model: Any, adapter: Adapter, tensors: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    what, linear = f"the adapter {str(adapter.folder)!r}", _linear_layers(model)
    settings, targets = adapter.settings, set()
    for name, tensor in tensors.items():
        target, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if target not in linear or part not in ("A.weight", "B.weight"):
            raise ModelError(f"{what} does not fit its base: {name!r} matches none of its linear layers")
        if tensor.ndim != 2 or tensor.shape[part == "B.weight"] != settings["r"]:
            raise ModelError(f"{what} is damaged: {name!r} is not of rank {settings['r']}")
        targets.add(target)
    if not targets or len(tensors) != 2 * len(targets):
        raise ModelError(f"{what} is damaged: matrices are missing")
    try:
        _inject(
            model,
            rank=settings["r"],
            alpha=settings["lora_alpha"],
            targets=sorted(targets),
            use_rslora=settings["use_rslora"],
        )
        set_peft_model_state_dict(model, tensors)
        merge_adapter(model)
    except (RuntimeError, ValueError) as error:  # another shape, or no numbers
        raise unusable(str(adapter.folder), error) from None


def _inject(model: Any, *, rank: int, alpha: float, targets: list[str], **more: Any) -> None:
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        **more,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about mixing Linear and Conv1D, which peft handles itself
        model.add_adapter(config)
    # With a name, peft would query the hub for that model at every save.
    config.base_model_name_or_path = None


def _linear_layers(model: Any) -> set[str]:
    """Return the names of a model's linear layers, without the output layer."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


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
        raise ModelError(f"the adapter {source!r} does not name its base model", hint=_set_base(folder))
    base = config.model_copy(update={"source": name, "revision": revision or None})
    is_local = local_source(name) is not None
    if not is_local and not HUB_ID.match(name):
        raise ModelError(
            f"the adapter {source!r} needs its base model {name!r}, which does not exist",
            hint=f"restore it, or {_set_base(folder)}",
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


def _set_base(folder: Path) -> str:
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
