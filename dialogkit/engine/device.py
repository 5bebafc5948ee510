"""Select device and precision, each with a reason."""

import re
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.distributed import process_group
from dialogkit.distributed.rank import is_true
from dialogkit.errors import UnavailableError
from dialogkit.hints import Call, Change, Either
from dialogkit.system import cpu_threads
from dialogkit.system.cpu import processor_flags, processor_name
from dialogkit.system.nvidia import nvidia_driver, reduce_fragmentation
from dialogkit.system.precision import CPU_ARITHMETIC, Precision, of_cpu, of_gpu

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of matrix products in each precision."""


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
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.precision != "fp32")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return DTYPES[self.precision]


def resolve_runtime(config: RuntimeConfig) -> Runtime:
    """Return device and precision for a request, and choose the number of CPU threads.

    Raises: UnavailableError if the requested device is not available.
    """
    device, device_reason = _device(config.device)
    alone = process_group.world_size() == 1  # several processes share the cores already
    cpu_threads.start(config.threads, adaptive=device == "cpu" and alone)
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
    if request == "cpu":
        return request, "requested"
    if request == "auto" and is_true("ACCELERATE_USE_CPU"):
        return "cpu", "ACCELERATE_USE_CPU"
    if request == "mps":
        if not torch.backends.mps.is_available():
            raise UnavailableError("no Apple MPS device is available", hint=Change({"runtime.device": "cpu"}))
        return request, "requested"
    if torch.version.cuda:
        reduce_fragmentation()
    problem = gpu_problem()
    if request == "cuda":
        if problem:
            hint = Either(Call("doctor"), Change({"runtime.device": "cpu"}))
            raise UnavailableError(f"CUDA was requested, but {problem}", hint=hint)
        if not torch.cuda.is_available():
            raise UnavailableError("no CUDA device is available", hint=Change({"runtime.device": "cpu"}))
        return request, "requested"
    if problem:
        return "cpu", problem
    if torch.cuda.is_available():
        return "cuda", "a CUDA device is available"
    if torch.backends.mps.is_available():
        # No Mac has run the tests yet.
        return "cpu", "Apple MPS is only used if runtime.device is mps"
    return "cpu", "no GPU is available"


def gpu_problem() -> str | None:
    """Return why a GPU of this machine cannot be used by torch; None if it can, or if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what is said here
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            if torch.version.hip or has_kernels((major, minor), torch.cuda.get_arch_list()):
                return None
            name = torch.cuda.get_device_name()
            return f"this build of torch has no kernels for the {name} (compute capability {major}.{minor})"
    driver = nvidia_driver()
    if driver is None or not driver.gpus:
        return None
    if torch.version.cuda is None:
        return "this build of torch uses no NVIDIA GPU"
    if driver.cuda[0] < int(torch.version.cuda.split(".")[0]):
        (major, minor), needed = driver.cuda, torch.version.cuda
        return f"the NVIDIA driver supports CUDA up to {major}.{minor}, and this build of torch needs {needed}"
    return "torch finds no CUDA device, but the NVIDIA driver does"


def has_kernels(capability: tuple[int, int], compiled: Sequence[str]) -> bool:
    """Return whether a build of torch runs on a GPU.

    Machine code (`sm_80`) runs on later minor versions of its generation, unless it is made for one GPU alone
    (`sm_90a`); intermediate code (`compute_120`) runs on all later GPUs.
    """
    for name in compiled:
        if (found := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)) is None:
            continue
        kind, made_for, alone = found[1], (int(found[2]), int(found[3])), found[4] == "a"
        same_generation = kind == "compute" or made_for[0] == capability[0]
        if made_for == capability or (made_for < capability and same_generation and not alone):
            return True
    return False


def unused_gpu(runtime: Runtime) -> str | None:
    """Return why the machine's GPU is not used, if nobody asked for that."""
    if runtime.device != "cpu" or runtime.device_reason in ("requested", "ACCELERATE_USE_CPU"):
        return None
    return gpu_problem()


def _precision(request: Literal["auto", "fp32", "bf16", "fp16"], device: str) -> tuple[Precision, str]:
    if request != "auto":
        return request, "requested"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        precision = of_gpu((major, minor), rocm=torch.version.hip is not None)
        lacks = {"bf16": "", "fp16": " has fp16 and no bf16", "fp32": " has no bf16"}
        return precision, f"compute capability {major}.{minor}{lacks[precision]}"
    if device == "cpu":
        precision, flag = of_cpu(processor_flags())
        return precision, f"the CPU has {flag or 'no bf16 arithmetic'}"
    return "fp32", "MPS"


def usable_devices(runtime: Runtime, batch_size: int) -> int:
    """Return how many GPUs could share a batch of a run that uses one."""
    if runtime.device != "cuda" or runtime.processes > 1:
        return 1
    return max(n for n in range(1, max(1, torch.cuda.device_count()) + 1) if batch_size % n == 0)


@contextmanager
def float32_as_found() -> Iterator[None]:
    """Restore the precision of float32 products, which HF and accelerate lower to TF32 for compiled models.

    Both of torch's interfaces are restored: torch refuses to read the older one where the two differ.
    """
    backends: Any = torch.backends
    matmul = backends.cuda.matmul
    general, products = backends.fp32_precision, matmul.fp32_precision
    allowed: bool | None = None
    with suppress(RuntimeError):  # they differ already
        allowed = matmul.allow_tf32
    try:
        yield
    finally:
        if allowed is not None:
            matmul.allow_tf32 = allowed
        backends.fp32_precision = general
        matmul.fp32_precision = products


def synchronize(device: str) -> None:
    """Wait until a device has done all work that was given to it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def is_emulated(runtime: Runtime) -> bool:
    """Return whether a run's precision is one that its CPU does not compute in, which is many times slower."""
    if runtime.device != "cpu" or runtime.precision == "fp32":
        return False
    flags = processor_flags()  # not every system reports them
    return bool(flags) and flags.isdisjoint(CPU_ARITHMETIC[runtime.precision])


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
