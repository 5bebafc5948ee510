"""Recognises the folder of a world without reading it: what reads worlds takes time to import."""

import os
from pathlib import Path

from dialogkit.data.hints import SUFFIXES, WORLD_FILES
from dialogkit.data.open_files import suffix_of

WORLDS = Path(__file__).parent
"""The folder of the worlds that ship with the package."""


def holds_world(folder: str | Path) -> bool:
    """Return whether a folder holds topics in YAML, and no data files beside."""
    try:
        endings = {suffix_of(Path(name)) for name in os.listdir(folder) if not name.startswith(".")}
    except OSError:
        return False
    return bool(endings & set(WORLD_FILES[:2])) and not endings & (set(SUFFIXES) - set(WORLD_FILES))
