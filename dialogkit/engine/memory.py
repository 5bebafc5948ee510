"""Peak memory."""

import sys

import torch


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
