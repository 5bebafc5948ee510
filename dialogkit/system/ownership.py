"""Track the files that dialogkit wrote. Only these are ever removed or replaced, and only while unchanged.

A folder that dialogkit fills holds a list of its files with their sizes and SHA-256 sums: `.dialogkit-files`,
or the manifest of a checkpoint. Everything else in it belongs to somebody else. Links and mounts are never
entered. A single file (a report, a job file) carries the sum of its own text in its last line.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from dialogkit.config.paths import DOOMED, MANIFEST
from dialogkit.errors import StorageError
from dialogkit.text import read_small

FILE_LIST = ".dialogkit-files"
"""The list of a folder's files. It also names the folder: a copy under another name belongs to whoever made it."""

_LISTS = (FILE_LIST, MANIFEST, DOOMED)
LOCK_TIMEOUT_S = 600.0
_QUICK_BYTES = 2**20
_MAX_LIST_BYTES = 16 * 2**20
_MAX_SIGNED_BYTES = 256 * 2**20
_SIGNATURE = re.compile(rb"[^\n]*\bsha256:([0-9a-f]{64})[^\n]*\n?")


class Entry(NamedTuple):
    """A file as it was written."""

    size: int
    sha256: str


Entries = Mapping[str, Entry]
"""Files by their POSIX paths relative to the folder of the list."""


@dataclass
class Contents:
    """The contents of a folder, by who wrote them."""

    files: list[Path] = field(default_factory=list)
    """Files that dialogkit wrote, unchanged."""
    folders: list[Path] = field(default_factory=list)
    """Folders that dialogkit made, each after its subfolders."""
    foreign: list[Path] = field(default_factory=list)
    """Everything else: files, links, mounts, and whole folders."""

    @property
    def bytes(self) -> int:
        """Total size of the files that dialogkit wrote."""
        return sum(path.lstat().st_size for path in self.files)


