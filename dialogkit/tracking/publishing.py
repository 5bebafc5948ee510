"""The folders of finished models: replaced in one move, and only where dialogkit made them."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from dialogkit.errors import StorageError

PUBLISHED_MARK = b"\ntags: [dialogkit,"
"""A line of every model card that dialogkit writes."""


def published_dir(output: Path, model: str) -> Path:
    """Return the folder of the newest finished model of a name."""
    return output / model.replace("-", "_")


def published_dirs(output: Path) -> list[Path]:
    """Return the folders of finished models that dialogkit published in an output folder."""
    with suppress(OSError):
        return [path for path in sorted(output.iterdir()) if _is_published(path)]
    return []


def publish(model_dir: Path, target: Path) -> None:
    """Replace `target` by the files of a finished run, by hard links where the file system has them.

    The old folder is moved aside first and removed last: at every moment one of the two is whole.
    Raises: StorageError if `target` holds something else, or cannot be written; then it is as it was.
    """
    require_publishable(target)
    beside, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    try:
        for left_over in (beside, old):
            shutil.rmtree(left_over, ignore_errors=True)
        shutil.copytree(model_dir, beside, copy_function=_link_or_copy)
        if target.exists():
            target.rename(old)
        beside.rename(target)
    except OSError as error:
        # Of several files that could not be copied the first tells enough.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or str(error)
        raise StorageError(
            f"{str(target)!r} cannot be written: {reason.lower()}; the model is in {str(model_dir)!r}"
        ) from None
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for left_over in (beside, old):
            shutil.rmtree(left_over, ignore_errors=True)


def require_publishable(target: Path) -> None:
    """Raise StorageError if `target` is there and is not a model that dialogkit published.

    Such a model is known by its card. Anything else may be the only copy of somebody's work.
    """
    if not (target.exists() or target.is_symlink()):
        return
    if not _is_published(target):
        raise StorageError(
            f"{str(target)!r} is there already and was not made by dialogkit, so it is left as it is",
            hint=f"--set model.name=my-{target.name}",
        )


def _is_published(folder: Path) -> bool:
    card = folder / "README.md"
    return not folder.is_symlink() and card.is_file() and PUBLISHED_MARK in card.read_bytes()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
