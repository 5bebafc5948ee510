"""Decides device and precision, each with its reason."""

import platform
from dataclasses import dataclass
from typing import Literal

import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.errors import UnavailableError


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes."""

    device: Literal["cpu", "cuda", "mps"]
    device_name: str
    device_reason: str
    precision: Literal["fp32", "bf16"]
    precision_reason: str

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products have the run's precision."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def resolve_runtime(config: RuntimeConfig) -> Runtime:
    """Return device and precision for a request, and set the number of CPU threads.

    Raises: UnavailableError if a requested device is not there.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, device_reason = _device(config.device)
    precision, precision_reason = _precision(config.precision, device)
    return Runtime(device, _device_name(device), device_reason, precision, precision_reason)


def _device(request: str) -> tuple[Literal["cpu", "cuda", "mps"], str]:
    match request:
        case "cpu":
            return "cpu", "requested"
        case "cuda":
            if not torch.cuda.is_available():
                raise UnavailableError("no CUDA device can be used here", hint="--no-cuda")
            return "cuda", "requested"
        case "mps":
            if not torch.backends.mps.is_available():
                raise UnavailableError("no Apple MPS device can be used here", hint="--no-cuda")
            return "mps", "requested"
    if torch.cuda.is_available():
        return "cuda", "a CUDA device is there"
    if torch.backends.mps.is_available():
        return "mps", "Apple MPS is there"
    return "cpu", "no GPU is there"


def _precision(request: str, device: str) -> tuple[Literal["fp32", "bf16"], str]:
    if request == "fp32":
        return "fp32", "requested"
    if request == "bf16":
        return "bf16", "requested"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return "bf16", f"compute capability {major}.{minor}"
        return "fp32", f"compute capability {major}.{minor} has no bf16"
    if device == "cpu":
        flags = _cpu_flags()
        for flag in ("amx_bf16", "avx512_bf16"):
            if flag in flags:
                return "bf16", f"the CPU has {flag}"
        return "fp32", "the CPU has no bf16 arithmetic"
    return "fp32", "MPS"


def _cpu_flags() -> set[str]:
    """Return the CPU's feature flags; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(line.split())


def _device_name(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        model = ""
    name = model or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
