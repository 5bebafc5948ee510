"""Gradient norm and clipping.

On a CPU torch adds up the squares of a float32 tensor in one long sum: for 17 million numbers the norm is 6.5e-4
too small. A shard of the tensor has a different error, which clipping would carry into every later step.
"""

from collections.abc import Iterable

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dialogkit.distributed.sharding import is_shard, own_shard

_ROW = 1024
"""Numbers that are summed at once."""


def gradient_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of all gradients as one vector, a scalar; that of shards over all ranks."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [own_shard(grad) for grad in gradients]
    if not local:
        return torch.zeros(())
    norm: torch.Tensor
    if local[0].device.type == "cpu":
        norm = torch.linalg.vector_norm(torch.stack([_norm(grad) for grad in local]))
    else:
        norm = get_total_norm(local)
    if any(is_shard(grad) for grad in gradients):
        squares = norm.square()
        torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
    return norm


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale gradients down to a norm of at most `max_norm`; return the norm before.

    Source: Pascanu et al. 2013, algorithm 1.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    # Comparing would synchronize a GPU; on a CPU multiplying by 1 takes as long as the norm. Neither hides a NaN.
    if norm.device.type != "cpu" or not norm <= max_norm:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _norm(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1)
    end = len(flat) - len(flat) % _ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, _ROW), dim=1)
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat((rows, flat[end:])))
    return norm