def entry_of(path: Path) -> Entry:
    """Return size and sum of a file. Raises: OSError."""
    with path.open("rb") as file:
        return Entry(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def is_as_written(path: Path, entry: Entry, *, exact: bool = True) -> bool:
    """Return whether a path is a regular file with the size and the content of its entry.

    Without `exact` only the size of a large file is compared.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return False
        return entry_of(path) == entry if exact or entry.size <= _QUICK_BYTES else True
    except OSError:
        return False


def read_regular(path: Path, limit: int = _MAX_LIST_BYTES) -> bytes | None:
    """Return the content of a regular file; None for a link, a pipe, a missing file or one beyond the limit."""
    try:
        content = b"" if path.is_symlink() else read_small(path, limit)
    except (OSError, ValueError):
        return None
    return None if path.is_symlink() or len(content) > limit else content


def parse_entries(files: Any) -> dict[str, Entry]:
    """Parse the JSON of a list, `{name: [size, sum]}`. Raises: ValueError for anything else."""
    if not isinstance(files, dict):
        raise ValueError("no list of files")
    entries = {}
    for name, entry in files.items():
        size, digest = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if type(size) is not int or not isinstance(digest, str) or not _is_inside(name):
            raise ValueError(f"no entry of a file: {name!r}")
        entries[name] = Entry(size, digest)
    return entries


def _is_inside(name: str) -> bool:
    """Return whether a listed name is a normalized path below its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and str(path) == name


def read_list(folder: Path, *, name: str | None = None) -> dict[str, Entry] | None:
    """Return the list of a folder's files; None if it has none, or one that names another folder.

    Args:
        folder: the folder of the list.
        name: the folder's name when its list was written; None for its present name.
    """
    content = read_regular(folder / FILE_LIST)
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        found = json.loads(content or b"")
        if found["folder"] == (name or folder.name):
            return parse_entries(found["files"])
    return None


def write_list(folder: Path, entries: Entries, *, name: str | None = None) -> None:
    """Write the list of a folder's files atomically. Raises: OSError."""
    text = json.dumps({"folder": name or folder.name, "files": {k: entries[k] for k in sorted(entries)}}, indent=1)
    beside = folder / f"{FILE_LIST}.{os.getpid()}"
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        os.replace(beside, folder / FILE_LIST)
    finally:
        beside.unlink(missing_ok=True)


def entries_of(folder: Path) -> dict[str, Entry]:
    """Return the entries of all files in a folder, except its list. Raises: OSError."""
    paths = [path for path in regular_files(folder) if path != folder / FILE_LIST]
    return {path.relative_to(folder).as_posix(): entry_of(path) for path in paths}


def add_to_list(folder: Path, *paths: Path) -> None:
    """Add just written files to the list of a folder. Raises: OSError."""
    added = {path.relative_to(folder).as_posix(): entry_of(path) for path in paths}
    write_list(folder, {**(read_list(folder) or {}), **added})


def regular_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without entering links and mounts. Raises: OSError."""
    mounts = mounts_in(folder)

    def look(inside: Path) -> Iterator[Path]:
        for entry in sorted(os.scandir(inside), key=lambda entry: entry.name):
            path = inside / entry.name
            if path.relative_to(folder).as_posix() in mounts:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from look(path)
            elif entry.is_file(follow_symlinks=False):
                yield path

    yield from look(folder)


def listed_contents(folder: Path, entries: Entries, *, exact: bool = True, besides: str = FILE_LIST) -> Contents:
    """Sort the contents of a folder by its list.

    Args:
        folder: the folder of the files.
        entries: the entries of its list.
        exact: whether to compare the content of large files too, not just their size, which is quick.
        besides: the name of the list itself, which counts as written by dialogkit.

    Raises: OSError.
    """
    made = {str(parent) for name in entries for parent in PurePosixPath(name).parents}
    mounts = mounts_in(folder)
    found = Contents()

    def look(inside: Path) -> None:
        for entry in sorted(os.scandir(inside), key=lambda entry: entry.name):
            path = inside / entry.name
            name = path.relative_to(folder).as_posix()
            if name in mounts:
                found.foreign.append(path)
            elif entry.is_dir(follow_symlinks=False) and name in made:
                look(path)
                found.folders.append(path)
            elif not entry.is_file(follow_symlinks=False):
                found.foreign.append(path)
            elif name == besides or (
                name in entries
                and entry.stat(follow_symlinks=False).st_size == entries[name].size
                and is_as_written(path, entries[name], exact=exact)
            ):
                found.files.append(path)
            else:
                found.foreign.append(path)

    look(folder)
    return found


def remove(found: Contents, *, besides: Collection[Path] = ()) -> None:
    """Remove files and the folders that become empty. Raises: OSError at the first that cannot be removed.

    Manifests are renamed first, so that no partial checkpoint looks complete. The list of a folder goes last, so
    that an interrupted removal can be completed.
    """
    files = [path for path in found.files if path not in besides]
    for path in files:
        if path.name == MANIFEST:
            os.replace(path, path.with_name(DOOMED))
    lists = [path.with_name(DOOMED) if path.name == MANIFEST else path for path in files if path.name in _LISTS]
    # Without a list, the other files of an evaluation are known by its `.json`.
    others = sorted((path for path in files if path.name not in _LISTS), key=lambda path: path.suffix == ".json")
    for path in (*others, *lists):
        path.unlink(missing_ok=True)
    for folder in found.folders:
        remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    with suppress(OSError):
        folder.rmdir()


def free_name(path: Path) -> Path:
    """Return a free path, `NAME.kept-1` or the next, to keep what somebody else wrote at a path of dialogkit."""
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    return free


@contextmanager
def exclusive(folder: Path, doing: str) -> Iterator[bool]:
    """Lock a folder against other processes that take this lock; yields whether the disk supports locks.

    Args:
        folder: must exist.
        doing: what the other process does meanwhile, for the error, such as `publishing into`.

    Raises: StorageError after a wait of `LOCK_TIMEOUT_S`; OSError.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        wait_until, is_locked = time.monotonic() + LOCK_TIMEOUT_S, False
        while not is_locked:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_locked = True
            except BlockingIOError:
                if time.monotonic() > wait_until:
                    raise StorageError(
                        f"other processes have been {doing} {str(folder)!r} for {LOCK_TIMEOUT_S:,.0f} s"
                    ) from None
                time.sleep(0.02)
            except OSError:  # a disk without locks
                break
        yield is_locked
    finally:
        os.close(descriptor)


# Mounts


def mounts_in(folder: Path) -> frozenset[str]:
    """Return what is mounted below a folder, as POSIX paths relative to it; `.` is the folder itself.

    A bind mount of the same disk looks like any folder or file, so Linux's own list is read.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return frozenset({"."} if os.path.ismount(folder) else ())
    real = os.path.realpath(folder)
    inside = [place for place in _places(tuple(lines)) if place == real or place.startswith(f"{real}{os.sep}")]
    return frozenset(Path(place).relative_to(real).as_posix() for place in inside)


@cache
def _places(lines: tuple[bytes, ...]) -> tuple[str, ...]:
    # White space is escaped in octal: `\040`.
    octal = re.compile(rb"\\([0-7]{3})")
    return tuple(
        os.fsdecode(octal.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4])) for line in lines
    )


# Exchange of folders


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; return False if the system or the disk does not support it.

    Raises: OSError for any other reason.
    """
    rename = _renameat2()
    if rename is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    if rename(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _renameat2() -> Any:
    """Return Linux's `renameat2`; None on other systems."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None


# Single files


def signed(text: str, *, comment: str) -> str:
    """Return text with its sum in an added last line.

    Args:
        text: the content.
        comment: a comment in its language, with `{}` in place of the sum.
    """
    text = text if text.endswith("\n") else f"{text}\n"
    return text + comment.format(f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}") + "\n"


def is_signed(path: Path) -> bool:
    """Return whether a file is unchanged since `signed` made it."""
    content = read_regular(path, _MAX_SIGNED_BYTES)
    if not content:
        return False
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    found = _SIGNATURE.fullmatch(content[start:])
    return found is not None and hashlib.sha256(content[:start]).hexdigest() == found[1].decode()
