"""The folders of finished models: `models/<model>` is always one complete model, and nobody's files get lost."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from filecmp import cmp
from pathlib import Path

from dialogkit.errors import StorageError, os_reason
from dialogkit.hints import Change
from dialogkit.system.files import keep, umask
from dialogkit.system.ownership import (
    FILE_LIST,
    Contents,
    Entry,
    entries_of,
    entry_of,
    exchange,
    exclusive,
    free_name,
    listed_contents,
    mounts_in,
    read_list,
    read_regular,
    regular_files,
    remove,
    remove_empty,
    write_list,
)

CARD_MARK = b"\ntags: [dialogkit,"
"""A line in every model card that dialogkit writes."""
_REPLACED = ".replaced-by-dialogkit-"
_STALE_S = 24 * 3600


def published_dir(output: Path, model: str) -> Path:
    """Return the folder of the newest finished model with this name."""
    return output / model.replace("-", "_")


def published_dirs(output: Path) -> list[Path]:
    """Return the folders of an output folder that look like models of dialogkit, for listings."""
    with suppress(OSError):
        return [path for path in sorted(output.iterdir()) if not path.name.startswith(".") and _has_mark(path)]
    return []


def publish(model_dir: Path, target: Path) -> list[str]:
    """Replace an older model with a finished one, using hard links where possible.

    Files that dialogkit did not write stay in `target`; files of the old model that were changed since are
    renamed. Runs that finish together publish one after the other, and the last one stays.

    Returns: a sentence for each file that was renamed or could not be removed.
    Raises: StorageError if `target` is not a model of dialogkit or cannot be written; it is then unchanged.
    """

    def fill(beside: Path) -> None:
        listed = read_list(model_dir)
        for path in regular_files(model_dir):
            # Foreign files beside a run's model are not published: there they would count as dialogkit's.
            if path.name != FILE_LIST and (listed is None or _name(path, model_dir) in listed):
                place = beside / path.relative_to(model_dir)
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, place)
                except OSError:
                    shutil.copy2(path, place)

    return replace_folder(target, fill)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> list[str]:
    """Replace a folder by a new one, which is complete before the two are exchanged.

    Args:
        target: the folder. Files that dialogkit did not write stay; files that were changed since are renamed.
        fill: writes the files into an empty folder.

    Returns: a sentence for each file that was renamed or could not be removed.
    Raises: StorageError if `target` is not a folder of dialogkit or cannot be written; it is then unchanged.
    """
    try:
        with exclusive(target.parent, "publishing into") as is_alone:
            problems = [
                problem
                for left_over in _left_overs(target, is_alone=is_alone)  # by killed processes
                for problem in _clear(left_over, target)
            ]
            require_publishable(target)
            has_foreign = os.path.lexists(target) and bool(_adopt(target).foreign)
            beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.new-"))
            try:
                write_list(beside, {}, name=target.name)
                fill(beside)
                write_list(beside, entries_of(beside), name=target.name)
                beside.chmod(0o777 & ~umask())
                if has_foreign:
                    # If this process is killed, the owner must still find their files: no hidden folder.
                    beside = beside.rename(target.with_name(f"{target.name}{_REPLACED}{beside.name[-8:]}"))
                _put_in_place(beside, target)
            finally:
                problems += _clear(beside, target)
            return problems
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be written: {os_reason(error)}") from None


def require_publishable(target: Path) -> None:
    """Raise StorageError if `target` exists and is not a model that dialogkit published there.

    Anything else may be the only copy of somebody's work.
    """
    if not os.path.lexists(target):
        return
    hint = Change({"model.name": f"my-{target.name}"})
    if _entries(target) is None:
        raise StorageError(
            f"{str(target)!r} exists and was not made by dialogkit, so it was left unchanged", hint=hint
        )
    if mounts := mounts_in(target):
        raise StorageError(
            f"{str(target / min(mounts))!r} is a mount, so {str(target)!r} was left unchanged", hint=hint
        )


def is_publishable(target: Path) -> bool:
    """Return whether `target` does not exist or is a model that dialogkit published there."""
    try:
        require_publishable(target)
    except StorageError:
        return False
    return True


def keep_foreign_model(model_dir: Path) -> list[str]:
    """Rename a folder without a list in the place of a run's model, such as one that 0.1.0 left unfinished.

    Returns: a sentence about it, or nothing.
    Raises: StorageError.
    """
    if is_publishable(model_dir):
        return []
    return [f"{str(model_dir)!r} existed already: renamed to {keep(model_dir).name}"]


def _entries(folder: Path) -> dict[str, Entry] | None:
    """Return the files of a published folder; None if dialogkit did not publish it under this name."""
    if not _is_folder(folder):
        return None
    if os.path.lexists(folder / FILE_LIST):
        return read_list(folder)
    return _entries_of_unlisted(folder) if _has_mark(folder) else None


def _entries_of_unlisted(folder: Path) -> dict[str, Entry] | None:
    """Return the files of a model that dialogkit 0.1.0 published without a list.

    It is known by the run that made it: every file of that run's model must be here, byte by byte.
    """
    for model in sorted((folder.parent / "runs").glob("*/model"), reverse=True):
        with suppress(OSError):
            names = [path.relative_to(model).as_posix() for path in regular_files(model)]
            if not {"README.md", "model.safetensors"}.isdisjoint(names) and all(
                _is_same(model / name, folder / name) for name in names
            ):
                return {name: entry_of(folder / name) for name in names}
    return None


def _is_same(one: Path, other: Path) -> bool:
    is_file = other.is_file() and not other.is_symlink()
    return is_file and (one.samefile(other) or cmp(one, other, shallow=False))


def _has_mark(folder: Path) -> bool:
    card = read_regular(folder / "README.md")
    return not folder.is_symlink() and card is not None and CARD_MARK in card


def _adopt(folder: Path) -> Contents:
    """Return the content of a published folder, and give it a list if it has none. Raises: OSError."""
    entries = _entries(folder) or {}
    if not os.path.lexists(folder / FILE_LIST):
        write_list(folder, entries)
    return listed_contents(folder, entries)


def _put_in_place(beside: Path, target: Path) -> None:
    """Exchange a new folder and the old one. Raises: OSError."""
    if not os.path.lexists(target):
        beside.rename(target)
    elif not exchange(beside, target):
        # Without an atomic exchange, neither is in place for a moment.
        old = beside.with_name(f"{beside.name}-old")
        target.rename(old)
        try:
            beside.rename(target)
        except BaseException:
            old.rename(target)
            raise
        old.rename(beside)


def _left_overs(target: Path, *, is_alone: bool) -> list[Path]:
    """Return what killed processes left beside a folder; without the lock, only if it is a day old."""
    new, replaced = re.escape(f".{target.name}.new-"), re.escape(f"{target.name}{_REPLACED}")
    own = re.compile(rf"({new}|{replaced})[a-z0-9_]{{8}}(-old)?")
    found = [path for path in target.parent.iterdir() if own.fullmatch(path.name) and _is_folder(path)]
    return [path for path in found if is_alone or time.time() - path.stat().st_mtime > _STALE_S]


def _clear(left_over: Path, target: Path) -> list[str]:
    """Empty a leftover folder, and move files that dialogkit did not write back to their place.

    Returns: a sentence for each file that was renamed or could not be removed.
    """
    entries = read_list(left_over, name=target.name) if left_over.is_dir() else None
    if entries is None:
        if left_over.name.startswith("."):  # its process was killed before it listed anything
            for path in left_over.glob(f"{FILE_LIST}.*"):
                path.unlink()
        remove_empty(left_over)
        return []
    problems = []
    try:
        # Without entries, its process was killed while filling it.
        found = listed_contents(left_over, entries or entries_of(left_over))
        if entries and not os.path.lexists(target) and set(entries) <= {_name(p, left_over) for p in found.files}:
            left_over.rename(target)  # its process was killed between two renames
            return []
        for path in found.foreign:
            problems += _move_back(path, target / path.relative_to(left_over))
        remove(found)
        remove_empty(left_over)
    except OSError as error:
        problems.append(f"{str(left_over)!r} cannot be removed: {os_reason(error)}")
    return problems


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _move_back(path: Path, place: Path) -> list[str]:
    """Move a foreign file or folder back; return a sentence if its place is taken by now."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(place):
        path.rename(place)
        return []
    if _is_folder(path) and _is_folder(place):
        problems = [line for inside in sorted(path.iterdir()) for line in _move_back(inside, place / inside.name)]
        remove_empty(path)
        return problems
    kept = free_name(place)
    path.rename(kept)
    return [f"{str(place)!r} is not the file that dialogkit wrote: renamed to {kept.name}"]
