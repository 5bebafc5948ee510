"""Determine which files of a run folder dialogkit wrote, and delete those.

Such files are known by the list in their folder or, without a list, by their place and name. Everything else stays
where it is, and links and mounts are never entered.
"""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from dialogkit.config.paths import DOOMED, MANIFEST, PARTS
from dialogkit.errors import StorageError, os_reason
from dialogkit.system.ownership import (
    FILE_LIST,
    Contents,
    Entry,
    free_name,
    is_as_written,
    listed_contents,
    mounts_in,
    parse_entries,
    read_list,
    read_regular,
    remove,
    remove_empty,
)
from dialogkit.tracking.evaluation_files import EVALUATION_FOLDER, TASKS_FOLDER
from dialogkit.tracking.publishing import CARD_MARK
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.report import is_own_report
from dialogkit.tracking.run_dir import (
    EVENTS,
    EVENTS_FOLDER,
    LOGS_LIST,
    PRUNED_FILE,
    RECORD_FILE,
    REPORT_FILE,
    RUN_FILES,
    RunDir,
)

_CHECKPOINT = re.compile(r"(torn-|\.old-)?checkpoint-\d+(-\d+)?")
_HALF_SAVED = re.compile(r"\.model\.new-[a-z0-9_]{8}(-old)?")
"""Folder of a model whose process was killed while saving."""

# Files that 0.1.0 wrote without a list, or that a process did not list because it was killed. Files that people
# put beside a model, such as `spm.model`, are not among them.
_MODEL = (
    r"((generation_|tokenizer_)?config|tokenizer|added_tokens|special_tokens_map)\.json",
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json",
    r"adapter_(config\.json|model\.safetensors)",
    r"chat_template\.jinja|training_args\.bin",
)
_TRAINING = (
    r"(optimizer|scheduler|scaler)\.pt",
    r"rng_state(_\d+)?\.pth",
    r"(trainer_state|stream-\d+)\.json",
    r"(\.|\.old-)?manifest\.json",
)
_SHARDS = (r"\.metadata|__\d+_\d+\.distcp",)
_NAMES = {
    "": [*map(re.escape, RUN_FILES), re.escape(PRUNED_FILE), r"\.lock"],
    "model": [*_MODEL, r"README\.md", re.escape(FILE_LIST)],
    "checkpoint": [*_MODEL, *_TRAINING],
    f"checkpoint/{PARTS}": _SHARDS,
    "checkpoint/optimizer_0": _SHARDS,
    EVALUATION_FOLDER: [r"[\w-]+\.json", r"[\w-]+-(worst|replies)\.jsonl"],
    f"{EVALUATION_FOLDER}/{TASKS_FOLDER}": [r"[\w-]+\.json"],
    EVENTS_FOLDER: [EVENTS.pattern],
}
"""Names of unlisted files, by their folder in the run."""
_PATTERNS = {
    # A temporary file has eight more characters until it is renamed.
    folder: re.compile("|".join([*names, *(rf"\.({name})\.[a-z0-9_]{{8}}" for name in names)]))
    for folder, names in _NAMES.items()
}


def contents(run: RunDir, *, checkpoints_only: bool = False, exact: bool = True) -> Contents:
    """Return the content of a run folder, by who wrote it.

    Args:
        run: the run.
        checkpoints_only: look at the checkpoints only.
        exact: compare the content of large files with the list, not just their size.

    Raises: StorageError if the folder cannot be read, or is a link or a mount.
    """
    _require_folder(run)
    found = Contents()
    try:
        _look(run.path, "", found, checkpoints_only=checkpoints_only, exact=exact)
    except OSError as error:
        raise StorageError(f"{str(run.path)!r} cannot be read: {os_reason(error)}") from None
    return found


def _require_folder(run: RunDir) -> None:
    """Raise StorageError if the folder of a run is a link or a mount."""
    if run.path.is_symlink():
        raise StorageError(f"{str(run.path)!r} is a link, which dialogkit does not follow")
    if "." in mounts_in(run.path):
        raise StorageError(f"{str(run.path)!r} is a mount, which dialogkit does not enter")


def _look(folder: Path, place: str, found: Contents, *, exact: bool, checkpoints_only: bool = False) -> None:
    entries, list_name = _list_of(folder, place)
    if entries is not None and place != "":
        _add_listed(folder, entries, list_name, found, exact=exact)
        return
    mounts = mounts_in(folder)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        inside = _place_of(entry.name, place) if entry.is_dir(follow_symlinks=False) else None
        if checkpoints_only and place == "" and inside != "checkpoint":
            continue
        if entry.name in mounts:
            found.foreign.append(path)
        elif inside is not None:
            _look(path, inside, found, exact=exact)
            found.folders.append(path)
        elif entry.is_file(follow_symlinks=False) and _is_own(path, place, entries, exact=exact):
            found.files.append(path)
        else:
            found.foreign.append(path)


def _place_of(name: str, place: str) -> str | None:
    """Return which known folder this is; None for any other."""
    if place == "":
        if _HALF_SAVED.fullmatch(name):
            return "model"
        return "checkpoint" if _CHECKPOINT.fullmatch(name) else name if name in _NAMES else None
    inside = f"{place}/{name}"
    return inside if inside in _NAMES else None


