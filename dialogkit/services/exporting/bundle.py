"""A model as one zip file: the folder that transformers loads, its licence, and how to use it."""

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from dialogkit.config.model import ModelConfig
from dialogkit.services.exporting.card import Origin, license_text, own_card

if TYPE_CHECKING:
    from dialogkit.services.runs.loading import LoadedModel

_MODEL = "model"
_ABOUT_PICKLE = re.compile(r"^- `training_args\.bin`.*\n?(?:[ \t]+\S.*\n?)*", re.MULTILINE)
"""What a card says of the file that a bundle leaves out."""


def write_bundle(path: Path, name: str, original: "LoadedModel", source: Path, origin: Origin) -> None:
    """Write a zip file with a model, its card and its licence; the same model makes the same file.

    Args:
        path: the file.
        name: the folder in it.
        original: the model, which is saved anew: merged, and without the pickle of its training settings.
        source: its folder, which may have a card.
        origin: where it is from.
    """
    with TemporaryDirectory(dir=path.parent, prefix=".model-") as made, ZipFile(path, "w") as bundle:
        folder = Path(made)
        original.model.save_pretrained(folder)
        original.tokenizer.save(folder)
        if (card := own_card(source)) is not None:
            (folder / "README.md").write_text(_ABOUT_PICKLE.sub("", card), encoding="utf-8")
        (folder / "LICENSE.txt").write_text(license_text(origin), encoding="utf-8")
        for file in sorted(folder.iterdir()):
            inside = file.name if file.name == "LICENSE.txt" else f"{_MODEL}/{file.name}"
            info = _entry(f"{name}/{inside}", ZIP_STORED if file.suffix == ".safetensors" else ZIP_DEFLATED)
            with file.open("rb") as content, bundle.open(info, "w", force_zip64=True) as entry:
                shutil.copyfileobj(content, entry)


def add_readme(path: Path, name: str, text: str) -> None:
    """Add the page that says how to use a bundle."""
    with ZipFile(path, "a") as bundle:
        bundle.writestr(_entry(f"{name}/README.md", ZIP_DEFLATED), text)


def read_bundle(path: Path, name: str, original: "LoadedModel") -> Any:
    """Return the model in a bundle."""
    from dialogkit.models.build import build_model

    with TemporaryDirectory(dir=path.parent, prefix=".read-") as folder, ZipFile(path) as bundle:
        bundle.extractall(folder)
        return build_model(ModelConfig(source=str(Path(folder) / name / _MODEL)), original.tokenizer)


def _entry(name: str, compression: int) -> ZipInfo:
    """Return an entry with the same date and permissions on each machine."""
    info = ZipInfo(name)
    info.compress_type, info.external_attr = compression, 0o644 << 16
    return info
