"""Which of torch's builds runs on which NVIDIA GPU.

For torch 2.11 to 2.14, from https://github.com/pytorch/pytorch/blob/main/RELEASE.md. CUDA 13 has dropped the GPUs
before Turing: the builds for CUDA 12.6 are the last for these, and end with torch 2.14.
"""

from typing import NamedTuple

Capability = tuple[int, int]


class Build(NamedTuple):
    """A build of torch for a version of CUDA.

    Attributes:
        cuda: the version.
        wheels: its part of the address of torch's package index.
        oldest: lowest compute capability that it has kernels for.
        newest: highest one.
    """

    cuda: Capability
    wheels: str
    oldest: Capability
    newest: Capability


BUILDS = (
    Build((13, 0), "cu130", (7, 5), (12, 9)),
    Build((12, 8), "cu128", (7, 5), (12, 9)),  # of torch 2.11 alone: for newer GPUs with an older driver
    Build((12, 6), "cu126", (5, 0), (9, 9)),
)
"""The newest first."""


def has_kernels(cuda: Capability, gpu: Capability) -> bool:
    """Return whether torch's build for a version of CUDA runs on a GPU of a compute capability."""
    build = next((build for build in BUILDS if cuda >= build.cuda), BUILDS[-1])
    return build.oldest <= gpu <= build.newest


def build_for(gpus: list[Capability], driver_cuda: Capability | None) -> Build | None:
    """Return the build that runs on most of the GPUs with a driver, the newest of several; None if none does.

    Args:
        gpus: compute capabilities.
        driver_cuda: newest version of CUDA that the driver supports; None: unknown, so any. A build needs a driver
            of its major version.
    """
    usable = [build for build in BUILDS if driver_cuda is None or build.cuda[0] <= driver_cuda[0]]
    # A driver that sees Blackwell is of CUDA 12.8 or newer. Other GPUs need no build that is of one release alone.
    ranked = [
        (sum(build.oldest <= gpu <= build.newest for gpu in gpus), build.wheels != "cu128", build)
        for build in usable
    ]
    best = max(ranked, default=None)
    return best[2] if best and (best[0] or not gpus) else None
