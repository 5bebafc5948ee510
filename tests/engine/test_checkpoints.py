"""Rotation removes committed files as they were committed, and nothing else."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dialogkit.config.paths import DOOMED, MANIFEST
from dialogkit.engine.checkpoints import (
    Progress,
    back_up,
    commit,
    move_foreign,
    newest_valid,
    read_progress,
    restore,
    rotate,
)

FILES = ["model.safetensors", "optimizer.pt", "trainer_state.json", "pytorch_model_fsdp_0/__0_0.distcp"]


def checkpoint(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} {step}")
    commit(folder, Progress(step=step))
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The oldest of three checkpoints, which is the next to go."""
    checkpoints = [checkpoint(tmp_path, step) for step in (1, 2, 3)]
    return checkpoints[0]


def steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints that are valid."""
    return [step for step in range(10) if read_progress(run / f"checkpoint-{step}")]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert rotate(tmp_path, keep=2, best_step=2) == []
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
        "checkpoint-old",
    }


def a_note(old: Path) -> None:
    (old / "notes.txt").write_text("mine")


def a_file_like_ours(old: Path) -> None:
    (old / "spm.model").write_text("mine")


def a_folder(old: Path) -> None:
    (old / "onnx").mkdir()
    (old / "onnx/model.onnx").write_text("mine")


def a_link(old: Path) -> None:
    (old / "latest").symlink_to(old.with_name("checkpoint-3") / "optimizer.pt")


def a_file_that_was_changed(old: Path) -> None:
    (old / "trainer_state.json").write_text("m")


def a_file_of_the_same_size(old: Path) -> None:
    text = (old / "optimizer.pt").read_text()
    (old / "optimizer.pt").write_text(text.swapcase())


def a_file_among_shards(old: Path) -> None:
    (old / "pytorch_model_fsdp_0/mine.distcp").write_text("mine")


PLACES = [a_note, a_file_like_ours, a_folder, a_link, a_file_among_shards]
CHANGES = [a_file_that_was_changed, a_file_of_the_same_size]


@pytest.mark.parametrize("add", [*PLACES, *CHANGES])
def test_what_is_not_dialogkits_stays_where_it_was(add: Callable[[Path], None], old: Path) -> None:
    listed = {name: (old / name).read_bytes() for name in FILES}
    add(old)
    mine = {name for name in names(old) - {MANIFEST} if listed.get(name) != (old / name).read_bytes()}
    before = {name: (old / name).lstat() for name in mine}
    assert rotate(old.parent, keep=2, best_step=None) == []
    assert names(old) == mine
    assert mine
    assert {name: (old / name).lstat().st_ino for name in mine} == {n: s.st_ino for n, s in before.items()}
    assert steps(old.parent) == [2, 3]


@pytest.fixture
def mount(old: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of somebody's with the very files of a checkpoint, which is mounted in it, or over it."""
    disk = old.with_name("disk")
    checkpoint(disk, 1)
    disk = disk / "checkpoint-1" / request.param
    place = old / request.param
    if subprocess.run(["mount", "--bind", disk, place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("mount", [".", "pytorch_model_fsdp_0"], indirect=True)
def test_a_mount_is_not_entered(mount: Path, old: Path) -> None:
    before = names(mount)
    rotate(old.parent, keep=2, best_step=None)
    assert names(mount) == before
    assert {2, 3} <= set(steps(old.parent))


def test_a_checkpoint_that_cannot_be_removed_is_reported_and_tried_again(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "optimizer.pt":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    problems = ["checkpoint-1 is no longer needed but cannot be removed: operation not permitted"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        for _ in range(2):
            assert rotate(old.parent, keep=2, best_step=None) == problems
            assert steps(old.parent) == [2, 3]
            assert (old / DOOMED).is_file()
    assert rotate(old.parent, keep=2, best_step=None) == []
    assert not old.exists()


def test_a_removal_that_is_cut_short_is_ended_the_next_time(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink
    for ended_at in range(1, len(FILES) + 2):
        calls = 0

        def cut(path: Path, missing_ok: bool = False, ended_at: int = ended_at) -> None:
            nonlocal calls
            calls += 1
            if calls == ended_at:
                raise KeyboardInterrupt
            unlink(path, missing_ok=missing_ok)

        checkpoint(old.parent, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", cut)
            with pytest.raises(KeyboardInterrupt):
                rotate(old.parent, keep=2, best_step=None)
        assert steps(old.parent) == [2, 3]
        assert rotate(old.parent, keep=2, best_step=None) == []
        assert not old.exists()


def test_a_checkpoint_that_0_1_0_had_half_removed_goes(old: Path) -> None:
    left = old.rename(old.with_name(".old-checkpoint-1"))
    (left / "model.safetensors").unlink()
    a_note(left)
    assert rotate(old.parent, keep=2, best_step=None) == []
    assert names(left) == {"notes.txt"}


def test_a_checkpoint_that_is_written_again_is_kept_until_the_new_one_is_committed(old: Path) -> None:
    newest = old.with_name("checkpoint-3")
    a_note(newest)
    put = back_up(newest)
    (newest / "optimizer.pt").parent.mkdir()
    (newest / "optimizer.pt").write_text("half")  # and the process is killed
    found = newest_valid(old.parent)
    assert found is not None
    assert (found[0], names(newest)) == (newest, {*FILES, MANIFEST, "notes.txt"})
    assert (old.with_name("torn-checkpoint-3") / "optimizer.pt").read_text() == "half"
    back_up(newest)
    checkpoint(old.parent, 3)
    move_foreign(put, newest)
    assert rotate(old.parent, keep=3, best_step=None, step=3) == []
    assert names(newest) == {*FILES, MANIFEST, "notes.txt"}
    assert not put.exists()
    assert steps(old.parent) == [1, 2, 3]


def test_a_checkpoint_that_could_not_be_written_again_is_taken_back(old: Path) -> None:
    back_up(old)
    restore(old)
    assert steps(old.parent) == [1, 2, 3]


def test_the_checkpoint_that_was_just_sealed_stays_whatever_has_a_higher_number(old: Path) -> None:
    shutil.copytree(old, old.with_name("checkpoint-99"))
    (old.with_name("checkpoint-99") / "optimizer.pt").write_text("torn")
    checkpoint(old.parent, 6)
    rotate(old.parent, keep=1, best_step=None, step=6)
    assert 6 in steps(old.parent)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="takes root to make a file immutable")
def test_a_file_that_nobody_may_remove_costs_no_newer_checkpoint(old: Path) -> None:
    if subprocess.run(["chattr", "+i", old / "optimizer.pt"], capture_output=True).returncode:
        pytest.skip("the disk has no immutable files")
    try:
        assert rotate(old.parent, keep=1, best_step=None)
        assert steps(old.parent) == [3]
    finally:
        subprocess.run(["chattr", "-i", old / "optimizer.pt"], check=True)
    assert rotate(old.parent, keep=1, best_step=None) == []
    assert not old.exists()
