"""Muon for the matrices inside the layers, AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from dialogkit.config.train import TrainConfig
from dialogkit.engine.device import DTYPES
from dialogkit.system.precision import Precision

RATIONAL_STEP = 1.647285, 148.614929, 2364.063302
"""(p, q, r) of x (p + q / (1 + r x^2)); as `benchmarks/muon_coefficients.py` finds them."""


class StackedMuon(Muon):
    """torch's Muon with its iteration in a chosen dtype, which takes matrices of one shape together.

    torch's iteration is in bfloat16, which many CPUs only emulate, and takes one matrix after the other, which
    keeps a GPU waiting: some 20 kernels for each.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], *, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(matrices, **settings)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step as `torch.optim.Muon` does with Nesterov's momentum and rates that match AdamW's."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            iteration = group["ns_coefficients"], group["ns_steps"], group["eps"]
            for matrices in _stacks(group["params"]):
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]  # all have one
                for matrix in matrices:
                    if "momentum_buffer" not in self.state[matrix]:
                        self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
                means: list[torch.Tensor] = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
                torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, means, group["momentum"])
                if self._dtype == torch.float16:  # many gradients are below its smallest number
                    norms = torch._foreach_norm(ahead)
                    ahead = torch._foreach_div(ahead, [norm.clamp(min=group["eps"]) for norm in norms])
                if len(matrices) == 1:  # the kernels for a stack may round differently
                    directions = [orthogonalized(ahead[0].to(self._dtype), *iteration)]
                else:
                    stack = orthogonalized(torch.stack(ahead).to(self._dtype), *iteration)
                    # Laid out like the matrices, so that one kernel adds all of them.
                    directions = list(stack.to(ahead[0].dtype, memory_format=torch.contiguous_format))
                rate = group["lr"]
                torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
                alpha = -0.2 * max(matrices[0].shape) ** 0.5 * rate
                torch._foreach_add_(matrices, directions, alpha=alpha)
        return loss


def most_stacked(device: torch.device) -> int:
    """Return how many numbers a stack of matrices has at most, unless it is a single matrix.

    On a GPU 256 MB in float32, so that a step of a large model needs little memory. On a CPU 4 MB, as larger
    stacks do not fit into its caches.
    """
    return 2**20 if device.type == "cpu" else 2**26


def _stacks(matrices: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return the matrices that have gradients, in lists that are computed together."""
    stacks: list[list[torch.Tensor]] = []
    latest: dict[torch.Size, list[torch.Tensor]] = {}
    for matrix in matrices:
        if matrix.grad is None:
            continue
        stack = latest.get(matrix.shape)
        if stack is None or (len(stack) + 1) * matrix.numel() > most_stacked(matrix.device):
            stack = latest[matrix.shape] = []
            stacks.append(stack)
        stack.append(matrix)
    return stacks


def orthogonalized(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Return matrices of the same singular vectors, with all singular values but the smallest near 1.

    In the matrices' own dtype, and also for a stack of them, [N, rows, columns]. In bf16 and fp16 this is the
    quintic Newton-Schulz iteration of Jordan et al. 2024 as in torch, with `coefficients` and `steps`. In float32
    it is a single step with an inverse, which is faster.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    found = matrices.mT if tall else matrices
    found = found / torch.linalg.vector_norm(found, dim=(-2, -1), keepdim=True).clamp(min=eps)
    if found.dtype == torch.float32 and found.device.type != "mps":  # which may lack the factorisation
        found = _rational_step(found, eps)
    else:
        a, b, c = coefficients
        product: Callable[..., torch.Tensor] = torch.addmm if matrices.ndim == 2 else torch.baddbmm
        for _ in range(steps):
            gram = found @ found.mT
            found = product(found, product(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found


def _rational_step(wide: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x (p + q / (1 + r x^2)) of singular values x, a step of QDWH (Nakatsukasa et al. 2010).

    First they are divided by the fourth root of the sum of their fourth powers, which the largest does not exceed.
    Those from 0.004 to 1 come to 0.58 to 1.71; smaller ones are 150 times what they were.
    """
    p, q, r = RATIONAL_STEP
    gram = wide @ wide.mT
    square = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True).clamp(min=eps)
    wide = wide / square.sqrt()
    gram.mul_(r / square).diagonal(dim1=-2, dim2=-1).add_(1)
    factor, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(wide, factor).mul_(q).add_(wide, alpha=p)


class MuonWithAdamW(Optimizer):
    """Two optimizers that step, save and change their learning rates as one.

    Muon orthogonalizes a matrix's momentum by a Newton-Schulz iteration, which brings its singular values near 1
    (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"); its steps are scaled
    to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982): one learning rate and weight decay serve both.
    """

    # A step that is skipped counts in the schedule of the learning rate, as with AdamW alone: the scaler calls it.
    _step_supports_amp_scaling = True

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both, or neither if a scaler of the loss found a gradient in either that is not finite.

        `closure` recomputes the loss, as in torch; HF passes none.
        """
        loss = None if closure is None else closure()
        assert getattr(self, "grad_scale", None) is None, "gradients must be unscaled before"
        if getattr(self, "found_inf", False):
            return loss
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
    return MuonWithAdamW(
        StackedMuon(
            matrices, dtype=DTYPES[precision], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        AdamW(
            [group for group in others if group["params"]],
            lr=rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        ),
    )
