"""Memory of the machine, of this process's control group (its container or job), and of the process itself.

All sizes are in bytes; None means unknown or unlimited.
"""

import ctypes
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_UNLIMITED = 2**60
"""Version 1 of control groups writes a very large number for no limit."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory"  # CUDA, HIP, MPS, cuDNN, and NCCL where the GPU has no room for its buffers
    r"|_STATUS_\w*ALLOC\w*_FAILED"  # cuBLAS, cuDNN, hipBLAS
    r"|DefaultCPUAllocator|Cannot allocate memory",
    re.IGNORECASE,
)
"""Words of torch's errors that mean out of memory: only its own allocator on a GPU has an exception type."""


class Memory(NamedTuple):
    """Total memory, and how much of it is free."""

    total: int | None
    free: int | None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device, or this machine, is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without loading it
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def machine_memory() -> Memory:
    """Return the machine's memory, without swap."""
    with suppress(Exception):  # a strange /proc, on which psutil fails in many ways
        import psutil

        found = psutil.virtual_memory()
        return Memory(found.total, found.available)
    return Memory(None, None)


def container_memory() -> Memory:
    """Return the limit of the control group and what it leaves (version 2, then 1)."""
    for folder, limit, used, cached in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # not there, or "max"
            total = int(Path(folder, limit).read_text(encoding="ascii"))
            lines = Path(folder, "memory.stat").read_text(encoding="ascii").splitlines()
            # Files that were read are counted as used, and given up when memory is needed.
            reclaimable = int(dict(line.split() for line in lines).get(cached, 0))
            held = int(Path(folder, used).read_text(encoding="ascii")) - reclaimable
            if total < _UNLIMITED:
                return Memory(total, total - held)
    return Memory(None, None)


def free_bytes() -> int | None:
    """Return the least of what the machine (with swap), the control group and `ulimit -v` leave."""
    available, swap = machine_memory().free, 0
    with suppress(Exception):
        import psutil

        swap = psutil.swap_memory().free
    machine = None if available is None else available + swap
    return min((n for n in (machine, container_memory().free, _limit_free()) if n is not None), default=None)


def process_memory_bytes() -> int | None:
    """Return the memory that this process holds (its resident set)."""
    import psutil

    with suppress(psutil.Error, OSError):
        return int(psutil.Process().memory_info().rss)
    return None


def address_space_bytes() -> int | None:
    """Return the address space of this process, which `RLIMIT_AS` limits; Linux only."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return pages * resource.getpagesize()
    except (ImportError, OSError, ValueError, IndexError):
        return None


def _limit_free() -> int | None:
    """Return what `ulimit -v` leaves to this process."""
    if (taken := address_space_bytes()) is None:
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else max(0, limit - taken)


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next step, instead of returning it to the system.

    A step or an evaluation frees and allocates matrices of the size of the vocabulary. Each would be a new
    mapping, whose pages the system clears one by one: a sixth of a step. Does nothing without glibc.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 * 2**20)
