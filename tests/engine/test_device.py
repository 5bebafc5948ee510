"""Device and precision, each selected for a stated reason."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.engine import device
from dialogkit.engine.device import Runtime, float32_as_found, resolve_runtime, unused_gpu, usable_devices
from dialogkit.errors import UnavailableError
from dialogkit.system.cpu import processor_flags
from dialogkit.system.cpu_threads import CpuThreads, Usage
from dialogkit.system.nvidia import Driver
from tests.conftest import typed


@pytest.fixture(autouse=True)
def threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    idle = CpuThreads(lambda: Usage(0.0, 0.0, 0.0, 3), torch.set_num_threads)
    monkeypatch.setattr("dialogkit.system.cpu_threads.of_process", idle)
    monkeypatch.setattr("dialogkit.system.cpu_threads.usable_cores", lambda: 3)
    yield
    torch.set_num_threads(before)


CUDA_12, CUDA_13 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be another machine."""

    def pretend(
        *,
        cuda: tuple[int, int] | None = None,
        kernels: str = CUDA_13,
        driver: Driver | None = None,
        built_for: str | None = None,
        mps: bool = False,
        cpu_flags: str = "",
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(torch.cuda, "get_arch_list", kernels.split)
        monkeypatch.setattr(torch.version, "cuda", built_for)
        monkeypatch.setattr(device, "nvidia_driver", lambda: driver)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(device, "processor_flags", lambda: frozenset(cpu_flags.split()))

    return pretend


@pytest.mark.parametrize(
    ("there", "device", "because"),
    [
        ({}, "cpu", "no GPU is available"),
        ({"mps": True}, "cpu", "Apple MPS is only used if runtime.device is mps"),
        ({"cuda": (9, 0)}, "cuda", "a CUDA device is available"),
        ({"cuda": (9, 0), "mps": True}, "cuda", "a CUDA device is available"),
    ],
)
def test_the_fastest_device_is_taken(machine: Any, there: dict[str, Any], device: str, because: str) -> None:
    machine(**there)
    made = resolve_runtime(RuntimeConfig())
    assert (made.device, made.device_reason) == (device, because)


def test_accelerate_launch_can_ask_for_the_cpu(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=(9, 0))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    made = resolve_runtime(RuntimeConfig())
    assert (made.device, made.device_reason) == ("cpu", "ACCELERATE_USE_CPU")


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_requested_device_that_is_there_is_taken(machine: Any, device: Any) -> None:
    machine(cuda=(8, 0), mps=True)
    made = resolve_runtime(RuntimeConfig(device=device))
    assert (made.device, made.device_reason) == (device, "requested")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_requested_device_that_is_not_there_is_an_error_with_the_way_out(machine: Any, device: Any) -> None:
    machine()
    with pytest.raises(UnavailableError) as error:
        resolve_runtime(RuntimeConfig(device=device))
    assert device.upper() in error.value.message
    assert (typed(error.value), error.value.exit_code) == ("--no-cuda", 2)


@pytest.mark.parametrize(
    ("there", "precision", "because"),
    [
        ({"cuda": (6, 1), "kernels": CUDA_12}, "fp32", "compute capability 6.1 has no bf16"),
        ({"cuda": (7, 0), "kernels": CUDA_12}, "fp16", "compute capability 7.0 has fp16 and no bf16"),
        ({"cuda": (7, 5)}, "fp16", "compute capability 7.5 has fp16 and no bf16"),
        ({"cuda": (8, 0)}, "bf16", "compute capability 8.0"),
        ({"cuda": (12, 1)}, "bf16", "compute capability 12.1"),
        ({"cpu_flags": "avx512_bf16 amx_bf16"}, "bf16", "the CPU has amx_bf16"),
        ({"cpu_flags": "avx2 avx512_bf16"}, "bf16", "the CPU has avx512_bf16"),
        ({"cpu_flags": "avx2 avx512f"}, "fp32", "the CPU has no bf16 arithmetic"),
    ],
)
def test_the_fastest_precision_that_the_hardware_has_is_taken(
    machine: Any, there: dict[str, Any], precision: str, because: str
) -> None:
    machine(**there)
    made = resolve_runtime(RuntimeConfig())
    assert (made.precision, made.precision_reason) == (precision, because)


@pytest.mark.parametrize(
    ("capability", "kernels", "device", "precision"),
    [
        ((6, 0), CUDA_12, "cuda", "fp32"),  # P100
        ((6, 0), CUDA_13, "cpu", "fp32"),
        ((7, 0), CUDA_12, "cuda", "fp16"),  # V100
        ((7, 0), CUDA_13, "cpu", "fp32"),
        ((7, 5), CUDA_13, "cuda", "fp16"),  # T4
        ((8, 6), CUDA_13, "cuda", "bf16"),
        ((8, 9), CUDA_13, "cuda", "bf16"),  # L4 runs what is made for 8.6
        ((9, 0), "sm_90a", "cuda", "bf16"),
        ((10, 0), CUDA_12, "cpu", "fp32"),  # B200
        ((10, 3), CUDA_13, "cuda", "bf16"),
        ((12, 1), CUDA_13, "cuda", "bf16"),
        ((13, 0), CUDA_13, "cuda", "bf16"),  # from the intermediate code
        ((12, 1), "sm_90a sm_120a", "cpu", "fp32"),
    ],
)
def test_a_gpu_is_used_if_torch_was_compiled_for_it(
    machine: Any, capability: tuple[int, int], kernels: str, device: Any, precision: str
) -> None:
    machine(cuda=capability, kernels=kernels)
    made = resolve_runtime(RuntimeConfig())
    assert (made.device, made.precision) == (device, precision)
    version = ".".join(map(str, capability))
    reason = f"this build of torch has no kernels for the a GPU (compute capability {version})"
    assert unused_gpu(made) == (reason if device == "cpu" else None)
    if device == "cpu":
        with pytest.raises(UnavailableError, match="CUDA was requested, but this build of torch has no") as error:
            resolve_runtime(RuntimeConfig(device="cuda"))
        assert typed(error.value) == "dialogkit doctor, or: --no-cuda"


@pytest.mark.parametrize(
    ("built_for", "driver", "why"),
    [
        (None, Driver(1, (13, 0)), "this build of torch uses no NVIDIA GPU"),
        ("13.0", Driver(1, (12, 4)), "driver supports CUDA up to 12.4, and this build of torch needs 13.0"),
        ("12.6", Driver(2, (12, 4)), "torch finds no CUDA device, but the NVIDIA driver does"),
        ("13.0", Driver(0, (13, 0)), None),  # hidden by CUDA_VISIBLE_DEVICES
        ("13.0", None, None),
    ],
)
def test_a_gpu_that_torch_does_not_find_is_explained(
    machine: Any, built_for: str | None, driver: Driver | None, why: str | None
) -> None:
    machine(built_for=built_for, driver=driver)
    made = resolve_runtime(RuntimeConfig())
    assert made.device == "cpu"
    assert (why or "no GPU is available") in made.device_reason
    assert (unused_gpu(made) is None) == (why is None)
    assert unused_gpu(resolve_runtime(RuntimeConfig(device="cpu"))) is None


def test_memory_for_batches_of_any_size_is_asked_of_cuda_unless_the_user_has_set_it(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in (names := ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    machine(cuda=(9, 0), built_for="13.0")
    resolve_runtime(RuntimeConfig(device="cpu"))
    assert not any(name in os.environ for name in names)
    resolve_runtime(RuntimeConfig())
    assert os.environ.pop("PYTORCH_ALLOC_CONF") == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    resolve_runtime(RuntimeConfig())
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_gpus_that_could_share_a_batch_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpu = Runtime("cuda", "", "", "fp32", "")
    assert [usable_devices(gpu, size) for size in (1, 6, 8)] == [1, 3, 4]
    assert usable_devices(replace(gpu, processes=2), 8) == usable_devices(replace(gpu, device="cpu"), 8) == 1


def test_a_compiled_model_leaves_the_precision_of_float32_as_it_was() -> None:
    backends: Any = torch.backends
    matmul = backends.cuda.matmul
    before = backends.fp32_precision, matmul.fp32_precision, matmul.allow_tf32
    with float32_as_found():  # as HF's arguments and accelerate do for torch.compile
        backends.fp32_precision = "tf32"
        matmul.allow_tf32 = True
    assert (backends.fp32_precision, matmul.fp32_precision, matmul.allow_tf32) == before


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("there", [{"cuda": (9, 0)}, {"cpu_flags": "amx_bf16"}, {}])
def test_a_requested_precision_is_taken(machine: Any, there: dict[str, Any], precision: Any) -> None:
    machine(**there)
    made = resolve_runtime(RuntimeConfig(precision=precision))
    assert (made.precision, made.precision_reason) == (precision, "requested")


@pytest.mark.parametrize(
    ("there", "precision", "emulated"),
    [
        ({"cpu_flags": "avx2"}, "bf16", True),
        ({"cpu_flags": "avx2"}, "fp32", False),
        ({"cpu_flags": "avx512_bf16"}, "bf16", False),
        ({"cuda": (7, 5), "cpu_flags": "avx2"}, "bf16", False),
        ({"cpu_flags": "avx512_bf16"}, "fp16", True),
        ({"cpu_flags": "avx512_fp16"}, "fp16", False),
        ({}, "fp16", False),  # a system that reports no flags
    ],
)
def test_a_precision_that_a_cpu_does_not_have_is_emulated(
    machine: Any, there: dict[str, Any], precision: Any, emulated: bool
) -> None:
    machine(**there)
    assert device.is_emulated(resolve_runtime(RuntimeConfig(precision=precision))) == emulated


@pytest.mark.parametrize(("precision", "dtype"), device.DTYPES.items())
def test_autocast_gives_matrix_products_the_precision_of_the_run(precision: Any, dtype: torch.dtype) -> None:
    ones = torch.ones(2, 2)
    with Runtime("cpu", "", "", precision, "").autocast():
        assert (ones @ ones).dtype == dtype


def test_threads_are_set_and_reported() -> None:
    made = resolve_runtime(RuntimeConfig(device="cpu", threads=3))
    assert torch.get_num_threads() == 3
    assert made.device_name.endswith(", 3 threads")


def test_without_a_request_the_threads_are_left_alone() -> None:
    torch.set_num_threads(2)
    resolve_runtime(RuntimeConfig(device="cpu"))
    assert torch.get_num_threads() == 2


def test_the_flags_of_this_cpu_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu sse avx512_bf16\n\nprocessor\t: 1\n")
    monkeypatch.setattr("builtins.open", lambda path, **options: info.open(**options))
    assert {"sse", "avx512_bf16"} <= processor_flags()
    assert resolve_runtime(RuntimeConfig(device="cpu")).device_name.startswith("A CPU, ")


def test_a_system_that_reports_nothing_has_no_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("builtins.open", lambda path, **options: (tmp_path / "none").open(**options))
    assert processor_flags() == frozenset()
    made = resolve_runtime(RuntimeConfig(device="cpu"))
    assert made.precision == "fp32"
    assert not made.device_name.startswith(",")
