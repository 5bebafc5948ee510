"""Freed memory, and peak memory."""

import ctypes
import sys
from contextlib import suppress

import torch


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next step, instead of returning it to the system.

    A step frees and allocates matrices of the size of the vocabulary. Each would be a new mapping, whose pages the
    system clears one by one: a sixth of a step. Does nothing without glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 * 2**20)


def peak_bytes(device: str) -> int | None:
    """Return the peak memory of the GPU or of the process so far; None if the system does not report it."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
