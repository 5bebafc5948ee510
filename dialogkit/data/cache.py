"""A cache of arrays on disk, whose entries are used only if this user wrote them and no bit has changed."""

import hashlib
import os
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
from dialogkit.text import open_without_waiting

_TRAILER = struct.Struct("<8sQ32s")
"""Follows NumPy's archive, as zip readers allow: a mark, the length of the archive and its SHA-256."""
_MARK = b"dkcache1"
_CHUNK = 2**20
_STALE_S = 24 * 3600
"""Age of a temporary file above which its writer must have been killed."""


def read_entry(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an entry, or None if it is missing, damaged, of another key or of another user.

    The key describes what the entry was made from. It is compared in full; the file name need not be unique.
    """
    if not _is_private(path.parent):
        return None
    try:
        with open(path, "rb", opener=_open_unlinked) as file:
            if not _is_own(os.fstat(file.fileno()), stat.S_ISREG) or not _is_whole(file):
                return None
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                if str(archive["key"]) != key:
                    return None
                return {name: archive[name] for name in archive.files if name != "key"}
    except DialogKitError:  # raised by a signal handler
        raise
    except Exception:  # a damaged entry can be made again
        return None


def write_entry(path: Path, key: str, arrays: Mapping[str, Any]) -> None:
    """Write an entry atomically. If the cache cannot be written, there is no entry and no error."""
    with suppress(OSError):
        if not _made_private(path.parent):
            return
        _remove_stale(path.parent)
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".npz")
        try:
            with os.fdopen(descriptor, "w+b") as file:
                np.savez(file, key=np.array(key), **arrays)
                size = file.seek(0, os.SEEK_END)
                file.write(_TRAILER.pack(_MARK, size, _digest(file, size)))
            os.replace(beside, path)
        finally:
            with suppress(OSError):  # missing once it was renamed
                os.unlink(beside)


def _open_unlinked(path: str, flags: int) -> int:
    return open_without_waiting(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _is_private(folder: Path) -> bool:
    try:
        return _is_own(folder.lstat(), stat.S_ISDIR)
    except OSError:
        return False


def _made_private(folder: Path) -> bool:
    """Make a folder that only this user can write to. Return whether that succeeded. Raises: OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_own(folder.lstat(), stat.S_ISDIR, forbidden=0) and not _is_private(folder):
        folder.chmod(0o700)
    return _is_private(folder)


def _is_own(status: os.stat_result, is_kind: Callable[[int], bool], *, forbidden: int = 0o022) -> bool:
    """Return whether this user owns a file and nobody else may write to it.

    On Windows, which has no such owners and modes, only the kind is checked.
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
    # Compare the length first, so that a huge sparse file is not read.
    return (mark, length) == (_MARK, size) and digest == _digest(file, size)


def _digest(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file positioned after them."""
    digest = hashlib.sha256()
    file.seek(0)
    for start in range(0, size, _CHUNK):
        digest.update(file.read(min(_CHUNK, size - start)))
    return digest.digest()


def _remove_stale(folder: Path) -> None:
    """Remove temporary files of killed writers."""
    for path in folder.glob(".writing-????????.npz"):
        with suppress(OSError):  # another process may remove it as well
            status = path.lstat()
            if _is_own(status, stat.S_ISREG) and time.time() - status.st_mtime > _STALE_S:
                path.unlink()
