"""The disk space that a run needs."""

import errno
import shutil
from pathlib import Path
from typing import Any

from dialogkit.config.train import TrainConfig
from dialogkit.engine.adapter_checkpoints import has_adapter
from dialogkit.engine.optimizer import muon_matrices
from dialogkit.text import byte_size

_BESIDE_BYTES = 4 * 2**20
_BESIDE_ADAPTER_BYTES = 16 * 2**20
"""Tokenizer, arguments and random states, which can be more than an adapter itself."""


def checkpoint_bytes(model: Any, config: TrainConfig) -> int:
    """Return the bytes of a checkpoint: trainable weights plus optimizer state.

    The state is one moment per weight for Muon, two for AdamW.
    """
    by_muon = {id(matrix) for matrix in muon_matrices(model)} if config.optimizer == "muon" else set()
    learns = (p for p in model.parameters() if p.requires_grad)
    size: int = sum(p.numel() * p.element_size() * (2 if id(p) in by_muon else 3) for p in learns)
    return round(1.05 * size) + (_BESIDE_ADAPTER_BYTES if has_adapter(model) else _BESIDE_BYTES)


def model_bytes(model: Any, config: TrainConfig) -> int:
    """Return the bytes of the published model; for an unmerged adapter, those of the adapter alone."""
    adapter = has_adapter(model)
    saved = (p for p in model.parameters() if p.requires_grad or not adapter or config.merge)
    size: int = sum(p.numel() * p.element_size() for p in saved)
    return round(1.05 * size) + (_BESIDE_ADAPTER_BYTES if adapter else _BESIDE_BYTES)


def require_space(run: Path, needed: int) -> None:
    """Raise OSError if the disk of a run has less space free than these bytes."""
    if (free := shutil.disk_usage(run).free) < needed:
        raise OSError(errno.ENOSPC, f"{byte_size(needed)} are needed and {byte_size(free)} are free")
