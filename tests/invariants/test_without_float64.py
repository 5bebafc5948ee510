"""Apple's GPUs have no float64: what runs on a device uses none, and figures are summed on the CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dialogkit.data.collate import collate_dialogs
from dialogkit.engine.attention import use_packed_attention
from dialogkit.engine.clipping import clip_gradients
from dialogkit.engine.histograms import histogram
from dialogkit.engine.loss import TokenCounter, install_dialog_loss


class Device(TorchDispatchMode):
    """Makes `meta` a device without float64, whose tensors are zeros once they are copied to the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0 if args[0].is_floating_point() else 1
        made = func(*args, **kwargs)
        for leaf in tree_leaves((args, made)):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise TypeError(f"{func}: the device does not support float64")
        return made


def test_scores_are_summed_on_the_cpu(small: Any) -> None:
    model = small.model().to("meta")
    with Device():
        figures = small.score(model, small.evaluation.select(range(3)), device="meta").figures()
    assert figures["nats_per_token"] == 0


def test_histograms_are_taken_on_the_cpu() -> None:
    with Device():
        taken = histogram(torch.ones(9_000, device="meta"))
    assert taken is not None
    assert taken.counts.sum() == 3_000


def test_the_gradients_of_a_step_need_none(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no `meta`
    model = small.model()
    use_packed_attention(model)
    model.to("meta")
    install_dialog_loss(model, dtype=torch.bfloat16, counter=TokenCounter())
    with Device():
        batch = collate_dialogs([small.train[0], small.train[1]])
        on_device = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        model(**on_device)["loss"].backward()
        clip_gradients(model.parameters(), 1.0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_stand_in_refuses_float64() -> None:
    attempts: list[Callable[[], Any]] = [
        lambda: torch.ones(2, device="meta").double(),
        lambda: torch.zeros(2, device="meta", dtype=torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64).to("meta"),
    ]
    for attempt in attempts:
        with Device(), pytest.raises(TypeError, match="does not support float64"):
            attempt()
    with Device():
        assert torch.ones(2, device="meta").cpu().double().tolist() == [0, 0]
