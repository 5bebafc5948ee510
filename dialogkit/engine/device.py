"""Select device and precision, each with a reason."""

import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.distributed import process_group
from dialogkit.distributed.rank import is_true
from dialogkit.errors import UnavailableError
from dialogkit.hints import Change
from dialogkit.system import cpu_threads
from dialogkit.system.cpu import processor_flags, processor_name

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes."""

    device: Literal["cpu", "cuda", "mps"]
    device_name: str
    device_reason: str
    precision: Precision
    precision_reason: str
    processes: int = 1
    """Processes that train together, one per device."""
    sharding: Literal["none", "fsdp"] = "none"
    """Whether each of them stores only its shard of the model in training."""

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products have the run's precision."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def resolve_runtime(config: RuntimeConfig) -> Runtime:
    """Return device and precision for a request, and choose the number of CPU threads.

    Raises: UnavailableError if the requested device is not available.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, device_reason = _device(config.device)
    alone = process_group.world_size() == 1  # several processes share the cores already
    cpu_threads.start(adaptive=device == "cpu" and config.threads is None and alone)
    precision, precision_reason = _precision(config.precision, device)
    return Runtime(
        device,
        _device_name(device),
        device_reason,
        precision,
        precision_reason,
        process_group.world_size(),
        config.sharding if process_group.is_initialized() else "none",
    )


def _device(request: Literal["auto", "cpu", "cuda", "mps"]) -> tuple[Literal["cpu", "cuda", "mps"], str]:
    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if request != "auto":
        if not available[request]():
            name = "CUDA" if request == "cuda" else "Apple MPS"
            raise UnavailableError(f"no {name} device is available", hint=Change({"runtime.device": "cpu"}))
        return request, "requested"
    if is_true("ACCELERATE_USE_CPU"):
        return "cpu", "ACCELERATE_USE_CPU"
    if torch.cuda.is_available():
        return "cuda", "a CUDA device is available"
    if torch.backends.mps.is_available():
        return "mps", "Apple MPS is available"
    return "cpu", "no GPU is available"


def _precision(request: Literal["auto", "fp32", "bf16"], device: str) -> tuple[Precision, str]:
    if request != "auto":
        return request, "requested"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return "bf16", f"compute capability {major}.{minor}"
        return "fp32", f"compute capability {major}.{minor} has no bf16"
    if device == "cpu":
        for flag in ("amx_bf16", "avx512_bf16"):
            if flag in processor_flags():
                return "bf16", f"the CPU has {flag}"
        return "fp32", "the CPU has no bf16 arithmetic"
    return "fp32", "MPS"


def emulates_bf16(runtime: Runtime) -> bool:
    """Return whether a run uses bf16 on a CPU without bf16 arithmetic, which is many times slower."""
    if runtime.device != "cpu" or runtime.precision != "bf16":
        return False
    # Not every system reports the flags.
    return bool(processor_flags()) and _precision("auto", "cpu")[0] == "fp32"


def _device_name(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    # Compared with the record when a run resumes, so its form must stay.
    return f"{processor_name()}, {cpu_threads.of_process.most} threads"


def gpu_info(device: str) -> dict[str, Any] | None:
    """Return name, count, memory, compute capability and software of the GPU in use; None without a GPU."""
    if device != "cuda":
        return None
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver_version(),
    }


def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=5)
        return done.stdout.strip() or None
    return None
