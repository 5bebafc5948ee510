"""Where the shipped settings lie, and where caches go."""

import os
from functools import cache
from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
"""The file in a folder that says of which model it holds an adapter."""

PACKAGE_DIR = Path(__file__).resolve().parent.parent


@cache
def configs_dir() -> Path:
    """Return the folder with `models/` and `presets/`.

    In an installed wheel it is inside the package, in a checkout (editable or not) beside it.
    """
    packaged = PACKAGE_DIR / "_configs"
    return packaged if packaged.is_dir() else PACKAGE_DIR.parent / "configs"


def holds_model(folder: Path) -> bool:
    """Return whether a folder has a model in the format of transformers, or an adapter in that of peft."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def cache_dir() -> Path:
    """Return the folder for prepared data: `DIALOGKIT_CACHE`, or the user's cache folder."""
    if own := os.environ.get("DIALOGKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dialogkit"
