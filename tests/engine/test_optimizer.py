"""Muon for matrices and AdamW for the rest are one optimizer."""

import copy
from typing import Any

import pytest
import torch
from torch.optim import AdamW, Muon

from dialogkit.config.load import load_run_config
from dialogkit.config.train import TrainConfig
from dialogkit.engine.optimizer import MuonWithAdamW, muon_with_adamw
from dialogkit.models.build import build_model
from dialogkit.models.tokenizer import load_tokenizer
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
    optimizer = muon_with_adamw(model, [n for n, p in model.named_parameters() if p.ndim == 2], CONFIG)
    names = {id(p): n for n, p in model.named_parameters()}
    muon, *others = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert muon
    assert all("layers." in name or ".h." in name for name in muon)
    rest = [name for group in others for name in group]
    assert any("embed" in name or "wte" in name for name in rest)
    assert sorted(muon + rest) == sorted(names.values())


def test_a_step_is_that_of_the_two_optimizers() -> None:
    model = make_model("llama")
    twin = copy.deepcopy(model)
    decayed = [n for n, p in model.named_parameters() if p.ndim == 2]
    optimizer = muon_with_adamw(model, decayed, CONFIG)
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
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_schedule_reaches_both_and_a_restored_state_goes_on_the_same() -> None:
    def steps(model: Any, optimizer: MuonWithAdamW, scheduler: Any, seeds: range) -> None:
        for seed in seeds:
            give_gradients(model, seed)
            optimizer.step()
            scheduler.step()

    def make(model: Any) -> tuple[MuonWithAdamW, Any]:
        optimizer = muon_with_adamw(model, [], CONFIG)
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
