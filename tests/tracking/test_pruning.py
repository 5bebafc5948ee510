"""What is deleted of a run is what dialogkit wrote of it, and a deletion that is cut short leaves no half run."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dialogkit.errors import ModelError, StorageError
from dialogkit.system.ownership import entry_of
from dialogkit.tracking.pruning import contents, delete, freed_bytes, half_deleted
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import find_run, list_runs

WRITTEN = [
    "metrics.jsonl",
    "console.log",
    ".run.json.ab12_xyz",  # of a process that was killed as it wrote
    "model/model.safetensors",
    "model/config.json",
    "model/README.md",
    "checkpoint-4/model-00001-of-00002.safetensors",
    "checkpoint-4/optimizer.pt",
    "checkpoint-4/manifest.json",
    "checkpoint-8/.manifest.json",
    "checkpoint-8/rng_state_1.pth",
    "torn-checkpoint-6-2/trainer_state.json",
    "evaluation/starter.json",
    "evaluation/starter-worst.jsonl",
    "evaluation/tasks/arc_easy.json",
    "tensorboard/events.out.tfevents.1.host.2.0",
]
FOREIGN = [
    "notes.txt",
    "model.safetensors",
    "checkpoint-x/optimizer.pt",
    "checkpoint-4/mine.pt",
    "model/adapter/adapter_config.json",
    "evaluation/plot.png",
    "evaluation/my-analysis.json",
    "evaluation/human-replies.jsonl",
    "model/spm.model",
    "checkpoint-4/my.model",
    "tensorboard/events.csv",
]


KNOWN_BY_CONTENT = {
    "model/README.md": b"---\ntags: [dialogkit, conversational]\n---\n",
    "evaluation/starter.json": b'{"dataset": "starter", "dialogs": 8}',
    "evaluation/tasks/arc_easy.json": b'{"questions": 1, "figures": []}',
}
"""Files without a list whose names alone could be anybody's."""


def put(folder: Path, names: list[str], size: int = 100) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(KNOWN_BY_CONTENT.get(name, b"x" * size))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path / "models", "a")
    run.write(RunRecord(name="a", created="2026-01-01T00:00:00+00:00", status="completed"))
    put(run.path, WRITTEN)
    return run


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_what_was_written_goes_and_the_folder_with_it(run: RunDir) -> None:
    assert contents(run).foreign == []
    delete(run)
    assert not run.path.exists()


def test_what_dialogkit_did_not_write_stays(run: RunDir) -> None:
    put(run.path, FOREIGN)
    tops = {"checkpoint-x", "model/adapter"}  # an unknown folder is reported as one
    reported = {path.relative_to(run.path).as_posix() for path in contents(run).foreign}
    assert reported == {name for name in FOREIGN if not name.startswith(tuple(tops))} | tops
    delete(run)
    assert names(run.path) == set(FOREIGN)


def test_the_checkpoints_alone_go(run: RunDir) -> None:
    put(run.path, FOREIGN)
    before = names(run.path)
    delete(run, checkpoints_only=True)
    gone = {name for name in WRITTEN if "checkpoint" in name}
    assert names(run.path) == before - gone | {".lock"}
    assert run.read().status == "completed"


def test_what_a_manifest_names_was_written(run: RunDir) -> None:
    put(run.path, ["checkpoint-4/odd.name", "checkpoint-8/odd.name"])
    listed = ["odd.name", "optimizer.pt", "model-00001-of-00002.safetensors"]
    files = {name: entry_of(run.path / "checkpoint-4" / name) for name in listed}
    (run.path / "checkpoint-4/manifest.json").write_text(json.dumps({"files": files}))
    assert contents(run).foreign == [run.path / "checkpoint-8/odd.name"]
    # The same size and another content.
    (run.path / "checkpoint-4/optimizer.pt").write_bytes(b"y" * 100)
    assert contents(run).foreign == [run.path / "checkpoint-4/optimizer.pt", run.path / "checkpoint-8/odd.name"]


