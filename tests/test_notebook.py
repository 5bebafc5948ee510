"""The notebook that ships with the package runs from its first cell to its last."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

SMALLER = {
    "max_samples=50": "max_samples=10",
    '"data.samples": 20': '"data.samples": 8',
    'evaluate(["custom-tiny", "custom-nano"])': 'evaluate(["custom-tiny", "custom-nano"], samples=8)',
}
"""Words of the notebook, and those with which the same cell takes less time."""


def test_the_notebook_runs(in_temporary_folder: Path) -> None:
    notebook = nbformat.read(REPOSITORY / "dialogkit/examples/first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    for long, short in SMALLER.items():
        (cell,) = [cell for cell in notebook.cells if long in cell.source]
        cell.source = cell.source.replace(long, short)
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(in_temporary_folder)}}
    ).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "held-out loss" in printed  # progress is visible in a notebook
    assert "custom-nano" in printed.splitlines()[-1]
    assert (in_temporary_folder / "models/custom_tiny/model.safetensors").is_file()
