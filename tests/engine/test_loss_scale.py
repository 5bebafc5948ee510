"""In fp16 the loss is scaled, and a step whose gradients overflow is skipped by the whole optimizer."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.config.train import TrainConfig
from dialogkit.engine import loss_scale
from dialogkit.engine.loss_scale import LossScaler
from dialogkit.engine.schedule import StepSchedule
from dialogkit.errors import DivergedError
from tests.conftest import typed

SETTINGS: dict[str, Any] = {
    "max_steps": 4, "batch_size": 4, "learning_rate": 3e-3, "log_every_steps": 1, "keep": "last",
    "eval_every_steps": 100,
}  # fmt: skip


def train(small: Any, folder: Path, precision: str, *, model: Any = None, **settings: Any) -> Any:
    """Return the model, the logged points and the result of a few steps."""
    points: list[dict[str, float]] = []
    model = model or small.model()
    fitted = small.fit(
        model, small.train, folder=folder, precision=precision, sink=lambda _, p: points.append(p),
        **SETTINGS | settings,
    )  # fmt: skip
    return model, points, fitted


def curve(points: list[dict[str, float]], name: str) -> list[float]:
    return [point[f"train/{name}"] for point in points if f"train/{name}" in point]


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "muon"}, {"optimizer": "adamw", "max_grad_norm": 0.0}],
    ids=["muon", "adamw, nothing clipped"],
)
def test_a_run_in_fp16_is_near_that_in_float32(small: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    model, half, fitted = train(small, tmp_path / "half", "fp16", **settings)
    _, exact, unscaled = train(small, tmp_path / "exact", "fp32", **settings)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # The norm is not scaled. Muon's iteration in fp16 is not the one in float32.
    norms_apart = 3e-2 if settings["optimizer"] == "muon" else 2e-2
    for name, apart in (("loss", 2e-3), ("grad_norm", norms_apart), ("learning_rate", 0.0)):
        assert curve(half, name) == pytest.approx(curve(exact, name), rel=apart, abs=0), name
    assert curve(half, "loss") != curve(exact, "loss")
    assert (fitted.skipped_steps, unscaled.skipped_steps) == (0, None)
    assert curve(half, "skipped_steps") == [0] * 4


@pytest.mark.parametrize(
    ("optimizer", "of"), [("muon", "a matrix"), ("muon", "the embeddings"), ("adamw", "a matrix")]
)
def test_a_step_with_an_overflow_changes_no_weight_and_the_run_goes_on(
    small: Any, tmp_path: Path, optimizer: str, of: str
) -> None:
    model, calls = small.model(), list[int]()
    weight = (
        model.get_input_embeddings().weight
        if of == "the embeddings"
        else next(iter(model.base_model.layers)).mlp.up_proj.weight
    )

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == 2 else gradient

    weight.register_hook(overflow)
    taken: list[dict[str, torch.Tensor]] = []
    real = LossScaler.update

    def update(scaler: LossScaler, *args: Any) -> None:
        real(scaler, *args)
        taken.append({name: part.detach().clone() for name, part in model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossScaler, "update", update)
        _, points, fitted = train(small, tmp_path / "run", "fp16", model=model, optimizer=optimizer)
    assert len(taken) == 4
    same = [{n for n in taken[0] if torch.equal(before[n], after[n])} for before, after in pairwise(taken)]
    assert same == [taken[0].keys(), set(), set()]
    assert curve(points, "skipped_steps") == [0, 1, 1, 1]
    assert [len(curve([point], "grad_norm")) for point in points if "train/loss" in point] == [1, 0, 1, 1]
    factor = StepSchedule(TrainConfig.model_validate(SETTINGS), SETTINGS["max_steps"], from_zero=False)
    assert curve(points, "learning_rate") == [3e-3 * factor(step) for step in range(4)]  # it follows the steps
    assert (fitted.steps, fitted.skipped_steps) == (4, 1)


def test_a_scaler_resumes_with_its_scale_and_its_count() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter])
    scalers = [LossScaler("cpu"), LossScaler("cpu")]

    def step(scaler: LossScaler, factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(parameter.sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    for factor in (1.0, float("inf"), float("nan"), 1.0):
        step(scalers[0], factor)
    assert (scalers[0].skipped_steps, scalers[0].skipped_last_step, scalers[0].has_collapsed) == (2, False, False)
    scalers[1].load_state_dict(scalers[0].state_dict())
    for scaler in scalers:
        step(scaler, float("inf"))
    assert scalers[0].state_dict() == scalers[1].state_dict()
    assert scalers[0].state_dict()["scale"] == 2.0**13
    for _ in range(14):
        assert not scaler.has_collapsed
        step(scaler, float("inf"))
    assert (scaler.skipped_steps, scaler.has_collapsed) == (17, True)


@pytest.mark.parametrize(
    ("gradient", "loss", "problem"),
    [
        (float("nan"), 1.0, "gradients overflow at any scale at step 2 "),
        (1.0, float("nan"), "loss is nan at step 1 "),
    ],
)
def test_a_run_that_no_scale_helps_ends_with_the_precision_that_does(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: float, loss: float, problem: str
) -> None:
    monkeypatch.setattr(loss_scale, "COLLAPSED", 2.0**15)  # after two steps in place of seventeen
    model = small.model()
    model.base_model.norm.weight.register_hook(lambda found: found * gradient)
    model.base_model.norm.register_forward_hook(lambda norm, _, hidden: hidden * (loss if norm.training else 1))
    with pytest.raises(DivergedError) as error:
        train(small, tmp_path, "fp16", model=model)
    assert problem in error.value.message
    assert error.value.message.endswith("(learning rate 0.003, fp16)")
    assert typed(error.value) == "--set runtime.precision=fp32, or: --lr 0.001"
