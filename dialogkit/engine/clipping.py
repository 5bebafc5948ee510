"""The norm of the gradients, and its limit.

On a CPU torch adds the squares of a float32 tensor up in one long sum: of 17 million numbers the norm is 6.5e-4
too small. A part of the tensor, as another process holds it, has another error, and over the limit every later
step has it too.
"""

from collections.abc import Iterable

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dialogkit.distributed.sharding import is_part, own_part

_ROW = 1024
"""Numbers that are summed at once."""


def gradient_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of all gradients as one vector, a scalar; sharded ones count in all processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    held = [own_part(grad) for grad in gradients]
    if not held:
        return torch.zeros(())
    norm: torch.Tensor
    if held[0].device.type == "cpu":
        norm = torch.linalg.vector_norm(torch.stack([_norm(grad) for grad in held]))
    else:
        norm = get_total_norm(held)
    if any(is_part(grad) for grad in gradients):
        squares = norm.square()
        torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
    return norm


def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale gradients whose norm is larger than `max_norm` down to it; return the norm before.

    Source: Pascanu et al. 2013, algorithm 1.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    # On a GPU asking would wait for it; on a CPU a product with 1 takes as long as the norm. Neither hides a NaN.
    if norm.device.type != "cpu" or not norm <= max_norm:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _norm(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1)
    end = len(flat) - len(flat) % _ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, _ROW), dim=1)
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat((rows, flat[end:])))
    return norm
