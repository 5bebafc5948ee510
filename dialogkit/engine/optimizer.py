"""Muon for the matrices inside the layers, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from dialogkit.config.train import TrainConfig
from dialogkit.engine.device import Precision


class Float32Muon(Muon):
    """torch's Muon with its iteration in float32; torch's is in bfloat16, which many CPUs only emulate."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step as `torch.optim.Muon` does with Nesterov's momentum and rates that match AdamW's."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            iteration = group["ns_coefficients"], group["ns_steps"], group["eps"]
            for matrix in group["params"]:
                if (gradient := matrix.grad) is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                direction = orthogonalized(gradient.lerp(mean, group["momentum"]), *iteration)
                rate = group["lr"]
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * max(matrix.shape) ** 0.5 * rate)
        return loss


def orthogonalized(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Return a matrix of the same singular vectors, with all singular values near 1 (0.5 to 1.5).

    The quintic Newton-Schulz iteration of Jordan et al. 2024 as in torch, but in the matrix's own dtype.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found


class MuonWithAdamW(Optimizer):
    """Two optimizers that step, save and change their learning rates as one.

    Muon orthogonalizes a matrix's momentum by a Newton-Schulz iteration, which brings its singular values near 1
    (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"); its steps are scaled
    to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982): one learning rate and weight decay serve both.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both. `closure` recomputes the loss, as in torch; HF passes none."""
        loss = None if closure is None else closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"parts": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        for optimizer, state in zip(self.optimizers, state_dict["parts"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def muon_matrices(model: Any) -> list[torch.nn.Parameter]:
    """Return the weights that Muon trains: the matrices that learn, without the embeddings."""
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    if hasattr(model.base_model, "wpe"):
        embeddings.append(model.base_model.wpe)
    outside = {id(p) for module in embeddings if module is not None for p in module.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in outside]


def muon_with_adamw(
    model: Any, decayed: Iterable[str], config: TrainConfig, precision: Precision
) -> MuonWithAdamW:
    """Return the optimizer of a model; `decayed` names the parameters with weight decay."""
    decayed, matrices = set(decayed), muon_matrices(model)
    by_muon = {id(matrix) for matrix in matrices}
    decays: list[torch.nn.Parameter] = []
    keeps: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in by_muon:
            (decays if name in decayed else keeps).append(parameter)
    others = [{"params": decays, "weight_decay": config.weight_decay}, {"params": keeps, "weight_decay": 0.0}]
    rate, decay = config.learning_rate, config.weight_decay
    kind = Muon if precision == "bf16" else Float32Muon
    return MuonWithAdamW(
        kind(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(
            [group for group in others if group["params"]],
            lr=rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        ),
    )
