"""A report is written where it was asked for, at the end of each run, and never in the place of something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli.hints import render
from dialogkit.errors import InterruptedRunError
from dialogkit.hints import Hint
from dialogkit.services.runs.report import write_report, write_run_report
from dialogkit.services.train import train
from dialogkit.services.training.progress import TrainReporter
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Finished, Trained

Run = Callable[..., Finished]


@pytest.fixture
def runs() -> list[RunDir]:
    """Two runs in `models`, of which little is recorded."""
    made = [RunDir.create(Path("models"), name) for name in ("first", "second")]
    for run in made:
        run.write(RunRecord(name=run.name, created="2026-11-24T20:00:00+00:00"))
    return made


# On the command line


def test_one_run_is_written_into_its_folder(dialogkit: Run, runs: list[RunDir]) -> None:
    done = dialogkit("runs", "report", "first")
    assert (done.code, done.out, done.err) == (0, "report: models/runs/first/report.html\n", "")
    assert ">first<" in Path("models/runs/first/report.html").read_text(encoding="utf-8")


def test_several_runs_are_written_here_or_where_it_is_said(dialogkit: Run, runs: list[RunDir]) -> None:
    assert dialogkit("runs", "report", "first", "second").out == "report: report.html\n"
    done = dialogkit("runs", "report", "second", "first", "second", "-o", "both.html", "--json")
    written = Path("both.html").read_bytes()
    assert done.json["data"] == {"path": "both.html", "runs": ["second", "first"], "bytes": len(written)}
    page = written.decode()
    assert page.index(">second<") < page.index(">first<")
    assert [run.name for run in runs if run.report_path.exists()] == []


def test_a_report_is_written_again(dialogkit: Run, runs: list[RunDir]) -> None:
    for status in ("running", "interrupted"):
        runs[0].write(runs[0].read().model_copy(update={"status": status}))
        assert dialogkit("runs", "report", "first").code == 0
        assert f'<span class="status {status}">' in runs[0].report_path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "reported", "hint"),
    [
        (["frist"], "no run 'frist' in 'models' (did you mean 'first'?)", "dialogkit runs list"),
        (["first", "-o", "notes.html"], "'notes.html' exists and is not", "--output notes-2.html"),
        (["first", "-o", "models"], "'models' is a folder", "--output models/report.html"),
        (["first", "-o", "no/where.html"], "'no/where.html' cannot be written", "--output report.html"),
        (["first", "-o", "/dev/null"], "'/dev/null' exists and is not", "--output /dev/null-2.html"),
        (
            ["first", "--output-dir", "elsewhere"],
            "no run 'first' in 'elsewhere'",
            "dialogkit runs list --output-dir elsewhere",
        ),
    ],
)
def test_what_cannot_be_written_is_one_sentence_and_changes_nothing(
    words: list[str], reported: str, hint: str, dialogkit: Run, runs: list[RunDir]
) -> None:
    Path("notes.html").write_text("<p>mine</p>")
    done = dialogkit("runs", "report", *words)
    first, last = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert first.startswith(f"error: {reported}")
    assert last == f"try: {hint}"
    assert Path("notes.html").read_text() == "<p>mine</p>"
    assert {path.name for path in Path().iterdir()} == {"models", "notes.html"}


def test_a_page_that_has_no_place_is_not_drawn(
    dialogkit: Run, runs: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.tracking.report.render_report", lambda *_, **__: pytest.fail("drawn"))
    for place in ("no/where.html", "/proc/nowhere/page.html"):
        done = dialogkit("runs", "report", "first", "-o", place)
        assert done == Finished(
            2, "", f"error: '{place}' cannot be written: no such file or directory\ntry: --output report.html\n"
        )


def test_commands_in_a_page_name_the_folder_of_its_runs(runs: list[RunDir]) -> None:
    Path("models").rename("my models")
    written = write_report(["first"], output="my models")
    page = Path(written.path).read_text(encoding="utf-8")
    assert "dialogkit evaluate first --output-dir &#39;my models&#39;" in page
    assert "dialogkit train --config &#39;my models/runs/first/run.json&#39;" in page


# At the end of a run


def test_each_run_ends_with_its_page(trained: Trained) -> None:
    page = Path(trained.result.report)
    assert page == RunDir(Path(trained.result.run_dir)).report_path
    assert '<span class="status completed">completed</span>' in page.read_text(encoding="utf-8")
    assert f"report: {page}" in (Path(trained.result.run_dir) / "console.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [ValueError("broken"), InterruptedRunError("stopped by Ctrl-C", exit_code=130)])
def test_a_page_that_cannot_be_written_is_reported_in_words(
    error: Exception, runs: list[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*runs: Any, **options: Any) -> str:
        raise error

    assert write_run_report(runs[0]) is None
    monkeypatch.setattr("dialogkit.tracking.report.render_report", fail)
    assert write_run_report(runs[0]) == str(error)


class Listener(TrainReporter):
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advice(self, hint: Hint) -> str:
        return render(hint) or ""


def test_a_run_without_its_page_is_complete(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("dialogkit.services.runs.report.write_signed", full)
    listener = Listener()
    result = train(small_config({"tracking.report": True, "name": "small"}), reporter=listener)
    assert (result.report, RunDir(Path(result.run_dir)).read().status) == (None, "completed")
    (reported,) = [note for note in listener.notes if note.startswith("warning: ")]
    assert (
        reported
        == "warning: the report could not be written (no space left on device); dialogkit runs report small"
    )
    assert reported in (Path(result.run_dir) / "console.log").read_text(encoding="utf-8")


def test_a_run_has_no_page_where_none_is_wanted(small_config: Callable[..., Any]) -> None:
    result = train(small_config())
    assert result.report is None
    assert not RunDir(Path(result.run_dir)).report_path.exists()
