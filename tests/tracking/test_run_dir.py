"""A run folder is whole at every moment, and publishing loses nothing."""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.hints import render as as_python
from dialogkit.config.model import NAME_PATTERN
from dialogkit.errors import ModelError, StorageError
from dialogkit.system.files import ordinary_permissions, write_text
from dialogkit.tracking import run_list
from dialogkit.tracking.evaluation_files import (
    all_evaluations,
    best_evaluations,
    task_results,
    worst_beside,
    write_evaluation,
    write_task,
)
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import find_run, list_runs, run_name

CARD = "---\nlicense: other\ntags: [dialogkit, conversational]\n---\n"


def new_run(output: Path, name: str, *, created: str = "2026-01-01T00:00:00+00:00", **facts: Any) -> RunDir:
    run = RunDir.create(output, name)
    run.write(RunRecord(name=name, created=created, **facts))
    return run


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# The record


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    record = RunRecord(name="a", created="now", command=["dialogkit", "--name", "é\n"], metrics={"x": 1 / 3})
    run.write(record)
    assert run.read() == record
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_figure_that_is_no_number_does_not_make_the_record_unreadable(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a", metrics={"nan": math.nan, "inf": math.inf, "low": -math.inf})
    read = run.read().metrics
    assert math.isnan(read["nan"])
    assert (read["inf"], read["low"]) == (math.inf, -math.inf)


def test_a_file_name_that_is_no_utf8_can_be_recorded(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.json")
    run = new_run(tmp_path, "a", command=["--config", name], origins={"train.seed": name})
    assert (run.read().command, run.read().origins) == (["--config", "caf?.json"], {"train.seed": "caf?.json"})


def test_a_record_of_a_newer_version_can_be_read(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a")
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    assert run.read().name == "a"


def test_who_reads_a_record_while_it_is_replaced_sees_the_whole_old_one(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a")
    before = (run.path / "run.json").read_text()
    with (run.path / "run.json").open() as reader:
        run.write(RunRecord(name="a", created="later", status="completed"))
        assert reader.read() == before
    assert run.read().status == "completed"


def test_a_failed_write_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_allows(tmp_path: Path, mask: int, expected: int) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch(mode=0o600)
    with umask(mask):
        ordinary_permissions(tmp_path)
        write_text(tmp_path / "card", "text")
    assert {mode(weights), mode(tmp_path / "card")} == {expected}


def test_an_evaluation_is_not_written_through_a_link(tmp_path: Path) -> None:
    run = new_run(tmp_path / "models", "a")
    (tmp_path / "outside").mkdir()
    (run.path / "evaluation").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="holds a link"):
        write_evaluation(run, "starter", {}, worst=[], replies=[])
    with pytest.raises(StorageError, match="holds a link"):
        write_task(run, "arc_easy", {})
    assert list((tmp_path / "outside").iterdir()) == []


def test_results_of_tasks_are_kept_beside_the_evaluations(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a")
    write_task(run, "a/b", {"name": "a/b", "value": 1})
    write_task(run, "a/b", {"name": "a/b", "value": 2})
    write_evaluation(run, "starter", {"dataset": "starter"}, worst=[], replies=[])
    assert (task_results(run), best_evaluations(run)) == ([{"name": "a/b", "value": 2}], [{"dataset": "starter"}])


def test_evaluations_on_more_and_on_fewer_dialogs_are_kept_side_by_side(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a")

    def keep(dialogs: int, bits: float, **facts: Any) -> Path:
        result = {"dataset": "starter", "dialogs": dialogs, "bits_per_byte": bits, **facts}
        return write_evaluation(run, "starter", result, worst=[{"bits_per_byte": bits}], replies=[])

    (large, small), learned = (keep(15, 2.5), keep(2, 1.5)), keep(300, 0.5, trained_on=True)
    assert [path.name for path in (large, small)] == ["starter-15-dialogs.json", "starter-2-dialogs.json"]
    assert [kept["bits_per_byte"] for kept in best_evaluations(run)] == [2.5]
    assert sorted(kept["dialogs"] for kept in all_evaluations(run)) == [2, 15, 300]
    assert json.loads(worst_beside(small).read_text()) == {"bits_per_byte": 1.5}
    assert keep(15, 2.25) == large  # in place of the earlier one
    assert [kept["bits_per_byte"] for kept in best_evaluations(run)] == [2.25]
    for path in (large, small):
        path.unlink()
    assert [kept["dialogs"] for kept in best_evaluations(run)] == [300]
    assert learned.is_file()


# Points and samples


def test_points_come_back_in_their_order_with_step_and_time(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a")
    for step in (0, 1, 2):
        run.append_metrics(step, {"train/loss": 1 / (step + 1)})
    points = run.metrics()
    assert [(point["step"], point["train/loss"]) for point in points] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert all(datetime.fromisoformat(point["time"]).tzinfo for point in points)


@pytest.mark.parametrize("rest", [b'{"step": 2, "train/lo', b"\0\0\0\0", b"\xff\xfe"])
def test_a_last_line_that_a_crash_cut_off_is_left_out(tmp_path: Path, rest: bytes) -> None:
    run = new_run(tmp_path, "a")
    run.append_metrics(1, {"train/loss": 2.0})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(rest)
    assert [point["step"] for point in run.metrics()] == [1]


def test_a_run_without_points_has_none(tmp_path: Path) -> None:
    assert new_run(tmp_path, "a").metrics() == []


def test_a_sample_is_one_line_of_readable_text(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a")
    run.append_sample({"prompt": "où?", "reply": "là\nbas"})
    assert (run.path / "samples.jsonl").read_text(encoding="utf-8") == '{"prompt": "où?", "reply": "là\\nbas"}\n'


# Names and lists


def test_a_run_name_is_given_once(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a", status="completed")
    with pytest.raises(StorageError, match=r"the run 'a' .* exists already$") as refused:
        RunDir.create(tmp_path, "a")
    assert run.read().status == "completed"
    assert as_python(refused.value.hint) == 'overrides={"name": "a-2"}'
    new_run(tmp_path, "b", status="interrupted")
    with pytest.raises(StorageError, match=r"the run 'b' .* exists already, and is not finished") as refused:
        RunDir.create(tmp_path, "b")
    assert as_python(refused.value.hint) == f'resume("b", output="{tmp_path}"), or: overrides={{"name": "b-2"}}'


def test_a_run_that_cannot_have_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot create .*: not a directory"):
        RunDir.create(tmp_path / "models", "a")


def test_runs_of_one_second_have_different_names_that_are_all_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_list, "datetime", Stopped)
    names = []
    for _ in range(11):
        names.append(run_name("m" * 64, "p" * 64, tmp_path))
        RunDir.create(tmp_path, names[-1])
    assert len(set(names)) == 11
    assert all(re.match(NAME_PATTERN, name) for name in names)
    assert run_name("custom-tiny", "test", tmp_path) == "custom-tiny-test-20260102-030405"


def test_runs_are_listed_from_the_newest(tmp_path: Path) -> None:
    for name, day in (("b", 2), ("c", 1), ("a", 3)):
        new_run(tmp_path, name, created=f"2026-01-0{day}T00:00:00+00:00")
    assert [run.name for run, _ in list_runs(tmp_path)] == ["a", "b", "c"]


def test_an_output_folder_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert list(list_runs(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("content", [None, b"", b'{"name": "bad", "crea', b"[]", b"{}", b"\xff\xfe", b"null"])
def test_an_unreadable_run_is_passed_over(tmp_path: Path, content: bytes | None) -> None:
    new_run(tmp_path, "good")
    bad = RunDir.create(tmp_path, "bad")
    if content is not None:
        (bad.path / "run.json").write_bytes(content)
    (tmp_path / "runs" / "a-file").touch()
    assert [run.name for run, _ in list_runs(tmp_path)] == ["good"]
    with pytest.raises(
        ModelError,
        match=r"^run\.json of the run 'bad' is (missing|damaged \(.+\)); '.*' still holds no checkpoint$",
    ):
        bad.read()


def test_a_run_is_found_by_its_name(tmp_path: Path) -> None:
    new_run(tmp_path, "first")
    assert find_run(tmp_path, "first").path == tmp_path / "runs" / "first"


@pytest.mark.parametrize("name", ["frist", "../runs/first", "first/", ""])
def test_a_name_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    new_run(tmp_path, "first")
    with pytest.raises(ModelError, match=r"did you mean 'first'" if name == "frist" else "no run"):
        find_run(tmp_path, name)


def test_the_name_of_a_run_that_was_killed_before_it_began_is_free(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "it")
    (run.path / ".lock").touch()
    assert RunDir.create(tmp_path, "it").path == run.path
    (run.path / "console.log").touch()
    with pytest.raises(StorageError, match=r"the run 'it' .* exists already"):
        RunDir.create(tmp_path, "it")
