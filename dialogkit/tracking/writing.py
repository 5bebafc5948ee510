"""Writes files so that none is ever half there, with ordinary permissions."""

import os
import tempfile
from pathlib import Path

from dialogkit.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is never half there."""
    try:
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(beside, 0o666 & ~_umask())
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {(error.strerror or str(error)).lower()}") from None


def ordinary_permissions(folder: Path) -> None:
    """Give the files of a folder the permissions that the umask allows: safetensors writes mode 0600."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
