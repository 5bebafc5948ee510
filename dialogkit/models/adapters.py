"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685), with peft: small matrices beside frozen linear layers.

Adapted models stay plain transformers classes: their linear layers are wrapped in place. Merging adds the product
of the matrices to the weights and restores the layers. Only two files of an adapter's folder are read, its JSON
and its safetensors; peft itself would load a pickle, import a module that a config names, and match its patterns.
"""

import os
import warnings
from collections.abc import Iterable
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch

from dialogkit.config.model import ModelConfig
from dialogkit.config.train import TrainConfig
from dialogkit.errors import ConfigError, ModelError, did_you_mean
from dialogkit.hints import Change
from dialogkit.models.adapter_source import (
    ADAPTER_WEIGHTS,
    Adapter,
    find_adapter,
    model_file,
    require_peft,
    set_base,
)
from dialogkit.models.sources import find_gguf, local_source, unusable

_DIGEST = "base_sha256"
"""The header entry of an adapter's weights that identifies the base it was trained on."""


def add_adapter(model: Any, config: TrainConfig, source: ModelConfig) -> None:
    """Add LoRA matrices to a model, in place, and freeze everything else.

    The seed initializes the first matrix of each pair; the second starts at zero. An adapter records the `source`
    of its model's weights.

    Raises: UnavailableError without peft; ConfigError for a target that is not a linear layer, or if the
    adapter is to be kept and its base is an adapter too.
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
                f"train.lora_targets: {target!r} is not a linear layer of {source.name}"
                f"{did_you_mean(target, suffixes)}; it has {', '.join(suffixes)}",
                hint=Change({"train.lora_targets": suffixes[:2]}),
            )
    targets = sorted(config.lora_targets) or [name for name in suffixes if name not in _untouchable(model)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # not those of devices, which would not be restored
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


def merge_into(model: Any, adapter: Adapter) -> None:
    """Merge an adapter into its base model.

    Raises: ModelError if it was trained on other weights or is damaged; UnavailableError without peft.
    """
    from safetensors import safe_open

    require_peft()
    place = str(adapter.folder)
    try:
        with safe_open(adapter.folder / ADAPTER_WEIGHTS, framework="pt") as file:
            trained_on = (file.metadata() or {}).get(_DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:
        raise unusable(place, error) from None
    if trained_on is not None and trained_on != digest_of(adapter.base):
        raise ModelError(
            f"the adapter {place!r} was trained on other weights than {adapter.base.source!r} holds now",
            hint=f"restore them, or {set_base(adapter.folder)}",
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
