"""The notebooks that ship with the package run from their first cell to their last, in one kernel."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from tests.conftest import REPOSITORY, SMALL

NOTEBOOKS = sorted((REPOSITORY / "dialogkit/examples").glob("*.ipynb"))
SHORT = ("first_steps",)
"""That of the ordinary suite; `make faults` runs all."""

PRELUDE = f"""
import threading

BRIEF = {SMALL!r}
OF_ANY_MODEL = {{name: value for name, value in BRIEF.items() if not name.startswith("model.")}}
asked = threading.Event()
"""
SMALLER = {
    "overrides={": "overrides={**BRIEF, ",
    "max_samples=50": "max_samples=8, overrides=BRIEF",
    "overrides=settings": "overrides={**settings, **OF_ANY_MODEL}",
    "first_step.set()": "first_step.set(), asked.wait(60)",
    "stop()\n": "stop()\nasked.set()\n",
    "samples=50": "samples=2",
}
"""Words of the notebooks, and those with which the same cells take seconds, and stop at a step that is known."""


class Kernel:
    """A kernel that runs cells, one after the other."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.manager, self._client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=environment)

    def run(self, code: str, seen: Callable[[str], None] = lambda _: None) -> tuple[dict[str, Any], str]:
        """Run a cell; return the kernel's reply, and all that the cell shows. `seen` receives each piece."""
        shown: list[str] = []

        def keep(message: dict[str, Any]) -> None:
            content = message["content"]
            data = content.get("data", {})
            shown.append(content.get("text") or data.get("text/html") or data.get("text/plain") or "")
            shown.append("\n".join(content.get("traceback", ())))
            seen("".join(shown[-2:]))

        reply = self._client.execute_interactive(code, output_hook=keep, timeout=200)
        return reply["content"], "".join(shown)

    def close(self) -> None:
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all: loading the libraries takes longer than the cells."""
    started = Kernel(tmp_path_factory.mktemp("kernel"))
    yield started
    started.close()


@pytest.fixture
def empty_kernel(kernel: Kernel, in_temporary_folder: Path) -> Kernel:
    kernel.run(f"%reset -f\n%cd -q {in_temporary_folder}\n{PRELUDE}")
    return kernel


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in SHORT else pytest.mark.faults)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs(path: Path, empty_kernel: Kernel) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    shown = ""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        code = cell.source
        for long, short in SMALLER.items():
            code = code.replace(long, short)
        reply, shows = empty_kernel.run(code)
        fails = "raises-exception" in cell.metadata.get("tags", ())
        assert (reply["status"] == "error") == fails, f"{cell.source}\n{shows}"
        shown += shows
    assert shown.count("<svg") == shown.count("loss in nats per token over steps")
    if path.stem == "first_steps":
        assert "held-out loss" in shown
        assert "<progress" in shown
        assert "next:   generate(" in shown
        assert "stopped by stop() after step 2; its checkpoint is kept" in shown
        assert "resuming from step 2" in shown
        assert "<svg" in shown
        assert re.search(r"custom-tiny\S*: loading", shown)
        assert shown.splitlines()[-1].startswith("custom-nano")
    for model in re.findall(r"published_dir='([^']*)'", shown):
        assert Path(model, "model.safetensors").is_file()


def test_an_error_is_a_sentence_and_its_traceback_comes_on_request(empty_kernel: Kernel) -> None:
    _, shown = empty_kernel.run("import dialogkit\ndialogkit.load_run_config('custom-nano', preset='tset')")
    assert shown.splitlines() == [
        "ConfigError: unknown preset 'tset' (did you mean 'test'?); there are test, talk, development, production",
        *(line for line in shown.splitlines() if line.startswith("try: ")),
        "(%tb shows the traceback)",
    ]
    _, traceback = empty_kernel.run("%tb")
    assert "Traceback (most recent call last)" in traceback
    assert "unknown preset 'tset'" in traceback


def test_an_interrupted_cell_leaves_a_run_to_resume_and_the_kernel(empty_kernel: Kernel) -> None:
    interrupted: list[bool] = []

    def interrupt(piece: str) -> None:
        if "<progress" in piece and not interrupted:
            interrupted.append(True)
            empty_kernel.manager.interrupt_kernel()

    long = "{**BRIEF, 'train.max_steps': 100_000, 'name': 'long'}"
    reply, shown = empty_kernel.run(
        f"from dialogkit import load_run_config, train\ntrain(load_run_config('custom-nano', overrides={long}))",
        interrupt,
    )
    assert interrupted
    assert reply["ename"] == "InterruptedRunError"
    assert re.search(r"stopped by Ctrl-C after step \d+; its checkpoint is kept\ntry: resume\(\"long\"\)", shown)
    assert "Traceback" not in shown
    (checkpoint,) = Path("models/runs/long").glob("checkpoint-*")
    _, shown = empty_kernel.run(f"import dialogkit\nprint(dialogkit.generate('{checkpoint}', 'Hello!'))")
    assert shown.startswith("GenerateResult(text=")
