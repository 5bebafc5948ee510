"""A training is a straight line from the console script to HF's Trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "dialogkit"
PROBE = f"""
import json, sys, traceback
from transformers import Trainer

def frames(self, *args, **kwargs):
    files = [frame.filename for frame in traceback.extract_stack()]
    print("FRAMES", json.dumps([file for file in files if file.startswith({str(PACKAGE)!r})]), flush=True)
    raise SystemExit(7)

Trainer.train = frames
from dialogkit.cli.app import main
main(["train", "custom-nano", "--preset", "test", "--samples", "8", "--wandb", "disabled"])
"""


def test_at_most_five_frames_lead_from_the_console_script_to_hfs_trainer(in_temporary_folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FRAMES "))
    frames = [Path(name).relative_to(PACKAGE).as_posix() for name in json.loads(line[7:])]
    assert frames == [
        "cli/app.py",
        "cli/train.py",
        "services/train.py",
        "services/train.py",
        "engine/fit.py",
    ]
