"""The fastest precision in which a device multiplies matrices."""

from collections.abc import Collection
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]

CPU_ARITHMETIC: dict[Precision, tuple[str, ...]] = {
    "bf16": ("amx_bf16", "avx512_bf16"),
    "fp16": ("amx_fp16", "avx512_fp16"),
}
"""The flags of processors that compute in a precision, the fastest first."""


def of_gpu(capability: tuple[int, int], *, rocm: bool = False) -> Precision:
    """Return the precision for a GPU of a compute capability, which with ROCm is that of its architecture."""
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) and not rocm else "fp32"


def of_cpu(flags: Collection[str]) -> tuple[Precision, str | None]:
    """Return the precision for a processor, and its flag that says so; None in float32."""
    flag = next((flag for flag in CPU_ARITHMETIC["bf16"] if flag in flags), None)
    return ("fp32", None) if flag is None else ("bf16", flag)
