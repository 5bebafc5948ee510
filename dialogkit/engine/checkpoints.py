"""Checkpoints that are complete or do not count.

HF writes a checkpoint file by file. Here each becomes valid by a manifest with the size and SHA-256 of its files,
which is written last and synced; what has none, or does not agree with it, is set aside and never loaded.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dialogkit.config.paths import MANIFEST, PARTS

_PICKLED = re.compile(r"(optimizer|scheduler)\.pt|rng_state(_\d+)?\.pth|training_args\.bin")
"""The pickled files that a training writes; HF would read others that are there."""
_PLAN = ".metadata"
_SHARD = re.compile(rf"({PARTS}|optimizer_0)/(\.metadata|__\d+_\d+\.distcp)")
"""The files of torch's distributed format, by their folders."""
_FOLDER = re.compile(r"checkpoint-(\d+)")
_DOOMED = ".old-"
_ASIDE = re.compile(r"torn-checkpoint-(\d+)(-\d+)?")


@dataclass
class Progress:
    """What a training has done by a checkpoint, beside what HF keeps with it."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    train_s: float = 0.0
    """Seconds in training steps."""
    window_loss: float = 0.0
    """Sum of the losses since the last logged step; where there are several processes, the mean of theirs."""
    window_losses: list[float] = field(default_factory=list)
    """The sums of each of several processes."""
    logged_step: int = 0
    logged_tokens: int = 0
    logged_train_s: float = 0.0
    evaluation_due: bool = False
    """Whether the evaluation of this step was left and is to be made first."""


def seal(folder: Path, progress: Progress) -> None:
    """Make a checkpoint valid: all that is in it is on disk before its manifest is. Raises: OSError."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync(path)
        elif path != folder / MANIFEST:
            _sync(path)
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _digest(path)]
    beside = folder / f".{MANIFEST}"
    beside.write_text(json.dumps({"progress": asdict(progress), "files": files}, indent=1), encoding="utf-8")
    _sync(beside)
    os.replace(beside, folder / MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of a checkpoint; None unless every file is as its manifest says."""
    try:
        if not _is_file(folder / MANIFEST):
            return None
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        for name, (size, digest) in manifest["files"].items():
            path = folder / name
            if Path(name).suffix in (".pt", ".pth", ".bin") and not _PICKLED.fullmatch(name):
                return None
            if (
                not (Path(name).name == name or _SHARD.fullmatch(name))
                or not _is_file(path)
                or path.stat().st_size != size
            ):
                return None
            if _digest(path) != digest or (path.name == _PLAN and not _is_harmless(path)):
                return None
        return Progress(**manifest["progress"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def newest_valid(run: Path, told: Callable[[str], None] = lambda _: None) -> tuple[Path, Progress] | None:
    """Return the newest valid checkpoint of a run, and set aside newer ones that are torn, which `told` takes."""
    for _, folder in sorted(_checkpoints(run), reverse=True):
        if not folder.is_symlink() and (progress := read_progress(folder)) is not None:
            return folder, progress
        told(f"{folder.name} is torn or damaged, and is kept aside as {set_aside(folder).name}")
    return None


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that is not to be loaded; return its new place."""
    aside, number = folder.with_name(f"torn-{folder.name}"), 2
    while aside.exists():
        aside, number = folder.with_name(f"torn-{folder.name}-{number}"), number + 1
    return folder.rename(aside)


def steps_aside(run: Path) -> list[int]:
    """Return the steps of the checkpoints that were set aside."""
    return sorted(int(found[1]) for path in run.iterdir() if (found := _ASIDE.fullmatch(path.name)))


def rotate(run: Path, *, keep: int, best_step: int | None) -> None:
    """Delete the oldest valid checkpoints; the newest and the best one stay."""
    sealed = sorted((step, folder) for step, folder in _checkpoints(run) if (folder / MANIFEST).is_file())
    newest = [step for step, _ in sealed][-1:]
    wanted = {*newest, *([best_step] if best_step else [])}
    for step, _ in reversed(sealed):
        if len(wanted) < keep:
            wanted.add(step)
    for left_over in run.glob(f"{_DOOMED}checkpoint-*"):  # of a process that was ended here
        shutil.rmtree(left_over)
    for step, folder in sealed:
        if step not in wanted and not folder.is_symlink():
            # Renamed first: what is half deleted never looks like a checkpoint.
            shutil.rmtree(folder.rename(run / f"{_DOOMED}{folder.name}"))


def size_of(folder: Path) -> int:
    """Return the bytes of a checkpoint's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _checkpoints(run: Path) -> Iterator[tuple[int, Path]]:
    for path in run.iterdir():
        if (found := _FOLDER.fullmatch(path.name)) and path.is_dir():
            yield int(found[1]), path


class _PlanReader(pickle.Unpickler):
    """Reads the plan of a distributed checkpoint, which torch would unpickle without looking."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a plan is made of. Raises: UnpicklingError for anything else."""
        if name not in _PLAN_PARTS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a plan")
        return super().find_class(module, name)


_PLAN_PARTS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "collections": {"OrderedDict"},
    "builtins": {"set"},
    "pathlib": {"PosixPath"},
}


def _is_harmless(path: Path) -> bool:
    """Return whether a plan consists of nothing but names, shapes and places of tensors."""
    try:
        with path.open("rb") as file:
            _PlanReader(file).load()
    except Exception:  # whatever a torn or hostile file does
        return False
    return True


def _is_file(path: Path) -> bool:
    """Return whether a path is a file itself: reading a pipe would never end."""
    return stat.S_ISREG(path.lstat().st_mode)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
