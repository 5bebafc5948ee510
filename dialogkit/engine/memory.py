"""How much memory a training step will take on the CPU, and how much there is.

On a GPU the allocator tells; on the CPU the system kills a process that takes too much, without a word.
"""

import ctypes
import sys
from contextlib import suppress

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is no memory left; torch has one of its own for GPUs alone."""
    told = ("DefaultCPUAllocator", "Cannot allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


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
