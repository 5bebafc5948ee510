"""The index of runs: a list reads only what changed, and is never wrong."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dialogkit.services.runs.compare import show_run
from dialogkit.services.runs.listing import best_runs, list_run_rows
from dialogkit.tracking import run_index
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_index import INDEX_FILE, Runs, RunSummary, read_runs

RUNS = run_index.WORTH_WRITING + 4
_opened: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened and isinstance(arguments[0], str):
        _opened[-1].append(arguments[0])


@contextmanager
def opened() -> Iterator[list[str]]:
    """Collect the files below the runs that are opened for reading or writing."""
    if not _opened:
        sys.addaudithook(_note)  # it cannot be removed
        _opened.append([])
    found: list[str] = []
    _opened.append(found)
    try:
        yield found
    finally:
        _opened.pop()
        found[:] = [path for path in found if f"{os.sep}runs{os.sep}" in path]


def write_run(output: Path, name: str, **content: Any) -> RunDir:
    run = RunDir(output / "runs" / name)
    run.path.mkdir(parents=True, exist_ok=True)
    fields = {"name": name, "created": "2026-11-30T00:00:00+00:00", "status": "completed", **content}
    run.write(RunRecord.model_validate(fields))
    return run


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs with an index, half of them finished."""
    monkeypatch.setattr(run_index, "_SETTLED_NS", 0)
    for number in range(RUNS):
        status = "completed" if number % 2 else "interrupted"
        metrics = {"final/bits_per_byte": 2.0 + number}
        write_run(tmp_path, f"run-{number:02}", status=status, metrics=metrics).append_metrics(
            1, {"eval/nats_per_token": 3.0, "eval/bits_per_byte": 1.0}
        )
    summaries(tmp_path)
    return tmp_path


def summaries(output: Path) -> dict[str, RunSummary]:
    return summaries_of(read_runs(output))


def summaries_of(runs: Runs) -> dict[str, RunSummary]:
    return {run.name: summary for run, summary in runs.readable}


def test_a_list_of_runs_opens_its_index_alone(output: Path) -> None:
    lists: tuple[Callable[[], Any], ...] = (
        lambda: list_run_rows(output=output),
        lambda: best_runs(output=output),
    )
    for one in lists:
        with opened() as files:
            assert one()
        assert {Path(file).name for file in files} == {INDEX_FILE}


def test_a_run_is_shown_without_reading_others(output: Path) -> None:
    with opened() as files:
        show_run("run-03", output=output)
    assert {Path(file).parent.name for file in files} == {"run-03"}


def _finish(output: Path) -> None:
    write_run(output, "run-00", metrics={"final/bits_per_byte": 9.0})


def _log(output: Path) -> None:
    RunDir(output / "runs" / "run-00").append_metrics(2, {"eval/nats_per_token": 2.5, "eval/bits_per_byte": 0.9})


def _overwrite_in_the_past(output: Path) -> None:
    """Change a record in place, with its length, inode and time of change as they were."""
    path = output / "runs" / "run-01" / "run.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"completed"', '"diverged" '))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)


def _swap(output: Path) -> None:
    first, second = (output / "runs" / name for name in ("run-01", "run-03"))
    first.rename(output / "runs" / "kept")
    second.rename(first)
    (output / "runs" / "kept").rename(second)


def _damage(output: Path) -> None:
    (output / "runs" / "run-01" / "run.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (_finish, {"run-00"}),
        (_log, {"run-00"}),
        (_overwrite_in_the_past, {"run-01"}),
        (_swap, {"run-01", "run-03"}),
        (_damage, {"run-01"}),
        (lambda output: shutil.rmtree(output / "runs" / "run-01"), set()),
        (lambda output: shutil.copytree(output / "runs" / "run-01", output / "runs" / "copy"), {"copy"}),
        (lambda output: os.utime(output / "runs" / "run-01" / "run.json", (4e9, 4e9)), {"run-01"}),
    ],
)
def test_what_changed_is_read_again_and_nothing_else(
    change: Callable[[Path], object], read: set[str], output: Path
) -> None:
    change(output)
    with opened() as files:
        found = read_runs(output)
    assert {Path(file).parent.name for file in files} == read | {"runs"}
    (output / "runs" / INDEX_FILE).unlink()
    assert summaries_of(found) == summaries(output)
    assert [run.name for run in found.damaged] == (["run-01"] if change is _damage else [])


@pytest.mark.parametrize("index", [b"", b"[]", b'{"runs": {"run-01": {}}}', b"\xff", None])
def test_a_damaged_index_is_replaced(index: bytes | None, output: Path) -> None:
    path = output / "runs" / INDEX_FILE
    truth, content = summaries(output), path.read_bytes()
    if index is not None:
        path.write_bytes(index)
    else:  # of another version
        path.write_bytes(
            content.replace(b'"dialogkit":"', b'"dialogkit":"1', 1).replace(b"completed", b"diverged")
        )
    assert summaries(output) == truth
    assert json.loads(path.read_bytes()) == json.loads(content)


def test_a_folder_that_cannot_be_written_is_listed_without_an_index(output: Path) -> None:
    truth = summaries(output)
    path = output / "runs" / INDEX_FILE
    path.unlink()
    path.mkdir()  # renaming a file over it fails, for root as well
    assert summaries(output) == truth
    assert not list(path.iterdir())


def test_a_copy_of_all_runs_trusts_nothing_of_its_index(output: Path, tmp_path: Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(output / "runs", copied / "runs")
    with opened() as files:
        assert summaries(copied) == summaries(output)
    assert sum(Path(file).name == "run.json" for file in files if file.startswith(str(copied))) == RUNS


def test_what_changed_just_now_is_not_indexed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (output / "runs" / INDEX_FILE).unlink()
    assert len(summaries(output)) == RUNS
    assert not (output / "runs" / INDEX_FILE).exists()


def test_a_few_runs_need_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_index, "_SETTLED_NS", 0)
    for number in range(run_index.WORTH_WRITING - 1):
        write_run(tmp_path, f"run-{number}")
    assert len(summaries(tmp_path)) == run_index.WORTH_WRITING - 1
    assert os.listdir(tmp_path) == ["runs"]
    assert not (tmp_path / "runs" / INDEX_FILE).exists()
