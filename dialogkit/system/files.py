"""Write files atomically, with ordinary permissions."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dialogkit.errors import StorageError, os_reason
from dialogkit.system.ownership import free_name, is_signed, signed


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its parts, to a file atomically, by renaming a temporary one. Raises: StorageError."""
    try:
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.writelines([text] if isinstance(text, str) else text)
            os.chmod(beside, 0o666 & ~umask())
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {os_reason(error)}") from None


def keep(path: Path) -> Path:
    """Rename what somebody else wrote at a path, to keep it; return its new path.

    Raises: StorageError.
    """
    try:
        return path.rename(free_name(path))
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be renamed: {os_reason(error)}") from None


def write_signed(path: Path, text: str, *, comment: str) -> Path | None:
    """Write a text with its sum; return the new path of a changed file that was kept, if any.

    Args:
        path: the file.
        text: its content.
        comment: a comment in its language, with `{}` in place of the sum.

    Raises: StorageError.
    """
    kept = keep(path) if os.path.lexists(path) and not is_signed(path) else None
    write_text(path, signed(text, comment=comment))
    return kept


def ordinary_permissions(folder: Path) -> None:
    """Give files of a folder the permissions that the umask allows: safetensors writes mode 0600."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~umask())


def umask() -> int:
    """Return this process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
