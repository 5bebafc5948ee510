"""The page in Chromium says what dialogkit says: `benchmarks/browser_agreement.py` on the shared model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dialogkit.services.export import export
from dialogkit.services.exporting.web_runtime import FILES
from tests.conftest import REPOSITORY, Trained

INSTALLED = REPOSITORY / "node_modules/onnxruntime-web"
CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.skipif(
    not all((INSTALLED / "dist" / file).is_file() for file in FILES.values()),
    reason="no onnxruntime-web is in the checkout: npm install --no-save onnxruntime-web",
)
@pytest.mark.parametrize("weight_type", ["f32", "q8_0"])
def test_chromium_says_what_dialogkit_says(weight_type: str, trained: Trained) -> None:
    result = export("shared-run", to="onnx", type=weight_type, runtime=INSTALLED, output=trained.output)  # type: ignore[arg-type]
    script = REPOSITORY / "benchmarks/browser_agreement.py"
    words = [result.folder, "--model", "shared-run", "--output-dir", str(trained.output), "--json", "figures.json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([sys.executable, script, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(Path("figures.json").read_text())
    assert figures["same_ids"] == figures["prompts"] == 16
    assert figures["page_named"] == "shared-run"
    assert figures["page_said"]
    if weight_type == "f32":
        assert figures["equal_tokens"] == figures["tokens"]
