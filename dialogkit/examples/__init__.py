"""The notebooks that ship with the package."""

import shutil
from pathlib import Path

from dialogkit.errors import StorageError, os_reason

_FOLDER = Path(__file__).parent


def copy_examples(folder: str | Path = "notebooks") -> list[Path]:
    """Copy the notebooks that ship with the package into a folder, and return their paths; none is overwritten.

    Raises: StorageError if the folder cannot be written.
    """
    target = Path(folder).expanduser()
    copies = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(_FOLDER.glob("*.ipynb")):
            copies.append(target / notebook.name)
            if not copies[-1].exists():
                shutil.copyfile(notebook, copies[-1])
    except OSError as error:
        raise StorageError(
            f"the notebooks cannot be copied to {str(target)!r}: {os_reason(error)}", hint="choose another folder"
        ) from None
    return copies
