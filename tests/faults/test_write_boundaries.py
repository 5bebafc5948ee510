"""A process that ends at any write of a save leaves the checkpoint before it, and the run ends the same."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.training import Undisturbed, newest_step, train_or_go_on
from tests.forks import run_forked, start_forked

STEPS = 6
_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}


def end_at_write(number: int) -> int:
    """Train, and end the process at a write of the third save; return their number if there are fewer."""
    from dialogkit.engine.trainer import DialogTrainer

    save = DialogTrainer._save_checkpoint
    state = {"saves": 0, "writes": 0, "inside": False}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not state["inside"]:
            return
        writes = event in _EVENTS or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes:
            state["writes"] += 1
            if state["writes"] == number:
                os._exit(9)

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        state["saves"] += 1
        state["inside"] = state["saves"] == 3
        save(self, *args, **kwargs)
        if state["inside"]:
            state["writes"] += 1
            if state["writes"] == number:  # just after the save
                os._exit(9)
        state["inside"] = False

    DialogTrainer._save_checkpoint = counted  # type: ignore[method-assign]
    sys.addaudithook(hook)
    train_or_go_on(STEPS)
    return state["writes"]


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_save_can_end_at_any_write(tmp_path: Path, undisturbed: Undisturbed) -> None:
    (tmp_path / "count").mkdir()
    expected = undisturbed.digest(STEPS)
    writes = run_forked(end_at_write, 0, folder=tmp_path / "count")
    assert writes >= 8
    for number in range(1, writes + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = start_forked(end_at_write, number, folder=folder)
        process.join(60)
        assert process.exitcode == 9, number
        assert newest_step(folder / "models/runs/it") >= 2, number
        assert run_forked(train_or_go_on, STEPS, folder=folder) == expected, number
    print(f"{writes} writes in a save: each can be its last")
