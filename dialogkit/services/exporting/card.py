"""The pages beside an exported model: its card, how to use it, and its licence."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dialogkit.services.exporting.certificate import Certificate
from dialogkit.services.runs.resolve import Loadable
from dialogkit.services.training.model_card import license_id
from dialogkit.text import read_small

_OF_THE_FOLDER = ("Use", "Files")
"""Sections of a model's card about its folder, which is not exported."""
_MOST = 1_000_000
FROM_NOTHING = "random weights"
"""What the training of a model from a shape started from."""
CAUTION = "A model of this size makes mistakes and invents facts; do not rely on what it says."


class Origin(NamedTuple):
    """Where a model is from.

    Attributes:
        weights: what training started from.
        weights_license, data, data_license: as they were recorded; None where they are unknown.
    """

    weights: str
    weights_license: str | None = None
    data: str | None = None
    data_license: str | None = None

    @property
    def license_id(self) -> str:
        """The licence as the hub writes it; `other` where it is not one that the hub has a name for."""
        return license_id(self.data_license if self.data else self.weights_license)


def origin_of(loadable: Loadable) -> Origin:
    """Return where a model is from: by the record of its run, or by its source."""
    if loadable.run is None:
        return Origin(loadable.model.source or loadable.name, loadable.model.license)
    record = loadable.run.read()
    settings = record.settings("model")
    source = settings.get("source")
    return Origin(
        FROM_NOTHING if source is None else str(source),
        settings.get("license"),
        record.data.dataset,
        record.data.license,
    )


def license_text(origin: Origin) -> str:
    """Return what is known about the licence of a model."""
    lines = [f"The weights were trained from {origin.weights}."]
    if origin.weights != FROM_NOTHING:
        lines.append(f"Licence of those weights: {origin.weights_license or 'not recorded, ask their owner'}")
    if origin.data is not None:
        lines.append(f"Data: {origin.data}")
        lines.append(f"Licence of the data: {origin.data_license or 'not recorded, ask the owner of the data'}")
    return "\n".join([*lines, "", CAUTION, ""])


def certificate_section(certificate: Certificate) -> list[str]:
    """Return the lines of a card that say how faithful the copy is."""
    rows = [f"| {name} | {text} |" for name, text in certificate.rows().items()]
    return ["## How faithful this copy is", "", "| measured | |", "|---|---|", *rows, ""]


def gguf_card(name: str, certificate: Certificate, head: str, folder: Path) -> str:
    """Return the card of a GGUF file: what it is, how to use it, and what is known about the model.

    Args:
        name: the name of the model for Ollama.
        certificate: that of the file.
        head: the YAML at its beginning.
        folder: the folder of the original, which may have a card.
    """
    use = [
        "```bash",
        f"llama-cli -m {certificate.file}",
        f"ollama create {name} -f Modelfile && ollama run {name}",
        f'dialogkit generate ./{certificate.file} --prompt "Hello!"',
        "```",
    ]
    return _card(name, "GGUF", certificate, head, folder, use)


def web_card(name: str, certificate: Certificate, head: str, folder: Path) -> str:
    """Return the card of a page that runs a model: see `gguf_card`."""
    use = [
        "Any server of files will do; browsers start no model from a file on the disk:",
        "",
        "```bash",
        "python -m http.server -b 127.0.0.1 -d .",
        "```",
        "",
        "The model runs in the browser. Once it is loaded, the page asks no server for anything, and what is said",
        "stays in the browser. `onnxruntime.js` and `onnxruntime.wasm` are parts of Microsoft's onnxruntime-web,",
        "under the MIT License.",
    ]
    return _card(name, "ONNX", certificate, head, folder, use)


def _card(name: str, form: str, certificate: Certificate, head: str, folder: Path, use: Sequence[str]) -> str:
    results = ["The results at the beginning of this card are those of the original.", ""]
    lines = [
        f"---\n{head}---",
        "",
        f"# {name}",
        "",
        f"`{certificate.file}` is {certificate.model} in {form} with {certificate.weight_type.upper()} weights, "
        f"made by dialogkit {certificate.versions['dialogkit']}.",
        "",
        *(results if "model-index:" in head else []),
        *certificate_section(certificate),
        "## Use",
        "",
        *use,
        "",
    ]
    return "\n".join([*lines, *_about(folder), CAUTION, ""])


def bundle_readme(name: str, certificate: Certificate) -> str:
    """Return the page of a bundle that says how to use it."""
    lines = [
        f"# {name}",
        "",
        f"The model {certificate.model} as transformers loads it. What it is and what it was trained on is in",
        "`model/README.md`, if it has a card; `LICENSE.txt` says what is known about its licence.",
        "",
        "With transformers (`pip install transformers torch`):",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'chat = pipeline("text-generation", model="model")',
        "print(chat(",
        '    [{"role": "user", "content": "Hello!"}],',
        "    do_sample=True, temperature=0.7, top_k=50, top_p=0.95, max_new_tokens=128,",
        ')[0]["generated_text"][-1]["content"])',
        "```",
        "",
        "With dialogkit:",
        "",
        "```bash",
        "dialogkit chat ./model",
        "```",
        "",
        *certificate_section(certificate),
    ]
    return "\n".join(lines)


def own_card(folder: Path) -> str | None:
    """Return the card in a model's folder; None without one."""
    try:
        return read_small(folder / "README.md", _MOST).decode("utf-8", "replace")
    except OSError:
        return None


def _about(folder: Path) -> list[str]:
    """Return the sections of a model's card that are about the model."""
    return sections_about(own_card(folder) or "")[1:]


def sections_about(card: str) -> list[str]:
    """Return the beginning of a model's card and its sections about the model, without those about its folder."""
    begin, *sections = re.split(r"^## ", without_head(card), flags=re.MULTILINE)
    kept = [section for section in sections if section.splitlines()[0].strip() not in _OF_THE_FOLDER]
    return [begin, *(f"## {section.rstrip()}\n" for section in kept)]


def without_head(card: str) -> str:
    """Return a card without the YAML at its beginning."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
