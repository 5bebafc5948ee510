"""What lies in a run folder, what of it dialogkit wrote, and how that is deleted.

Files are known by their places and names. All else stays where it is, and no link is followed.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from dialogkit.config.paths import MANIFEST
from dialogkit.errors import StorageError
from dialogkit.tracking.rundir import EVALUATION_FOLDER, PRUNED_FILE, RECORD_FILE, RUN_FILES, RunDir, RunRecord

_CHECKPOINT = re.compile(r"checkpoint-\d+|torn-checkpoint-\d+(-\d+)?")

# What transformers and its trainer write of a model, a tokenizer and a training.
_MODEL = (
    r"((generation_|tokenizer_)?config|tokenizer|vocab|added_tokens|special_tokens_map|chat_template)\.json",
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?",
    r"adapter_(config\.json|model\.safetensors)",
    r"(chat_template\.jinja|merges\.txt|vocab\.txt|[\w.]+\.model|training_args\.bin|README\.md)",
)
_TRAINING = (
    r"(optimizer|scheduler|scaler)\.pt",
    r"rng_state(_\d+)?\.pth",
    r"trainer_state\.json",
    r"\.?manifest\.json",
)
_KNOWN = {
    "": [*map(re.escape, RUN_FILES), re.escape(PRUNED_FILE), r"\.lock"],
    "model": list(_MODEL),
    "checkpoint": [*_MODEL, *_TRAINING],
    EVALUATION_FOLDER: [r"[\w-]+\.json", r"[\w-]+-(worst|replies)\.jsonl"],
    f"{EVALUATION_FOLDER}/tasks": [r"[\w-]+\.json"],
    "tensorboard": [r"events\.out\.tfevents\..*"],
}
"""Names of files by the folder in a run that they lie in."""
_PATTERNS = {
    # A file that is being written has eight further characters until it is whole.
    folder: re.compile("|".join([*names, *(rf"\.({name})\.[a-z0-9_]{{8}}" for name in names)]))
    for folder, names in _KNOWN.items()
}


@dataclass
class Contents:
    """The content of a run's folder, or of its checkpoints alone."""

    files: list[Path] = field(default_factory=list)
    """What dialogkit wrote."""
    folders: list[Path] = field(default_factory=list)
    """Folders that dialogkit made, each after those inside it."""
    foreign: list[Path] = field(default_factory=list)
    """All else: files and links, and folders with all that is in them."""

    @property
    def bytes(self) -> int:
        """Bytes of the known files."""
        return sum(path.lstat().st_size for path in self.files)


def contents(run: RunDir, *, checkpoints_only: bool = False) -> Contents:
    """Return what lies in the folder of a run. Raises: StorageError if it cannot be read, or is a link."""
    if run.path.is_symlink():
        raise StorageError(f"{str(run.path)!r} is a link, which dialogkit does not follow")
    found = Contents()
    try:
        _look(run.path, "", found, checkpoints_only=checkpoints_only)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{str(run.path)!r} cannot be read: {reason}") from None
    return found


def _look(folder: Path, place: str, found: Contents, *, checkpoints_only: bool = False) -> None:
    sealed = _sealed_files(folder) if place == "checkpoint" else frozenset()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        inside = _place_of(entry.name, place) if entry.is_dir(follow_symlinks=False) else None
        if checkpoints_only and place == "" and inside != "checkpoint":
            continue
        if inside is not None:
            _look(path, inside, found)
            found.folders.append(path)
        elif entry.is_file(follow_symlinks=False) and (
            entry.name in sealed or _PATTERNS[place].fullmatch(entry.name)
        ):
            found.files.append(path)
        else:
            found.foreign.append(path)


def _place_of(name: str, place: str) -> str | None:
    """Return which of the known folders a folder is; None if it is none of them."""
    if place == "":
        return "checkpoint" if _CHECKPOINT.fullmatch(name) else name if name in _KNOWN else None
    inside = f"{place}/{name}"
    return inside if inside in _KNOWN else None


def _sealed_files(checkpoint: Path) -> frozenset[str]:
    """Return what the manifest of a checkpoint says that it consists of."""
    manifest = checkpoint / MANIFEST
    if manifest.is_symlink():
        return frozenset()
    try:
        return frozenset(map(str, json.loads(manifest.read_bytes())["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def freed_bytes(files: Iterable[Path]) -> int:
    """Return the bytes that are free once all of `files` are deleted: not those that another link keeps."""
    stats = [path.lstat() for path in files]
    links = Counter((s.st_dev, s.st_ino) for s in stats)
    one_each = {(s.st_dev, s.st_ino): s for s in stats}
    return sum(s.st_size for place, s in one_each.items() if links[place] == s.st_nlink)


def delete(run: RunDir, *, checkpoints_only: bool = False) -> Contents:
    """Delete what dialogkit wrote of a run, and return what there was.

    The record goes first, in one move: a run whose deletion is cut short is no run any more, `half_deleted` finds
    it, and to delete it again ends the work. Of a checkpoint the manifest goes first, without which it counts for
    nothing.

    Raises: StorageError if the run is being trained, or something cannot be deleted.
    """
    try:
        with run.held():
            found = contents(run, checkpoints_only=checkpoints_only)
            if not checkpoints_only:
                if run.path / RECORD_FILE in found.foreign:
                    raise StorageError(
                        f"{str(run.path / RECORD_FILE)!r} is a link, which dialogkit does not follow"
                    )
                with suppress(FileNotFoundError):  # after a deletion that was cut short
                    os.replace(run.path / RECORD_FILE, run.path / PRUNED_FILE)
            last = [run.path / name for name in (RECORD_FILE, ".lock", PRUNED_FILE)]
            for path in sorted(found.files, key=lambda path: path.name != MANIFEST):
                if path not in last:
                    path.unlink(missing_ok=True)
            for folder in found.folders:
                _remove_empty(folder)
            if not checkpoints_only:
                for path in last:
                    path.unlink(missing_ok=True)
                _remove_empty(run.path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{str(error.filename or run.path)!r} cannot be deleted: {reason}") from None
    return found


def _remove_empty(folder: Path) -> None:
    """Remove a folder, unless something is in it that is not dialogkit's."""
    with suppress(OSError):
        folder.rmdir()


def half_deleted(output: Path) -> Iterator[tuple[RunDir, RunRecord]]:
    """Yield the runs whose deletion was cut short, with the records that they had."""
    with suppress(OSError):
        for path in sorted((output / "runs").iterdir()):
            mark = path / PRUNED_FILE
            with suppress(OSError, ValidationError):
                if stat.S_ISREG(mark.lstat().st_mode) and not path.is_symlink():
                    yield RunDir(path), RunRecord.model_validate_json(mark.read_bytes())
