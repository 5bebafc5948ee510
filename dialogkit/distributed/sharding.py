"""A model sharded over the ranks by PyTorch's FSDP2."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from dialogkit.forwards import forwards_replaced


def within_sharded(model: Any) -> Callable[[Callable[[], Any]], Any]:
    """Return a wrapper that runs a function like a forward of a sharded model, so that it can use its modules."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    if "run_within" not in model.__dict__:
        model.run_within = MethodType(lambda self, compute: compute(), model)
        register_fsdp_forward_method(model, "run_within")
    run: Callable[[Callable[[], Any]], Any] = model.run_within
    return run


def inside(module: Any, function: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor) -> torch.Tensor:
    """Call a function as the forward of a module, with the module's hooks, which gather sharded weights."""
    with forwards_replaced([module], lambda _, value: function(value)):
        result: torch.Tensor = module(value)
    return result


def is_sharded(model: Any) -> bool:
    """Return whether this rank has only shards of a model's weights."""
    return any(is_shard(parameter) for parameter in model.parameters())


def is_shard(tensor: torch.Tensor) -> bool:
    """Return whether a weight or gradient is only a shard."""
    return hasattr(tensor, "to_local")


def own_shard(tensor: Any) -> torch.Tensor:
    """Return this rank's shard of a weight or gradient: all of it, if it is not sharded."""
    shard: torch.Tensor = tensor.to_local() if is_shard(tensor) else tensor
    return shard


def gather_weights(model: Any) -> dict[str, Any] | None:
    """Return a sharded model's full weights, on rank 0 only; None if it is not sharded. Every rank calls this."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # Tied weights are saved under their first name only, as transformers does.
    learned = [_own_name(name) for name, _ in model.named_parameters()]
    held = [name for name, _ in model.named_buffers() if name in full]
    return {name: full[name] for name in (*learned, *held)} if full else {}


def _own_name(name: str) -> str:
    """Return the name of a weight without the wrappers of compilation and activation checkpointing."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
