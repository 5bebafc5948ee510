"""A model of which each process holds a part, as PyTorch's FSDP2 shares it out."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch


def within_sharded(model: Any) -> Callable[[Callable[[], Any]], Any]:
    """Return what runs a function that uses a sharded model's modules, as if it were a forward of the model."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    if "run_within" not in model.__dict__:
        model.run_within = MethodType(lambda self, compute: compute(), model)
        register_fsdp_forward_method(model, "run_within")
    run: Callable[[Callable[[], Any]], Any] = model.run_within
    return run


def is_sharded(model: Any) -> bool:
    """Return whether this process holds only a part of a model's weights."""
    return any(is_part(parameter) for parameter in model.parameters())


def is_part(tensor: torch.Tensor) -> bool:
    """Return whether this process holds only a part of a weight, or of its gradient."""
    return hasattr(tensor, "to_local")


def own_part(tensor: Any) -> torch.Tensor:
    """Return what this process holds of a weight or a gradient: all of it, if it is not sharded."""
    part: torch.Tensor = tensor.to_local() if is_part(tensor) else tensor
    return part


def gather_weights(model: Any) -> dict[str, Any] | None:
    """Return a sharded model's full weights, on rank 0 alone; None for another model. Every rank calls this."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # Of weights that two modules share, the first name; a folder of transformers has no other.
    learned = [_own_name(name) for name, _ in model.named_parameters()]
    held = [name for name, _ in model.named_buffers() if name in full]
    return {name: full[name] for name in (*learned, *held)} if full else {}


def _own_name(name: str) -> str:
    """Return the name of a weight without wrappers: of a compiled model, of layers that are computed again."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
