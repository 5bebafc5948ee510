"""How much memory the machine, its container and its limits have left."""

import os
from contextlib import suppress
from pathlib import Path


def free_bytes() -> int | None:
    """Return the memory that machine, container and limits still have to give. None where it is not told."""
    found = [free for free in (_machine_free(), _container_free(), _limit_free()) if free is not None]
    return min(found, default=None)


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


def process_memory_bytes() -> int | None:
    """Return the memory that this process holds; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def total_bytes() -> int | None:
    """Return the memory of the machine; None if the system does not say."""
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
