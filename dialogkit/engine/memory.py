"""How much memory a training step will take on the CPU, and how much there is.

On a GPU the allocator tells; on the CPU the system kills a process that takes too much, without a word.
"""

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_LAYER_BYTES, _WIDTH_BYTES = 55, 224
"""Bytes kept for the backward pass: for each token, layer and unit of width, and for each token and unit of width.

Fitted to the peak memory of custom-nano, -tiny and -small in bf16 with 1,000 to 6,000 tokens (within 10%).
"""
_OPTIMIZER_BYTES = 12
"""A parameter's gradient and Adam's two moments, in float32; the weights themselves are there already."""


def step_bytes(*, parameters: int, layers: int, width: int, tokens: int, precision: str) -> int:
    """Return about how many bytes a training takes beyond the model itself.

    Args:
        parameters: number of weights.
        layers: number of layers.
        width: width of the hidden states.
        tokens: tokens of the largest part of a batch.
        precision: bf16 or fp32; the latter keeps twice as much.
    """
    kept = tokens * width * (_LAYER_BYTES * layers + _WIDTH_BYTES)
    return _OPTIMIZER_BYTES * parameters + kept * (1 if precision == "bf16" else 2)


def free_bytes() -> int | None:
    """Return the memory that machine, container and limits still have to give. None where it is not told."""
    found = [free for free in (_machine_free(), _container_free(), _limit_free()) if free is not None]
    return min(found, default=None)


def parts_that_fit(batch_size: int, begin: int, fits: Callable[[int], bool]) -> int | None:
    """Return the fewest equal parts of a batch, from `begin` on, that fit; None if single dialogs do not."""
    return next((n for n in range(begin, batch_size + 1) if batch_size % n == 0 and fits(n)), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left; torch has one of its own for GPUs alone."""
    told = ("DefaultCPUAllocator", "Cannot allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


def _machine_free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return 1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0))
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _limit_free() -> int | None:
    """Return what `ulimit -v` leaves to this process."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return None if limit == resource.RLIM_INFINITY else max(0, limit - pages * resource.getpagesize())
    except (ImportError, OSError, ValueError, IndexError):
        return None


def _container_free() -> int | None:
    """Return what a control group leaves (version 2, then 1)."""
    for folder, limit, used, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            told = {name: Path(folder, name).read_text(encoding="ascii") for name in (limit, used, "memory.stat")}
            statistics = dict(line.split() for line in told["memory.stat"].splitlines())
            # Files that were read are counted as used, and given up when memory is needed.
            return int(told[limit]) - int(told[used]) + int(statistics.get(cached, 0))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def keep_freed_memory() -> None:
    """Make the C library keep what is freed for the next step, instead of giving it back to the system.

    A step frees and takes again matrices of the size of the vocabulary. Each would be a new mapping, whose pages
    the system clears one by one: a sixth of a step. Does nothing but where there is glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # of malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 * 2**20)


def peak_bytes(device: str) -> int | None:
    """Return the most memory held so far: of the GPU, or of the process. None where the system does not tell."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
