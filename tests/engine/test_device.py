"""Device and precision, each selected for a stated reason."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.engine import device
from dialogkit.engine.device import Runtime, resolve_runtime
from dialogkit.errors import UnavailableError
from dialogkit.system.cpu import processor_flags
from dialogkit.system.cpu_threads import CpuThreads, Usage
from tests.conftest import typed


@pytest.fixture(autouse=True)
def threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    idle = CpuThreads(lambda: Usage(0.0, 0.0, 0.0, 3), torch.set_num_threads)
    monkeypatch.setattr("dialogkit.system.cpu_threads.of_process", idle)
    monkeypatch.setattr("dialogkit.system.cpu_threads.usable_cores", lambda: 3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be another machine."""

    def pretend(*, cuda: tuple[int, int] | None = None, mps: bool = False, cpu_flags: str = "") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(device, "processor_flags", lambda: frozenset(cpu_flags.split()))

    return pretend


@pytest.mark.parametrize(
    ("there", "device", "because"),
    [
        ({}, "cpu", "no GPU is available"),
        ({"mps": True}, "mps", "Apple MPS is available"),
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
        ({"cuda": (7, 5)}, "fp32", "compute capability 7.5 has no bf16"),
        ({"cuda": (8, 0)}, "bf16", "compute capability 8.0"),
        ({"cuda": (12, 1)}, "bf16", "compute capability 12.1"),
        ({"mps": True}, "fp32", "MPS"),
        ({"cpu_flags": "avx512_bf16 amx_bf16"}, "bf16", "the CPU has amx_bf16"),
        ({"cpu_flags": "avx2 avx512_bf16"}, "bf16", "the CPU has avx512_bf16"),
        ({"cpu_flags": "avx2 avx512f"}, "fp32", "the CPU has no bf16 arithmetic"),
    ],
)
def test_bf16_is_taken_where_the_hardware_has_it(
    machine: Any, there: dict[str, Any], precision: str, because: str
) -> None:
    machine(**there)
    made = resolve_runtime(RuntimeConfig())
    assert (made.precision, made.precision_reason) == (precision, because)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
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
    ],
)
def test_bf16_that_a_cpu_does_not_have_is_emulated(
    machine: Any, there: dict[str, Any], precision: Any, emulated: bool
) -> None:
    machine(**there)
    assert device.emulates_bf16(resolve_runtime(RuntimeConfig(precision=precision))) == emulated


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
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