@pytest.mark.parametrize(
    "name", ["checkpoint-4", "model", "model/config.json", "checkpoint-4/manifest.json", "console.log"]
)
def test_no_link_is_followed(name: str, run: RunDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put(outside, ["config.json", "optimizer.pt", "manifest.json"])
    place = run.path / name
    place.rename(tmp_path / "moved")
    place.symlink_to(outside if (tmp_path / "moved").is_dir() else outside / "config.json")
    assert contents(run).foreign == [place]
    delete(run)
    assert names(outside) == {"config.json", "optimizer.pt", "manifest.json"}
    assert place.is_symlink()


@pytest.mark.parametrize("name", [".", "model", "checkpoint-4", "evaluation/tasks", "model/config.json"])
def test_a_mount_is_not_entered(name: str, run: RunDir, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    shutil.copytree(run.path, disk)
    if subprocess.run(["mount", "--bind", disk / name, run.path / name], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        before = names(disk)
        if name == ".":
            with pytest.raises(StorageError, match="is a mount, which dialogkit does not enter"):
                delete(run)
        else:
            assert run.path / name in delete(run).foreign
        assert names(disk) == before
    finally:
        subprocess.run(["umount", run.path / name], check=True)


def test_a_pipe_in_place_of_the_lock_holds_up_nobody(run: RunDir) -> None:
    os.mkfifo(run.path / ".lock")
    assert not run.is_held
    with pytest.raises(StorageError, match="is not a regular file"):
        delete(run)


def test_a_run_that_is_a_link_is_refused(run: RunDir) -> None:
    link = RunDir(run.path.with_name("b"))
    link.path.symlink_to(run.path)
    for work in (contents, delete):
        with pytest.raises(StorageError, match="link"):
            work(link)
    assert run.exists


def test_a_record_that_is_a_link_keeps_the_run(run: RunDir, tmp_path: Path) -> None:
    (run.path / "run.json").rename(tmp_path / "record")
    (run.path / "run.json").symlink_to(tmp_path / "record")
    with pytest.raises(StorageError, match=r"run\.json' is a link"):
        delete(run)
    assert names(run.path) >= set(WRITTEN)


def test_what_another_link_keeps_is_not_free(run: RunDir, tmp_path: Path) -> None:
    weights = run.path / "model/model.safetensors"
    everything = contents(run).bytes
    os.link(weights, tmp_path / "published")
    assert freed_bytes(contents(run).files) == everything - 100
    os.link(weights, run.path / "model/generation_config.json")  # both names of a file count once
    os.unlink(tmp_path / "published")
    assert freed_bytes(contents(run).files) == everything


def test_a_run_that_is_being_trained_is_left_alone(run: RunDir) -> None:
    before = names(run.path)
    assert not run.is_held
    with run.locked():
        assert run.is_held
        with pytest.raises(StorageError, match="is being trained by process"):
            delete(run)
    assert names(run.path) == before | {".lock"}


@pytest.mark.parametrize("step", range(len(WRITTEN) + 6))
def test_a_deletion_that_is_cut_short_leaves_a_whole_run_or_none(
    step: int, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole, made = tmp_path / "models", names(run.path), 0

    def counted(work: object) -> object:
        def once(*words: object, **options: object) -> object:
            nonlocal made
            made += 1
            if made > step:
                raise KeyboardInterrupt
            return work(*words, **options)  # type: ignore[operator]

        return once

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(Path, "rmdir", counted(Path.rmdir))
        with pytest.raises(KeyboardInterrupt):
            delete(run)
    if step == 0:
        assert names(run.path) - {".lock"} == whole
        assert find_run(output, "a").read().status == "completed"
        return
    assert list(list_runs(output)) == []
    with pytest.raises(ModelError, match="no run 'a'"):
        find_run(output, "a")
    left = list(half_deleted(output))
    if left:
        with pytest.raises(StorageError, match="was only partly deleted"):
            RunDir.create(output, "a")
        ((half, record),) = left
        assert (half.name, record.status) == ("a", "completed")
        delete(half)
    assert names(run.path) == set()
    assert RunDir.create(output, "a").path == run.path
