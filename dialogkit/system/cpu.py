"""The processor: its name, its features, and the cores that this process may use."""

import os
import platform
from contextlib import suppress
from pathlib import Path


def processor_name() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return the processor's feature flags; empty where the system does not say."""
    return frozenset(_cpuinfo("flags").split())


def usable_cores() -> int:
    """Return the cores that the scheduler and the control group leave to this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in Linux's list."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(field)), "")
    except OSError:
        return ""
