"""Muon for matrices and AdamW for the rest are one optimizer."""

import copy
from typing import Any

import pytest
import torch
from torch.optim import AdamW, Muon, _muon

from dialogkit.config.load import load_run_config
from dialogkit.config.train import TrainConfig
from dialogkit.engine.device import DTYPES
from dialogkit.engine.optimizer import RATIONAL_STEP, MuonWithAdamW, muon_matrices, muon_with_adamw, orthogonalized
from dialogkit.models.build import build_model
from dialogkit.models.tokenizer import load_tokenizer
from dialogkit.system.precision import Precision
from tests.conftest import TINY

CONFIG = TrainConfig(optimizer="muon", learning_rate=1e-2, weight_decay=0.1)


def make_model(architecture: str) -> Any:
    config = load_run_config("custom-nano", overrides={**TINY, "model.architecture": architecture}).model
    return build_model(config, load_tokenizer(config), seed=1, dropout=0.0)


def give_gradients(model: Any, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_matrices_of_layers_are_muons_and_all_else_is_adamws(architecture: str) -> None:
    model = make_model(architecture)
    optimizer = muon_with_adamw(model, [n for n, p in model.named_parameters() if p.ndim == 2], CONFIG, "fp32")
    names = {id(p): n for n, p in model.named_parameters()}
    muon, *others = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert muon
    assert all("layers." in name or ".h." in name for name in muon)
    rest = [name for group in others for name in group]
    assert any("embed" in name or "wte" in name for name in rest)
    assert sorted(muon + rest) == sorted(names.values())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_is_that_of_the_two_optimizers(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    if precision == "fp32":  # torch has but the iteration in bf16
        monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", orthogonalized)
    monkeypatch.setattr("dialogkit.engine.optimizer.most_stacked", lambda _: 0)  # torch takes each matrix alone
    model = make_model("llama")
    twin = copy.deepcopy(model)
    decayed = [n for n, p in model.named_parameters() if p.ndim == 2]
    optimizer = muon_with_adamw(model, decayed, CONFIG, precision)
    inside = [p for n, p in twin.named_parameters() if p.ndim == 2 and "layers." in n]
    outside = [p for n, p in twin.named_parameters() if p.ndim == 2 and "layers." not in n]
    norms = [p for p in twin.parameters() if p.ndim != 2]
    muon = Muon(inside, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": outside, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for seed in range(3):
        give_gradients(model, seed)
        give_gradients(twin, seed)
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, ours), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 48), (48, 160), (160, 48)])
def test_a_direction_has_the_singular_vectors_of_the_matrix_and_values_near_one(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(-2, 0, 48)
    matrix = left * values @ right
    direction = orthogonalized(matrix.to(dtype), (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    along = left.T @ direction @ right.T
    assert torch.allclose(along, along.diag().diag(), atol=1e-3 if dtype == torch.float32 else 0.1)
    least, most = (0.57, 1.72) if dtype == torch.float32 else (0.6, 1.3)
    assert least < along.diag().min() < along.diag().max() < most


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_the_step_with_an_inverse_is_that_of_its_formula(scale: float) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 48, 64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    x = values / values.pow(4).sum(1, keepdim=True).pow(0.25)
    p, q, r = RATIONAL_STEP
    expected = left * (x * (p + q / (1 + r * x**2)))[:, None] @ right
    for part, wanted in ((matrices, expected), (matrices.mT, expected.mT)):
        found = orthogonalized(part * scale, (3.4445, -4.7750, 2.0315), 5, 1e-38)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert not orthogonalized(torch.zeros(2, 8, 8), (3.4445, -4.7750, 2.0315), 5, 1e-7).any()


def test_the_iteration_has_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def reported(matrices: torch.Tensor, *iteration: Any) -> torch.Tensor:
        seen.append(matrices.dtype)
        return orthogonalized(matrices, *iteration)

    monkeypatch.setattr("dialogkit.engine.optimizer.orthogonalized", reported)
    model = make_model("llama")
    give_gradients(model, 0)
    for precision, dtype in DTYPES.items():
        optimizer = muon_with_adamw(model, [], CONFIG, precision)
        optimizer.step()
        assert set(seen) == {dtype}
        seen.clear()


def test_gradients_below_the_smallest_number_of_fp16_give_the_directions_of_bf16() -> None:
    models = [make_model("llama") for _ in range(2)]
    before = [p.detach().clone() for p in muon_matrices(models[0])]
    for model, precision in zip(models, ("fp16", "bf16"), strict=True):
        give_gradients(model, 0)
        for parameter in model.parameters():
            parameter.grad *= 1e-7
        muon_with_adamw(model, [], CONFIG, precision).step()  # type: ignore[arg-type]
    for start, ours, theirs in zip(before, *map(muon_matrices, models), strict=True):
        assert (ours - theirs).norm() < 0.05 * (theirs - start).norm()


def test_a_schedule_reaches_both_and_a_restored_state_continues_the_same() -> None:
    def steps(model: Any, optimizer: MuonWithAdamW, scheduler: Any, seeds: range) -> None:
        for seed in seeds:
            give_gradients(model, seed)
            optimizer.step()
            scheduler.step()

    def make(model: Any) -> tuple[MuonWithAdamW, Any]:
        optimizer = muon_with_adamw(model, [], CONFIG, "fp32")
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))

    model = make_model("llama")
    optimizer, scheduler = make(model)
    steps(model, optimizer, scheduler, range(2))
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-2 / 3)] * 2
    twin = copy.deepcopy(model)
    other, other_scheduler = make(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_scheduler.load_state_dict(scheduler.state_dict())
    steps(model, optimizer, scheduler, range(2, 5))
    steps(twin, other, other_scheduler, range(2, 5))
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("most", [2**26, 3 * 32 * 32])
def test_matrices_of_one_shape_take_the_steps_together_that_they_take_alone(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[int] = []

    def reported(matrices: torch.Tensor, *iteration: Any) -> torch.Tensor:
        stacks.append(len(matrices) if matrices.ndim == 3 else 1)
        return orthogonalized(matrices, *iteration)

    monkeypatch.setattr("dialogkit.engine.optimizer.orthogonalized", reported)
    alone = make_model("llama")
    together = copy.deepcopy(alone)
    single, stacked = (muon_with_adamw(model, [], CONFIG, "fp32") for model in (alone, together))
    previous: dict[str, Any] = {}
    for step in range(3):
        give_gradients(alone, step)
        give_gradients(together, step)
        single.step()
        with monkeypatch.context() as patch:
            patch.setattr("dialogkit.engine.optimizer.most_stacked", lambda _: most)
            stacks.clear()
            if step == 1:  # what was saved by the one is loaded by the other
                stacked.load_state_dict(previous)
            stacked.step()
        previous = copy.deepcopy(single.state_dict())
        for (name, ours), theirs in zip(together.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    # Eight matrices of attention, four that widen and two that narrow, in two layers.
    assert set(stacks) == ({8, 4, 2} if most == 2**26 else {3, 2, 1})
    groups, others = (optimizer.state_dict()["parts"][0]["param_groups"] for optimizer in (single, stacked))
    assert groups == others
