"""Entries of a cache on disk: arrays that are believed only if this user wrote them and no bit has changed."""

import hashlib
import os
import re
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dialogkit.errors import DialogKitError

_TRAILER = struct.Struct("<8sQ32s")
"""After NumPy's archive, which readers of archives allow: a mark, the archive's length and its SHA-256."""
_MARK = b"dkcache1"
_CHUNK = 2**20
_STALE_S = 24 * 3600
"""Age of a temporary file after which its writer must have been killed."""


def read_entry(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an entry, or None if it is missing, damaged, of another key or of another user.

    Args:
        path: the entry's file.
        key: what the entry was made from. All of it is compared; the file's name need not be unique.
    """
    if not _is_private(path.parent):
        return None
    try:
        # A link is not followed, and a pipe without a writer is not waited for.
        with open(path, "rb", opener=_open_plain) as file:
            if not _is_own(os.fstat(file.fileno()), stat.S_ISREG) or not _is_whole(file):
                return None
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                if str(archive["key"]) != key:
                    return None
                return {name: archive[name] for name in archive.files if name != "key"}
    except DialogKitError:  # a signal asks to stop
        raise
    except Exception:  # whatever is wrong with an entry, it can be made again
        return None


def write_entry(path: Path, key: str, arrays: Mapping[str, Any]) -> None:
    """Write an entry, in one move. A cache that cannot be written is no error: there is then no entry."""
    beside = None
    try:
        if not _made_private(path.parent):
            return
        _remove_stale(path.parent)
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".npz")
        with os.fdopen(descriptor, "w+b") as file:
            np.savez(file, key=np.array(key), **arrays)
            size = file.seek(0, os.SEEK_END)
            file.write(_TRAILER.pack(_MARK, size, _digest(file, size)))
        os.replace(beside, path)
        beside = None
    except OSError:
        pass
    finally:
        if beside is not None:
            with suppress(OSError):
                os.unlink(beside)


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _is_private(folder: Path) -> bool:
    try:
        return _is_own(folder.lstat(), stat.S_ISDIR)
    except OSError:
        return False


def _made_private(folder: Path) -> bool:
    """Make a folder that only this user writes to. Returns whether it is one. Raises: OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_own(folder.lstat(), stat.S_ISDIR, forbidden=0) and not _is_private(folder):
        folder.chmod(0o700)
    return _is_private(folder)


def _is_own(status: os.stat_result, is_kind: Callable[[int], bool], *, forbidden: int = 0o022) -> bool:
    """Return whether this user owns a file and nobody else may write to it.

    Windows has neither owners nor modes to ask for.
    """
    if not is_kind(status.st_mode):
        return False
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & forbidden)


def _is_whole(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END) - _TRAILER.size
    if size < 0:
        return False
    file.seek(size)
    mark, length, digest = _TRAILER.unpack(file.read(_TRAILER.size))
    # The length comes first: of a huge file with holes, nothing more is read.
    return (mark, length) == (_MARK, size) and digest == _digest(file, size)


def _digest(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file there."""
    digest, chunk = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    file.seek(0)
    while size and (read := file.readinto(chunk[: min(size, _CHUNK)])):  # type: ignore[attr-defined]
        digest.update(chunk[:read])
        size -= read
    return digest.digest()


def _remove_stale(folder: Path) -> None:
    """Remove what writers that were killed have left."""
    for entry in os.scandir(folder):
        if re.fullmatch(r"\.writing-\w{8}\.npz", entry.name):
            with suppress(OSError):  # another process may remove it as well
                status = entry.stat(follow_symlinks=False)
                if _is_own(status, stat.S_ISREG) and time.time() - status.st_mtime > _STALE_S:
                    os.unlink(entry)
