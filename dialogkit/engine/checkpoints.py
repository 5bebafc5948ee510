"""Checkpoints that are either committed or ignored.

HF writes a checkpoint file by file. A manifest with the size and SHA-256 of each file, written last and synced,
commits it. A folder without a manifest, or that differs from it, is set aside and never loaded.
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
from dialogkit.errors import os_reason
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

_PICKLED = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|training_args\.bin")
"""The pickled files that a run writes; HF would also read any others in the folder."""
_PLAN = ".metadata"
_SHARD = re.compile(rf"({PARTS}|optimizer_0)/(\.metadata|__\d+_\d+\.distcp)")
"""The files of torch's distributed format, by their folders."""
_FOLDER = re.compile(r"checkpoint-(\d+)")
_ASIDE = re.compile(r"torn-checkpoint-(\d+)(-\d+)?")
_PLAN_PARTS = {
    "torch.distributed.checkpoint.metadata": (
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool"),
    "collections": ("OrderedDict",),
    "builtins": ("set",),
    "pathlib": ("PosixPath",),
}
"""The names that the plan of a distributed checkpoint may refer to, by module."""


@dataclass
class Progress:
    """What a run has done by a checkpoint, besides what HF records."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    train_s: float = 0.0
    """Seconds in training steps."""
    window_loss: float = 0.0
    """Sum of the losses since the last logged step; with several processes, the mean of their sums."""
    window_losses: list[float] = field(default_factory=list)
    """The sum of each process, if there are several."""
    logged_step: int = 0
    logged_tokens: int = 0
    logged_train_s: float = 0.0
    evaluation_due: bool = False
    """Whether the evaluation of this step was aborted and must be repeated first."""


def commit(folder: Path, progress: Progress) -> None:
    """Commit a checkpoint: sync its files, then write the manifest that makes it valid. Raises: OSError."""
    files = {}
    for path in regular_files(folder):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            _sync(path)
            files[name] = list(entry_of(path))
    for inside in {folder / name for name in files}:
        if inside.parent != folder:
            _sync(inside.parent)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps({"progress": asdict(progress), "files": files}, indent=1), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    _sync(folder)
    _sync(folder.parent)


def move_foreign(old: Path, folder: Path) -> None:
    """Move the files that a checkpoint's manifest does not list, or that were changed, to its replacement.

    Raises: OSError, ValueError.
    """
    for path in listed_contents(old, _manifest_of(old)[1], besides=MANIFEST).foreign:
        place = folder / path.relative_to(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(free_name(place) if os.path.lexists(place) else place)


def _manifest_of(folder: Path, name: str = MANIFEST) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Return the manifest of a checkpoint and the files it lists. Raises: ValueError if it has no manifest."""
    try:
        manifest = json.loads(read_regular(folder / name) or b"")
        return manifest, parse_entries(manifest["files"])
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no manifest: {error}") from None


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of a checkpoint; None unless every file matches its manifest."""
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
    """Rename a checkpoint that is about to be overwritten; return its backup. Raises: OSError."""
    return folder.rename(_backup_of(folder))


def restore(folder: Path) -> None:
    """Restore the backup of a checkpoint; set aside any folder in its place. Raises: OSError."""
    if _backup_of(folder).is_dir() and not _backup_of(folder).is_symlink():
        if os.path.lexists(folder):
            set_aside(folder)
        _backup_of(folder).rename(folder)


def _backup_of(folder: Path) -> Path:
    return folder.with_name(f".old-{folder.name}")


def newest_valid(run: Path, report: Callable[[str], None] = lambda _: None) -> tuple[Path, Progress] | None:
    """Return the newest valid checkpoint of a run; set aside, and report, newer ones that are torn."""
    for backup in run.glob(".old-checkpoint-*"):  # left by a process killed while it overwrote the checkpoint
        folder = run / backup.name.removeprefix(".old-")
        if _FOLDER.fullmatch(folder.name) and not backup.is_symlink() and read_progress(backup) is not None:
            if folder.is_dir() and not folder.is_symlink() and read_progress(folder) is not None:
                continue
            if os.path.lexists(folder):
                aside = set_aside(folder).name
                report(f"{folder.name} was being overwritten and is torn; kept aside as {aside}")
            restore(folder)
    for _, folder in sorted(_checkpoints(run), reverse=True):
        if not folder.is_symlink() and (progress := read_progress(folder)) is not None:
            return folder, progress
        report(f"{folder.name} is torn or damaged, and is kept aside as {set_aside(folder).name}")
    return None


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it is never loaded; return its new path."""
    aside, number = folder.with_name(f"torn-{folder.name}"), 2
    while os.path.lexists(aside):
        aside, number = folder.with_name(f"torn-{folder.name}-{number}"), number + 1
    return folder.rename(aside)


def steps_aside(run: Path) -> list[int]:
    """Return the steps of the checkpoints that were set aside."""
    return sorted(int(found[1]) for path in run.iterdir() if (found := _ASIDE.fullmatch(path.name)))


def rotate(run: Path, *, keep: int, best_step: int | None, step: int | None = None) -> list[str]:
    """Remove the files of the oldest committed checkpoints, except the newest, the best and that of `step`.

    Files that dialogkit did not write stay. A removal that fails is tried again the next time.

    Returns: a message for each checkpoint that could not be removed.
    """
    committed = sorted((step, folder) for step, folder in _checkpoints(run) if (folder / MANIFEST).is_file())
    newest = [step for step, _ in committed][-1:]
    wanted = {*newest, *(kept for kept in (best_step, step) if kept)}
    for older, _ in reversed(committed):
        if len(wanted) < keep:
            wanted.add(older)
    problems = []
    doomed = [folder for older, folder in committed if older not in wanted]
    # Half removed by a process that was killed here; 0.1.0 gave these another name.
    begun = [path.parent for path in (*run.glob(f"checkpoint-*/{DOOMED}"), *run.glob(f".old-*/{MANIFEST}"))]
    for folder in (*begun, *doomed):
        if folder.is_symlink():
            continue
        try:
            _remove(folder)
        except (OSError, ValueError) as error:
            problems.append(f"{folder.name} is no longer needed but cannot be removed: {os_reason(error)}")
    return problems


def _remove(folder: Path) -> None:
    """Remove the unchanged files that a checkpoint's manifest lists. Raises: OSError, ValueError."""
    mounts = mounts_in(folder)
    if "." in mounts:
        raise ValueError("it is a mount")
    is_committed = os.path.lexists(folder / MANIFEST)
    _, entries = _manifest_of(folder, MANIFEST if is_committed else DOOMED)
    if is_committed:
        # First it stops being a checkpoint; the list of files to remove is the last to go.
        os.replace(folder / MANIFEST, folder / DOOMED)
    found = listed_contents(folder, entries, besides=DOOMED)
    found.files.remove(folder / DOOMED)
    remove(found)
    (folder / DOOMED).unlink()
    remove_empty(folder)


def remove_torn(folder: Path) -> None:
    """Remove a partly written checkpoint."""
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
    """Reads the plan of a distributed checkpoint, which torch would unpickle unchecked."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that plans consist of. Raises: UnpicklingError for any other."""
        if name not in _PLAN_PARTS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a plan")
        return super().find_class(module, name)


def _is_harmless(path: Path) -> bool:
    """Return whether a plan consists only of names, shapes and locations of tensors."""
    try:
        with path.open("rb") as file:
            _PlanReader(file).load()
    except Exception:  # a torn or hostile file can raise anything
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