def _list_of(folder: Path, place: str) -> tuple[dict[str, Entry] | None, str]:
    """Return the list of a folder in a run, or None, and the name of its file."""
    if place != "checkpoint":
        return read_list(folder, name=None if place else LOGS_LIST), FILE_LIST
    for name in (MANIFEST, DOOMED):
        if (content := read_regular(folder / name)) is not None:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                return parse_entries(json.loads(content)["files"]), name
    return None, MANIFEST


def _add_listed(folder: Path, entries: dict[str, Entry], list_name: str, found: Contents, *, exact: bool) -> None:
    listed = listed_contents(folder, entries, exact=exact, besides=list_name)
    found.files += listed.files
    found.folders += listed.folders
    for path in listed.foreign:
        # A checkpoint is set aside because of damaged files; dialogkit wrote these too.
        is_torn = folder.name.startswith("torn-") and stat.S_ISREG(path.lstat().st_mode)
        is_own = is_torn and path.relative_to(folder).as_posix() in entries
        (found.files if is_own else found.foreign).append(path)


def _is_own(path: Path, place: str, entries: dict[str, Entry] | None, *, exact: bool) -> bool:
    """Return whether dialogkit wrote a file of the run folder itself, or of a folder without a list."""
    if place == "":
        if path.name == FILE_LIST:
            return entries is not None
        if path.name == REPORT_FILE:
            return is_own_report(path)
        if entries and path.name in entries:  # only once the run has ended
            return is_as_written(path, entries[path.name], exact=exact)
    if _PATTERNS[place].fullmatch(path.name) is None:
        return False
    if place == "model" and path.name == "README.md":
        return CARD_MARK in (read_regular(path) or b"")
    if place.startswith(EVALUATION_FOLDER) and not path.name.startswith("."):
        stem = re.sub(r"(\.json|-worst\.jsonl|-replies\.jsonl|-scores\.jsonl)$", "", path.name)
        return _is_evaluation(path.with_name(f"{stem}.json"))
    return True


def _is_evaluation(path: Path) -> bool:
    """Return whether a file holds an evaluation: on a dataset, or of a task."""
    with suppress(ValueError, RecursionError):
        kept = json.loads(read_regular(path) or b"")
        return isinstance(kept, dict) and (
            ("dataset" in kept and "dialogs" in kept) or ("questions" in kept and "figures" in kept)
        )
    return False


def freed_bytes(files: Iterable[Path]) -> int:
    """Return the bytes freed by deleting `files`, without files that keep another hard link."""
    stats = [path.lstat() for path in files]
    links = Counter((s.st_dev, s.st_ino) for s in stats)
    one_each = {(s.st_dev, s.st_ino): s for s in stats}
    return sum(s.st_size for place, s in one_each.items() if links[place] == s.st_nlink)


def delete(run: RunDir, *, checkpoints_only: bool = False) -> Contents:
    """Delete what dialogkit wrote of a run, and return what the folder held.

    The record is renamed first: a partly deleted run no longer counts as a run, `half_deleted` finds it, and
    deleting it again completes the work. Likewise, the manifest of a checkpoint goes first.

    Raises: StorageError if the run is being trained, or something cannot be deleted.
    """
    _require_folder(run)
    try:
        with run.held():
            found = contents(run, checkpoints_only=checkpoints_only)
            if not checkpoints_only:
                if run.path / RECORD_FILE in found.foreign:
                    raise StorageError(
                        f"{str(run.path / RECORD_FILE)!r} is a link, which dialogkit does not follow"
                    )
                with suppress(FileNotFoundError):  # already renamed by an interrupted deletion
                    os.replace(run.path / RECORD_FILE, run.path / PRUNED_FILE)
            last = [run.path / name for name in (RECORD_FILE, ".lock", FILE_LIST, PRUNED_FILE)]
            remove(found, besides=last)
            if not checkpoints_only:
                found.foreign = [_kept(path) for path in found.foreign]
                for path in last:
                    if path not in found.foreign:
                        path.unlink(missing_ok=True)
                remove_empty(run.path)
    except OSError as error:
        raise StorageError(f"{str(error.filename or run.path)!r} cannot be deleted: {os_reason(error)}") from None
    return found


def _kept(path: Path) -> Path:
    """Rename a log that somebody changed: what is left must not look like a run. Raises: OSError."""
    is_log = path.name in RUN_FILES and (path.parent / PRUNED_FILE).exists() and not path.is_symlink()
    return path.rename(free_name(path)) if is_log else path


def remove_unbegun(run: RunDir) -> None:
    """Remove what this process wrote of a refused run, and the folders created for it."""
    with suppress(OSError, StorageError):
        remove(contents(run))
    for folder in (run.path, *run.made):
        remove_empty(folder)


def half_deleted(output: Path) -> Iterator[tuple[RunDir, RunRecord]]:
    """Yield the runs whose deletion was interrupted, with their records."""
    with suppress(OSError):
        for path in sorted((output / "runs").iterdir()):
            mark = path / PRUNED_FILE
            with suppress(OSError, ValidationError):
                if stat.S_ISREG(mark.lstat().st_mode) and not path.is_symlink():
                    yield RunDir(path), RunRecord.model_validate_json(mark.read_bytes())
