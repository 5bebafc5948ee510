"""Floating-point operations of training, and the peak of a device."""

import re

PEAK_BF16 = {
    # https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html
    "MI300X": 1.307e15,
    # https://www.nvidia.com/en-us/data-center/dgx-b200/ (72 petaFLOPS of sparse FP8 on eight GPUs)
    "B200": 2.25e15,
    # https://www.nvidia.com/en-us/data-center/h200/ and /h100/: half of what they list, which is with sparsity
    "H200 NVL": 8.35e14,
    "H200": 9.89e14,
    "GH200": 9.89e14,
    "H100 NVL": 8.35e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    # https://www.nvidia.com/en-us/data-center/a100/
    "A100": 3.12e14,
    # https://www.nvidia.com/en-us/data-center/l40s/, /l40/ and /l4/: half of what is listed with sparsity
    "L40S": 3.62e14,
    "L40": 1.81e14,
    "L4": 1.21e14,
    # https://www.nvidia.com/en-us/data-center/products/a10-gpu/, and the data sheet of the A10G of AWS's G5
    "A10": 1.25e14,
    "A10G": 7.0e13,
    # NVIDIA's white papers of the RTX Blackwell, Ada and GA102 architectures: BF16 with FP32 sums, dense
    "RTX 5090": 2.095e14,
    "RTX 6000 Ada": 3.643e14,
    "RTX 4090": 1.652e14,
    "RTX 3090": 7.1e13,
}
"""Dense bf16 operations per second by words of the device's name, as published by the vendors (SXM by default).

Those in fp16 are as many.
"""

PEAK_FP16 = {
    **PEAK_BF16,
    # https://www.nvidia.com/en-us/data-center/tesla-t4/ and the data sheet of the V100: fp16 with fp32 sums
    "T4": 6.5e13,
    "V100": 1.25e14,
    "V100-PCIE": 1.12e14,
}
"""The same in fp16, with the GPUs that have no bf16."""

_SLOWER = re.compile(r"\b(Laptop|MIG|D)\b")
"""Words of a name that is not the whole GPU: that of a laptop, a part of one, a model for one country."""


def flops_per_token(
    *,
    parameters: int,
    width: int,
    layers: int,
    vocabulary: int,
    supervised_share: float,
    context: float,
    adapter: int = 0,
) -> float:
    """Return the operations to train on one token.

    6 for each parameter used (forward 2, backward 4), with the output layer only at supervised tokens, and 6 L D
    for each previous token in attention (causal: half of 12 L D T in Chowdhery et al. 2022, appendix B).

    Args:
        parameters: without embeddings.
        width: of the model.
        layers: number of blocks.
        vocabulary: entries of the output layer.
        supervised_share: fraction of the tokens that have a loss.
        context: mean length of the dialog that a token is in.
        adapter: trained parameters of an adapter; the frozen weights then need no gradients, which are a third of
            their operations. 0: all weights are trained.
    """
    each = 4 if adapter else 6
    head = width * vocabulary * supervised_share
    return each * (parameters + head) + 6 * adapter + 6 * layers * width * context


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak operations per second of a device; None if unknown."""
    peaks = {"bf16": PEAK_BF16, "fp16": PEAK_FP16}.get(precision, {})
    if _SLOWER.search(device_name):
        return None
    longest_first = sorted(peaks, key=len, reverse=True)
    named = (words for words in longest_first if re.search(rf"\b{words}\b", device_name))
    return next((peaks[words] for words in named), None)
