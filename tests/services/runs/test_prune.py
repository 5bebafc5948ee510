"""Which runs are deleted, who is asked before, and that whatever else needs them keeps working."""

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dialogkit.errors import ModelError, StorageError
from dialogkit.services.models import list_models
from dialogkit.services.runs.prune import PruneResult, prune_runs
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.tracking.pruning import contents
from dialogkit.tracking.publishing import publish
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import list_runs
from tests.conftest import Finished, Trained

Run = Callable[..., Finished]

MADE = {
    "newest": "completed",
    "stopped": "interrupted",
    "broken": "failed",
    "old": "completed",
    "oldest": "completed",
}
"""Runs with their statuses, the newest first, ten days between them."""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Five runs with a checkpoint each; those that are finished have a model."""
    for number, (name, status) in enumerate(MADE.items()):
        run = RunDir.create(tmp_path / "models", name)
        created = (datetime.now(UTC) - timedelta(days=10 * number, hours=1)).isoformat()
        run.write(RunRecord(name=name, created=created, status=status, model={"name": "m"}))
        for folder in ("checkpoint-1", "model") if status == "completed" else ("checkpoint-1",):
            (run.path / folder).mkdir()
            (run.path / folder / "model.safetensors").write_bytes(bytes([number]) * 1000)
    return tmp_path / "models"


def left(output: Path) -> dict[str, bool]:
    """Return the runs that are there, and whether they have their checkpoint."""
    return {run.name: (run.path / "checkpoint-1").exists() for run, _ in list_runs(output)}


@pytest.mark.parametrize(
    ("choice", "deleted"),
    [
        ({"names": ["old"]}, {"old"}),
        ({"names": ["stopped"]}, {"stopped"}),
        ({"keep": 1}, {"old", "oldest"}),
        ({"keep": 0}, {"newest", "old", "oldest"}),
        ({"older_than_s": 35 * 86_400}, {"oldest"}),
        ({"older_than_s": 25 * 86_400, "keep": 1}, {"oldest"}),
        ({"status": ["failed", "interrupted"]}, {"stopped", "broken"}),
        ({"names": ["old", "broken"], "status": ["completed"]}, {"old"}),
        ({"older_than_s": 1000 * 86_400}, set()),
    ],
)
def test_the_chosen_runs_are_deleted_and_no_others(
    choice: dict[str, Any], deleted: set[str], output: Path
) -> None:
    reported = prune_runs(**choice, output=output)
    assert left(output) == dict.fromkeys(set(MADE) - deleted, True)
    assert ({row.name for row in reported.rows}, reported.pruned) == (deleted, bool(deleted))


def test_without_a_choice_the_checkpoints_of_finished_runs_are_deleted(output: Path) -> None:
    reported = prune_runs(output=output)
    assert left(output) == {name: status != "completed" for name, status in MADE.items()}
    assert reported.freed_bytes == 3000
    assert all(
        (run.model_dir / "model.safetensors").exists() for run, r in list_runs(output) if r.status == "completed"
    )
    assert prune_runs(output=output).rows == []


def test_checkpoints_alone_of_chosen_runs(output: Path) -> None:
    prune_runs(keep=1, checkpoints_only=True, output=output)
    assert left(output) == {**dict.fromkeys(MADE, True), "old": False, "oldest": False}


def test_what_is_reported_before_is_what_is_freed(output: Path) -> None:
    before = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    plans: list[PruneResult] = []

    def agreed(planned: PruneResult) -> bool:
        assert left(output) == dict.fromkeys(MADE, True)
        plans.append(planned)
        return True

    done = prune_runs(keep=0, output=output, agreed=agreed)
    after = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert plans[0].freed_bytes == done.freed_bytes == before - after
    assert plans[0].rows == done.rows


def test_nothing_is_deleted_without_consent(output: Path) -> None:
    reported = prune_runs(keep=0, output=output, agreed=lambda planned: False)
    assert left(output) == dict.fromkeys(MADE, True)
    assert (len(reported.rows), reported.pruned) == (3, False)


def test_an_unknown_run_is_refused_before_any_is_deleted(output: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'oldest'"):
        prune_runs(["newest", "oldset"], output=output)
    assert len(left(output)) == 5


def test_a_run_that_is_being_trained_is_refused_by_name_and_left_alone_otherwise(
    output: Path, dialogkit: Run
) -> None:
    with RunDir(output / "runs/old").locked():
        with pytest.raises(StorageError, match="'old' is being trained"):
            prune_runs(["newest", "old"], output=output)
        assert len(left(output)) == 5
        done = dialogkit("runs", "prune", "--keep", "0", "--yes", "--output-dir", str(output))
    assert (done.code, set(left(output))) == (1, {"stopped", "broken", "old"})
    assert "kept: the run 'old' is being trained" in done.err


def test_a_run_that_has_changed_since_it_was_reported_is_left_alone(output: Path) -> None:
    run = RunDir(output / "runs/broken")

    def agreed(planned: PruneResult) -> bool:
        run.write(run.read().model_copy(update={"status": "completed"}))
        return True

    reported = prune_runs(["broken"], output=output, agreed=agreed)
    assert reported.rows[0].problem == "the run 'broken' is completed now"
    assert run.exists


def test_a_folder_that_cannot_be_emptied_is_reported_and_does_not_keep_the_others(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if "/newest/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    reported = prune_runs(keep=0, output=output)
    assert "cannot be deleted: permission denied" in str(reported.rows[0].problem)
    assert set(left(output)) == {"stopped", "broken"}
    monkeypatch.undo()
    assert [row.name for row in prune_runs(output=output).rows] == ["newest"]
    assert not (output / "runs/newest").exists()


# Published models


@pytest.mark.parametrize("linked", [True, False])
def test_a_published_model_stays_and_is_reported(
    linked: bool, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    run = RunDir(output / "runs/newest")
    (run.model_dir / "README.md").write_text("\ntags: [dialogkit, conversational]\n")
    (run.model_dir / "config.json").write_text("{}")
    publish(run.model_dir, output / "m")
    rows = prune_runs(keep=0, output=output).rows
    assert {row.name: row.deletes_model for row in rows} == {"newest": False, "old": True, "oldest": True}
    assert (rows[0].bytes > rows[0].freed_bytes) == linked
    assert (output / "m/model.safetensors").read_bytes() == bytes(1000)
    assert "m" in [row.name for row in list_models(output=output)]


def test_a_published_model_is_not_taken_for_that_of_another_run(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "models"
    shutil.copytree(trained.output, output)
    run = RunDir(output / "runs/shared-run")
    shutil.copytree(run.path, output / "runs/later")
    later = RunDir(output / "runs/later")
    later.write(run.read().model_copy(update={"name": "later", "created": "2999-01-01T00:00:00+00:00"}))
    weights = later.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80?")
    made_by = resolve_model("custom-nano", output=output).run
    assert made_by is not None
    assert made_by.name == "shared-run"
    prune_runs(["shared-run"], output=output)
    assert resolve_model("custom-nano", output=output).run is None


def test_nothing_in_the_folder_of_a_real_run_is_foreign(trained: Trained) -> None:
    assert contents(RunDir(Path(trained.result.run_dir))).foreign == []


# The command


def test_elsewhere_than_in_a_terminal_it_only_reports(output: Path, dialogkit: Run) -> None:
    (output / "runs/old/mine.txt").touch()
    done = dialogkit("runs", "prune", "--keep", "1", "--output-dir", str(output))
    assert (done.code, left(output)) == (0, dict.fromkeys(MADE, True))
    assert "this frees 4." in done.out
    assert f"kept: {output}/runs/old/mine.txt" in done.err
    assert done.err.splitlines()[-1] == f"next: dialogkit runs prune --keep 1 --output-dir {output} --yes"
    reported = dialogkit("runs", "prune", "--keep", "1", "--output-dir", str(output), "--json")
    assert (reported.code, reported.err, reported.json["data"]["pruned"]) == (0, "", False)
    words = reported.json["hint"].split()[1:]
    assert dialogkit(*words, "--json").json["data"]["pruned"]
    assert set(left(output)) == {"newest", "stopped", "broken"}
    assert (output / "runs/old/mine.txt").exists()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--older-than", "month"], "'month'"),
        (["--older-than", "-1d"], "'-1d'"),
        (["--status", "faild"], "did you mean 'failed'"),
        (["--keep", "-1"], "-1"),
    ],
)
def test_a_wrong_choice_is_one_sentence(words: list[str], shown: str, output: Path, dialogkit: Run) -> None:
    done = dialogkit("runs", "prune", *words, "--yes", "--output-dir", str(output))
    assert (done.code, done.out, len(left(output))) == (2, "", 5)
    assert shown in done.err
    assert len(done.err.splitlines()) == 2


def test_nothing_to_delete_is_said(dialogkit: Run) -> None:
    assert dialogkit("runs", "prune").out == "there is nothing to delete\n"
