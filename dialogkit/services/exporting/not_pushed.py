"""Exports that are no model of the hub: a page for the browser, and a bundle."""

import json
from contextlib import suppress
from pathlib import Path

from dialogkit.config.paths import holds_model
from dialogkit.text import read_small

_MOST = 2**20


def what_is_not_pushed(path: Path) -> tuple[str, str | None] | None:
    """Return what an export is that is not pushed, and the model it was made from where a certificate names it."""
    if path.is_file():
        named = path.with_suffix(".certificate.json")
        return ("a bundle", _model_in(named)) if path.suffix == ".zip" and named.is_file() else None
    if not path.is_dir() or holds_model(path) or list(path.glob("*.gguf")):
        return None
    if (path / "model.onnx").is_file() and (path / "certificate.json").is_file():
        return "a page for the browser", _model_in(path / "certificate.json")
    for bundle in sorted(path.glob("*.zip")):
        if (found := what_is_not_pushed(bundle)) is not None:
            return "the folder of a bundle", found[1]
    return None


def _model_in(certificate: Path) -> str | None:
    """Return the name of the model in a certificate; None where it has none."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_small(certificate, _MOST))
        if isinstance(content, dict) and isinstance(content.get("model"), str):
            return str(content["model"])
    return None
