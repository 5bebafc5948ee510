"""LoRA (Hu et al. 2021, arXiv:2106.09685) through peft: small matrices beside frozen linear layers.

Adapted models stay plain transformers classes: their linear layers are replaced in place, and put back with the
product of the matrices added when an adapter is merged. Of an adapter's folder two files are read, its JSON and
its safetensors; peft itself would load a pickle, import a module that a config names, and match its patterns.
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
from dialogkit.models.sources import find_gguf, unusable
from dialogkit.system.network import from_hub, hub_reachable

_WEIGHTS = "adapter_model.safetensors"
_DIGEST = "base_sha256"
"""The entry in the head of an adapter's weights that tells which base it was trained on."""

_READ = frozenset({"base_model_name_or_path", "revision", "peft_type", "r", "lora_alpha", "use_rslora"})
# What follows from the model and the weights, or matters to a training alone.
_PASSED_OVER = frozenset(
    {
        "auto_mapping", "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "lora_dropout", "peft_version", "target_modules", "task_type",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter on the disk, and the model that it belongs to."""

    folder: Path
    base: ModelConfig
    settings: dict[str, Any]
    """What its config says, checked."""


def require_peft() -> None:
    """Raise UnavailableError if peft is not installed."""
    if find_spec("peft") is None:
        raise UnavailableError("LoRA needs the package peft", hint=Shell("pip install 'dialogkit[lora]'"))


def add_adapter(model: Any, config: TrainConfig, source: ModelConfig) -> None:
    """Give a model LoRA's matrices, which alone learn from then on; the second of each pair begins with zeros.

    Args:
        model: a transformers model, changed in place.
        config: rank, alpha, dropout and targets; the seed decides the first matrices.
        source: where the model's weights came from, which an adapter has to tell.

    Raises: UnavailableError without peft; ConfigError for a target that is no linear layer, or where an adapter is
    to be kept whose base is one as well.
    """
    require_peft()
    if not config.merge and find_adapter(source) is not None:
        raise ConfigError(
            f"train.merge: a kept adapter needs whole weights as its base, and {source.source!r} has none",
            hint=Change({"train.merge": True}),
        )
    linear = _linear_layers(model)
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    for target in config.lora_targets:
        if not any(_is_targeted(name, target) for name in linear):
            raise ConfigError(
                f"train.lora_targets: {target!r} is no linear layer of {source.name}"
                f"{did_you_mean(target, leaves)}; there are {', '.join(leaves)}",
                hint=Change({"train.lora_targets": leaves[:2]}),
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        _inject(
            model,
            rank=config.lora_rank,
            alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
            targets=sorted(config.lora_targets) or leaves,
            lora_dropout=config.lora_dropout,
        )
    model.adapter_base = base_facts(source)


def base_facts(source: ModelConfig) -> dict[str, Any]:
    """Return where the base of an adapter lies, and which weights it has: a commit of the hub, or a digest."""
    name = source.source or ""
    path = os.path.expanduser(name)
    if not os.path.exists(path):
        fetched = fetch_model_file(source, "config.json")
        cached = fetched is not None and fetched.parent.parent.name == "snapshots"  # in a folder for each commit
        commit = fetched.parent.name if fetched is not None and cached else source.revision
        return {"base": name, "revision": commit, "metadata": {}}
    return {"base": os.path.abspath(path), "revision": None, "metadata": {_DIGEST: digest_of(source)}}


def digest_of(source: ModelConfig) -> str:
    """Return the SHA-256 of the weights of a model on this disk, over all its files."""
    path = find_gguf(source)
    folder = Path(os.path.expanduser(source.source or ""))
    files = [path] if path is not None else sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def merge_adapter(model: Any) -> None:
    """Add LoRA's matrices to the weights beside them; the model is then an ordinary one, all of which can learn.

    Raises: ValueError if a sum is no number.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge(safe_merge=True)
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer.get_base_layer())
    model.requires_grad_(True)
    del model.peft_config
    model._hf_peft_config_loaded = False


def find_adapter(config: ModelConfig) -> Adapter | None:
    """Return the adapter that a model's source is, in a folder or on the hub; None if it is whole weights.

    Raises: ModelError for an adapter that is of another kind than LoRA, or whose base is not there.
    """
    source = config.source or ""
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):
        if not (path / ADAPTER_CONFIG).is_file():
            return None
        if next((f for kind in ("model*.safetensors", "pytorch_model*.bin") for f in path.glob(kind)), None):
            raise ModelError(f"{source!r} holds whole weights and an adapter: keep them in folders of their own")
        folder = path
    elif HUB_ID.match(source):
        fetched = fetch_model_file(config, ADAPTER_CONFIG)
        if fetched is None:
            return None
        folder = fetched.parent
        if fetch_model_file(config, _WEIGHTS) is None:
            raise ModelError(
                f"{source!r} is an adapter without {_WEIGHTS}; its weights are read from nothing else"
            )
    else:
        return None
    settings = _read_settings(source, folder / ADAPTER_CONFIG)
    require_sound(folder)
    return Adapter(folder, _base_of(source, config, folder, settings), settings)


def tokenizer_source(config: ModelConfig) -> ModelConfig:
    """Return the settings of the source with the tokenizer: an adapter without one has that of its base."""
    adapter = find_adapter(config)
    if adapter is None or (adapter.folder / "tokenizer.json").is_file():
        return config
    is_local = os.path.exists(os.path.expanduser(config.source or ""))
    return adapter.base if is_local or fetch_model_file(config, "tokenizer.json") is None else config


def merge_into(model: Any, adapter: Adapter) -> None:
    """Add an adapter's matrices to the weights of the model that it belongs to.

    Raises: ModelError if it belongs to another model, or its weights are damaged; UnavailableError without peft.
    """
    from safetensors import safe_open

    require_peft()
    told = str(adapter.folder)
    try:
        with safe_open(adapter.folder / _WEIGHTS, framework="pt") as file:
            trained_on = (file.metadata() or {}).get(_DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:
        raise unusable(told, error) from None
    if trained_on is not None and trained_on != digest_of(adapter.base):
        raise ModelError(
            f"the adapter {told!r} was trained on other weights than those in {adapter.base.source!r}",
            hint=f"put them back, or {_name_it(adapter.folder)}",
        )
    require_finite(f"the adapter {told!r}", tensors.items())
    _merge_tensors(model, told, adapter.settings, tensors)


@torch.no_grad()
def require_finite(what: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ModelError if weights hold NaN or infinity, from which nothing but the same can be computed."""
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        least, most = torch.aminmax(tensor)  # of a NaN, both are one; takes no memory, unlike a mask
        if not (torch.isfinite(least) and torch.isfinite(most)):
            found = "NaN" if torch.isnan(least) else "infinity"
            raise ModelError(f"{what} cannot be loaded: its tensor {name!r} holds {found}")


def _merge_tensors(model: Any, told: str, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    linear, rank = _linear_layers(model), settings["r"]
    targets = set()
    for name, tensor in tensors.items():
        target, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if target not in linear or part not in ("A.weight", "B.weight"):
            raise ModelError(
                f"the adapter {told!r} does not fit its base: {name!r} belongs to no linear layer of it"
            )
        if tensor.ndim != 2 or tensor.shape[part == "B.weight"] != rank:
            raise ModelError(f"the adapter {told!r} is damaged: {name!r} is not of rank {rank}")
        targets.add(target)
    if not targets or len(tensors) != 2 * len(targets):
        raise ModelError(f"the adapter {told!r} is damaged: matrices are missing")
    try:
        _inject(
            model,
            rank=rank,
            alpha=settings["lora_alpha"],
            targets=sorted(targets),
            use_rslora=settings["use_rslora"],
        )
        set_peft_model_state_dict(model, tensors)
        merge_adapter(model)
    except (RuntimeError, ValueError) as error:  # another shape, or no numbers
        raise unusable(told, error) from None


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
        warnings.simplefilter("ignore")  # of layers of both kinds, for which it finds the right way itself
        model.add_adapter(config)
    # With a name, peft would ask the hub for that model whenever it saves.
    config.base_model_name_or_path = None


def _linear_layers(model: Any) -> set[str]:
    """Return the names of the linear layers inside a model, without the output layer."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def _is_targeted(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def _read_settings(source: str, path: Path) -> dict[str, Any]:
    """Return an adapter's config. Raises: ModelError for what is not plain LoRA."""
    try:
        settings = read_object(path)
    except ModelError as error:
        raise ModelError(f"{error.message}: no readable config of an adapter") from None
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{source!r} is an adapter of the kind {kind!r}, and only LORA can be used")
    rank, alpha, scaled = settings.get("r"), settings.get("lora_alpha"), settings.get("use_rslora", False)
    sound = (
        isinstance(rank, int)
        and isinstance(alpha, int | float)
        and bool not in (type(rank), type(alpha))
        and 1 <= rank <= 65_536
        and -1e9 < alpha < 1e9  # NaN lies between no numbers
    )
    if not sound or not isinstance(scaled, bool):
        raise ModelError(
            f"the adapter {source!r} has no usable rank and alpha (r {named(rank)}, lora_alpha {named(alpha)})"
        )
    _refuse_variants(source, settings)
    return {**settings, "use_rslora": scaled}


def _refuse_variants(source: str, settings: dict[str, Any]) -> None:
    """Raise ModelError if an adapter is more than pairs of matrices beside linear layers."""
    require_peft()
    from peft import LoraConfig

    plain = LoraConfig().to_dict()
    for name, value in settings.items():
        if (
            name in _READ | _PASSED_OVER
            or not value
            or value == plain.get(name)
            or (name, value) == ("bias", "none")
        ):
            continue
        raise ModelError(f"the adapter {source!r} is not plain LoRA: it has {name}")


def _base_of(source: str, config: ModelConfig, folder: Path, settings: dict[str, Any]) -> ModelConfig:
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise ModelError(
            f"the adapter {source!r} does not tell which model it belongs to",
            hint=_name_it(folder),
        )
    base = config.model_copy(update={"source": name, "revision": revision or None})
    place = os.path.expanduser(name)
    if not os.path.exists(place) and (os.path.isabs(place) or not HUB_ID.match(name)):
        raise ModelError(
            f"the adapter {source!r} belongs to the model {name!r}, which is not there",
            hint=f"put it back, or {_name_it(folder)}",
        )
    is_there = os.path.exists(place)
    if os.path.isfile(os.path.join(place, ADAPTER_CONFIG)) or (
        not is_there and fetch_model_file(base, ADAPTER_CONFIG) is not None
    ):
        raise ModelError(
            f"the adapter {source!r} belongs to {name!r}, which is an adapter as well and no whole model"
        )
    if not is_there and not hub_reachable() and fetch_model_file(base, "config.json") is None:
        raise UnavailableError(
            f"the hub cannot be reached, and the base of the adapter {source!r}, {name!r}, is not in its cache",
            hint=Shell(f"hf download {name}"),
        )
    return base


def _name_it(folder: Path) -> str:
    return f"name its place as base_model_name_or_path in {folder / ADAPTER_CONFIG}"


def fetch_model_file(config: ModelConfig, file: str) -> Path | None:
    """Return a file of a hub model, fetched or in the cache; None if it has no such file, or that is not known."""
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
    # No such model, or no answer, which the loading that follows tells in its own words.
    except (OSError, ValueError, UnavailableError):
        return None
    return None if found is None else Path(found)
