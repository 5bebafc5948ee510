"""A training is a straight line from the console script to HF's Trainer."""

import traceback
from contextlib import suppress
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.forks import run_forked

PACKAGE = REPOSITORY / "dialogkit"


def frames_at_hfs_trainer() -> list[str]:
    """Begin a run, and return the files of the package that have called HF's trainer."""
    from transformers import Trainer

    from dialogkit.cli.app import main

    seen: list[str] = []

    def frames(*_: object, **__: object) -> None:
        seen.extend(frame.filename for frame in traceback.extract_stack())
        raise SystemExit(7)

    Trainer.train = frames
    with suppress(SystemExit):
        main(["train", "custom-nano", "--preset", "test", "--samples", "8", "--wandb", "disabled"])
    return [name for name in seen if name.startswith(str(PACKAGE))]


def test_at_most_five_frames_lead_from_the_console_script_to_hfs_trainer(in_temporary_folder: Path) -> None:
    frames = run_forked(frames_at_hfs_trainer, folder=in_temporary_folder)
    assert [Path(name).relative_to(PACKAGE).as_posix() for name in frames] == [
        "cli/app.py",
        "cli/train.py",
        "services/train.py",
        "services/train.py",
        "engine/fit.py",
    ]
