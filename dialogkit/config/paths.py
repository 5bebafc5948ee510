"""Paths of shipped settings and caches, and checks of files and folders by name."""

import json
import os
import stat
from collections.abc import Collection
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from dialogkit.errors import os_reason
from dialogkit.text import sanitize

MANIFEST = "manifest.json"
"""The file that marks a checkpoint as complete."""
DOOMED = f".old-{MANIFEST}"
"""Name of a checkpoint's manifest while its files are removed."""
ADAPTER_CONFIG = "adapter_config.json"
"""The file of an adapter folder that names the base model."""

_MARKS = ("config.json", ADAPTER_CONFIG)

PARTS = "pytorch_model_fsdp_0"
"""The folder in a checkpoint that holds the shards of a model, as accelerate names it."""

PACKAGE_DIR = Path(__file__).resolve().parent.parent

DEFAULT_OUTPUT = "models"
EXPORTS = "exports"
"""The folder of exported models, unless another is named."""
NEWEST = "last"
"""Means the newest unfinished run wherever a run can be named, so no run can have this name."""


@cache
def configs_dir() -> Path:
    """Return the folder with `models/` and `presets/`.

    In an installed wheel it is inside the package, in a checkout (editable or not) beside it.
    """
    packaged = PACKAGE_DIR / "_configs"
    return packaged if packaged.is_dir() else PACKAGE_DIR.parent / "configs"


@cache
def shipped_names(kind: str) -> tuple[str, ...]:
    """Return the names of the shipped `models` or `presets`, in alphabetical order."""
    return tuple(sorted(path.stem for path in (configs_dir() / kind).glob("*.json")))


def shipped_schema() -> dict[str, Any]:
    """Return the JSON Schema of settings as it is shipped: their names and values without importing them."""
    schema: dict[str, Any] = json.loads((configs_dir() / "schema.json").read_text(encoding="utf-8"))
    return schema


def holds_model(folder: Path) -> bool:
    """Return whether a folder has a model in the format of transformers, or an adapter in that of peft."""
    return any(os.path.isfile(folder / name) for name in _MARKS)


def without_model(name: str) -> str:
    """Return one sentence about a folder without a model, with the file that is the reason."""
    folder = Path(name).expanduser()
    if (kind := file_kind(folder)) != "a folder":
        return f"the folder {name!r} holds no model: it is {kind}"
    for path in (folder / mark for mark in _MARKS):
        if (kind := file_kind(path)) not in (None, "missing"):
            return f"the folder {name!r} holds no model: {str(path)!r} is {kind}"
    if (folder / "model.onnx").is_file():
        return f"the folder {name!r} holds no model but a page for the browser, made of one"
    return f"the folder {name!r} holds no model"


def file_kind(path: Path) -> str | None:
    """Return a description of what a path refers to; None for a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a broken link" if path.is_symlink() else "missing"
    except (OSError, ValueError) as error:  # a loop of links, no permission, an impossible name
        return f"unreadable ({os_reason(error)})"
    if not os.access(path, os.R_OK):
        return "unreadable (permission denied)"
    if stat.S_ISREG(mode):
        return None
    kinds = {"a folder": stat.S_ISDIR, "a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((name for name, is_kind in kinds.items() if is_kind(mode)), "a device")


def files_beside(path: Path, endings: Collection[str]) -> list[Path]:
    """Return the other files in the folder of a path with one of the endings; `.gz` may follow it.

    Names that a terminal cannot show as they are, and so cannot be copied from it, are left out.
    """
    with suppress(OSError):
        others = [file for file in sorted(path.parent.iterdir()) if file.name != path.name and file.is_file()]
        plain = [file for file in others if sanitize(file.name) == file.name]
        return [file for file in plain if file.name.removesuffix(".gz").endswith(tuple(endings))]
    return []


def nearest_file(path: Path, endings: Collection[str]) -> Path | None:
    """Return the file beside a path with the most similar name, endings left out; None if none is similar."""
    stems = {file.name.partition(".")[0]: file for file in files_beside(path, endings)}
    return next((stems[stem] for stem in get_close_matches(path.name.partition(".")[0], stems, n=1)), None)


def existing_part(path: Path) -> Path:
    """Return the longest beginning of a path that exists. Raises: OSError if a folder may not be looked into."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def cache_dir() -> Path:
    """Return the folder for prepared data: `DIALOGKIT_CACHE`, or the user's cache folder."""
    if own := os.environ.get("DIALOGKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dialogkit"
