"""Checkpoints that are complete or do not count.

HF writes a checkpoint file by file. Here each becomes valid by a manifest with the size and SHA-256 of its files,
which is written last and synced; what has none, or does not agree with it, is set aside and never loaded.
"""

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dialogkit.config.paths import DOOMED, MANIFEST, PARTS
from dialogkit.system.ownership import (
    Entry,
    entry_of,
    free_name,
    is_as_written,
    listed_contents,
    mounts_in,
    parse_entries,
    read_regular,
    regular_files,
    remove,
    remove_empty,
)

_PICKLED = re.compile(r"(optimizer|scheduler)\.pt|rng_state(_\d+)?\.pth|training_args\.bin")
"""The pickled files that a training writes; HF would read others that are there."""
_PLAN = ".metadata"
_SHARD = re.compile(rf"({PARTS}|optimizer_0)/(\.metadata|__\d+_\d+\.distcp)")
"""The files of torch's distributed format, by their folders."""
_FOLDER = re.compile(r"checkpoint-(\d+)")
_ASIDE = re.compile(r"torn-checkpoint-(\d+)(-\d+)?")


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
    for path in regular_files(folder):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            _sync(path)
            files[name] = list(entry_of(path))
    for inside in {folder / name for name in files}:
        if inside.parent != folder:
            _sync(inside.parent)
    beside = folder / f".{MANIFEST}"
    beside.write_text(json.dumps({"progress": asdict(progress), "files": files}, indent=1), encoding="utf-8")
    _sync(beside)
    os.replace(beside, folder / MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def move_foreign(old: Path, folder: Path) -> None:
    """Move what a checkpoint's manifest does not list, or not as it is, to the one that takes its place.

    Raises: OSError, ValueError.
    """
    for path in listed_contents(old, _manifest_of(old)[1], besides=MANIFEST).foreign:
        place = folder / path.relative_to(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(free_name(place) if os.path.lexists(place) else place)


def _manifest_of(folder: Path, name: str = MANIFEST) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Return the manifest of a checkpoint, and the files that it lists. Raises: ValueError if there is none."""
    try:
        manifest = json.loads(read_regular(folder / name) or b"")
        return manifest, parse_entries(manifest["files"])
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no manifest: {error}") from None


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of a checkpoint; None unless every file is as its manifest says."""
    try:
        manifest, entries = _manifest_of(folder)
        for name, entry in entries.items():
            path = folder / name
            if Path(name).suffix in (".pt", ".pth", ".bin") and not _PICKLED.fullmatch(name):
                return None
            if not (Path(name).name == name or _SHARD.fullmatch(name)) or not is_as_written(path, entry):
                return None
            if path.name == _PLAN and not _is_harmless(path):
                return None
        progress = Progress(**manifest["progress"])
        return progress if type(progress.step) is int else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def back_up(folder: Path) -> Path:
    """Rename a checkpoint that is about to be written again; return its backup. Raises: OSError."""
    return folder.rename(_backup_of(folder))


def restore(folder: Path) -> None:
    """Put the backup of a checkpoint in its place; set aside what is there. Raises: OSError."""
    if _backup_of(folder).is_dir() and not _backup_of(folder).is_symlink():
        if os.path.lexists(folder):
            set_aside(folder)
        _backup_of(folder).rename(folder)


def _backup_of(folder: Path) -> Path:
    return folder.with_name(f".old-{folder.name}")


def newest_valid(run: Path, told: Callable[[str], None] = lambda _: None) -> tuple[Path, Progress] | None:
    """Return the newest valid checkpoint of a run, and set aside newer ones that are torn, which `told` takes."""
    for backup in run.glob(".old-checkpoint-*"):  # of a process that was killed as it wrote the checkpoint again
        folder = run / backup.name.removeprefix(".old-")
        if _FOLDER.fullmatch(folder.name) and not backup.is_symlink() and read_progress(backup) is not None:
            if folder.is_dir() and not folder.is_symlink() and read_progress(folder) is not None:
                continue
            if os.path.lexists(folder):
                told(f"{folder.name} was written again and is torn: it is kept aside as {set_aside(folder).name}")
            restore(folder)
    for _, folder in sorted(_checkpoints(run), reverse=True):
        if not folder.is_symlink() and (progress := read_progress(folder)) is not None:
            return folder, progress
        told(f"{folder.name} is torn or damaged, and is kept aside as {set_aside(folder).name}")
    return None


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that is not to be loaded; return its new place."""
    aside, number = folder.with_name(f"torn-{folder.name}"), 2
    while os.path.lexists(aside):
        aside, number = folder.with_name(f"torn-{folder.name}-{number}"), number + 1
    return folder.rename(aside)


def steps_aside(run: Path) -> list[int]:
    """Return the steps of the checkpoints that were set aside."""
    return sorted(int(found[1]) for path in run.iterdir() if (found := _ASIDE.fullmatch(path.name)))


def rotate(run: Path, *, keep: int, best_step: int | None, step: int | None = None) -> list[str]:
    """Remove the files of the oldest valid checkpoints; the newest, the best one and that of `step` stay.

    What dialogkit did not write stays where it is. What cannot be removed is tried again the next time.

    Returns: a sentence for each checkpoint that could not be removed.
    """
    sealed = sorted((step, folder) for step, folder in _checkpoints(run) if (folder / MANIFEST).is_file())
    newest = [step for step, _ in sealed][-1:]
    wanted = {*newest, *(kept for kept in (best_step, step) if kept)}
    for older, _ in reversed(sealed):
        if len(wanted) < keep:
            wanted.add(older)
    problems = []
    doomed = [folder for older, folder in sealed if older not in wanted]
    # A process that was ended here left others half removed; 0.1.0 gave these another name.
    begun = [path.parent for path in (*run.glob(f"checkpoint-*/{DOOMED}"), *run.glob(f".old-*/{MANIFEST}"))]
    for folder in (*begun, *doomed):
        if folder.is_symlink():
            continue
        try:
            _remove(folder)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            problems.append(f"{folder.name} is of no more use and cannot be removed: {reason.lower()}")
    return problems


def _remove(folder: Path) -> None:
    """Remove what a checkpoint's manifest lists, as it was written. Raises: OSError, ValueError."""
    mounts = mounts_in(folder)
    if "." in mounts:
        raise ValueError("it is a mount")
    is_whole = os.path.lexists(folder / MANIFEST)
    _, entries = _manifest_of(folder, MANIFEST if is_whole else DOOMED)
    if is_whole:
        # First of all it stops being a checkpoint, and the list of what is to go stays till the end.
        os.replace(folder / MANIFEST, folder / DOOMED)
    found = listed_contents(folder, entries, besides=DOOMED)
    found.files.remove(folder / DOOMED)
    remove(found)
    (folder / DOOMED).unlink()
    remove_empty(folder)


def remove_torn(folder: Path) -> None:
    """Remove a checkpoint that could not be written to its end."""
    with suppress(OSError):
        for path in regular_files(folder):
            with suppress(OSError):
                path.unlink()
        for name in (PARTS, "optimizer_0"):
            remove_empty(folder / name)
    remove_empty(folder)


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


def _is_harmless(path: Path) -> bool:
    """Return whether a plan consists of nothing but names, shapes and places of tensors."""
    try:
        with path.open("rb") as file:
            _PlanReader(file).load()
    except Exception:  # whatever a torn or hostile file does
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
