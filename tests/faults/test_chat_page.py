"""The chat page in a real browser: a dialog, two models, what is saved, markup in replies, and accessibility."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import dialogkit
from dialogkit.config.data import DataConfig
from dialogkit.data.sources import find_source, read_dialogs
from tests.conftest import Trained

MODULES = Path(os.environ.get("NODE_MODULES", "node_modules"))
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [
    name
    for name, is_there in (
        ("node", shutil.which("node")),
        ("Chromium", BROWSER),
        ("puppeteer-core", (MODULES / "puppeteer-core").is_dir()),
        ("axe-core", (MODULES / "axe-core").is_dir()),
    )
    if not is_there
]


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}; see CONTRIBUTING.md")
def test_the_page_in_a_browser(trained: Trained, tmp_path: Path) -> None:
    checkpoint = sorted(trained.output.glob("runs/shared-run/checkpoint-*"))[-1]
    models = ["shared-run", str(checkpoint)]
    with dialogkit.serve(models, port=0, output=trained.output, device="cpu") as server:
        words = ["node", str(Path(__file__).with_name("chat_page.mjs")), server.url, str(BROWSER)]
        words += filter(None, [os.environ.get("SCREENSHOTS")])
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
            env={**os.environ, "NODE_MODULES": str(MODULES.resolve())},
        )
        served = server.models
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["serious"] == []
    assert found["errors"] == []
    assert found["dialog"] == {"said": ["Hello!", "And then?"], "replies": 2}
    assert found["focus"][0] == "Good reply"
    assert found["focus"][1] in ("Stop", "Message")  # the button, or where it was if the reply has ended
    assert found["versions"] == "2 / 2"
    assert found["both"] == served
    assert found["saidToBoth"] == 2
    assert found["markup"][1] == "<b>other</b>"
    assert found["markup"][0].endswith("</script>")
    assert found["heard"].partition(": ")[2] in found["markup"]
    assert (found["ran"], found["drawn"]) == (None, 0)
    assert found["copied"] == found["dialogs"]
    for name in ("preferences", "dialogs"):
        (tmp_path / f"{name}.jsonl").write_text(found[name], encoding="utf-8")
    (pair,) = map(json.loads, found["preferences"].splitlines())
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == found["markup"]
    for name, count in (("preferences", 1), ("dialogs", 2)):
        config = DataConfig(dataset=str(tmp_path / f"{name}.jsonl"))
        raw = read_dialogs(find_source(config), config)
        assert [dialog[0].content for dialog in raw.dialogs] == ["Run this"] * count
