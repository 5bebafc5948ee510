"""What the NVIDIA driver says, whether or not torch can use it."""

import ctypes
import os
import sys
from typing import NamedTuple


class Driver(NamedTuple):
    """The driver's GPUs, and the newest CUDA version that it supports."""

    gpus: int
    cuda: tuple[int, int]


def nvidia_driver() -> Driver | None:
    """Return what the NVIDIA driver offers to this process; None without a driver that works.

    GPUs that CUDA_VISIBLE_DEVICES hides are not counted.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(name)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGetCount(ctypes.byref(count))
            or driver.cuDriverGetVersion(ctypes.byref(version))
        )
    except (OSError, AttributeError):
        return None
    return None if failed else Driver(count.value, (version.value // 1000, version.value % 1000 // 10))


def reduce_fragmentation() -> None:
    """Let torch's allocator grow its blocks on CUDA; has an effect only before CUDA is used.

    Each batch has another number of tokens, so blocks of a fixed size are left with gaps that no tensor fits into.
    """
    given = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if sys.platform.startswith("linux") and not any(name in os.environ for name in given):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
