"""What a run says about its GPU, from the points that it logged."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dialogkit.engine import device
from dialogkit.services.training.gpu_use import GpuUse
from dialogkit.services.training.setup import TrainingSetup
from dialogkit.services.training.summary import warnings
from dialogkit.system.nvidia import Driver
from tests.conftest import typed

GIB = 2**30


@pytest.mark.parametrize(
    ("busy", "peak", "larger"),
    [
        ([0.1, 0.14], 4, 64),  # by its share of the time
        ([0.1, 0.14], 14, 32),  # by memory
        ([0.5, 0.3], 4, 16),
        ([0.6], 4, None),  # twice as many would take longer
        ([0.9], 4, None),
        ([0.1], 70, None),
        ([], 4, None),
    ],
)
def test_a_larger_batch_is_named_where_the_gpu_is_idle_and_has_room(
    busy: list[float], peak: int, larger: int | None
) -> None:
    use = GpuUse()
    use.point({"eval/nats_per_token": 1.0})
    for share in busy:
        memory = {"gpu/memory_peak_bytes": peak * GIB, "gpu/memory_allocated_bytes": 2 * GIB}
        use.point({"gpu/utilization": share, **memory})
    assert use.busy == (pytest.approx(sum(busy) / len(busy)) if busy else None)
    assert use.larger_batch(8, 80 * GIB) == larger


def test_gpus_that_are_not_used_are_reported_once_with_what_to_type(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def advice(hint: Any) -> str:
        return str(typed(SimpleNamespace(hint=hint)))

    config = small_config({"runtime.device": "auto", "runtime.precision": "fp32", "train.batch_size": 4})
    monkeypatch.setattr(device, "nvidia_driver", lambda: Driver(1, (12, 4)))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    setup = TrainingSetup(config, device.resolve_runtime(config.runtime))
    problem = "the NVIDIA driver supports CUDA up to 12.4, and this build of torch needs 13.0"
    assert f"the GPU is not used: {problem}; what helps: dialogkit doctor" in warnings(setup, advice)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    setup.runtime = replace(setup.runtime, device="cuda")
    assert "one GPU is used of several: --devices 2 trains on 2" in warnings(setup, advice)
