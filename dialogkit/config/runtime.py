"""Where to run, and in which precision."""

from typing import Annotated, Literal

from pydantic import Field

from dialogkit.config.base import Section


class RuntimeConfig(Section):
    """Device, precision and output folder. `auto` is resolved at the start and recorded with its reason."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use. auto: CUDA if torch can use it, else the CPU; Apple's mps, untried so far, only if named."""
    devices: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = 1
    """Processes on this machine, one per device; they split each batch. auto: one per GPU, one on a CPU."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: each process keeps only a shard of weights, gradients and optimizer state (PyTorch's FSDP2)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products; weights stay in float32. auto: bf16 or fp16 where the hardware has it."""
    compile: bool = False
    """Compile the model with torch.compile: slower start, faster steps on a GPU."""
    threads: int | None = Field(None, examples=[2], ge=1, le=1024)
    """CPU threads. None: one for each core that other programs leave free, adapted while it runs."""
    workers: int = Field(0, ge=0, le=256)
    """Processes that assemble batches. 0: none besides the main one."""
    output_dir: str = Field("models", min_length=1, max_length=4096)
    """Folder for models and runs."""
