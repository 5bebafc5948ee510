"""An evaluation of a run's model goes into its folder, its W&B run and its page, and fails for none of them."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dialogkit.api.inference import evaluate
from dialogkit.errors import ConfigError, UnavailableError
from dialogkit.services.evaluate import EvaluateRow
from dialogkit.services.evaluation.results import TaskFigure, TaskRow
from dialogkit.services.evaluation.store import EvaluationStore, TrackedRow
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.tracking.evaluation_files import best_evaluations, task_results
from dialogkit.tracking.record import WandbInfo
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_sync import offline_folders
from tests.conftest import Finished, Trained
from tests.wandb_log import history, records, values

ROW = EvaluateRow(
    model="custom-nano",
    dataset="starter",
    dialogs=15,
    tokens=484,
    bits_per_byte=2.5,
    hits_at_1=0.5,
    intervals={"bits_per_byte": (2.25, 2.75)},
    remarks=["says nothing"],
)
ANCHOR = ROW.model_copy(update={"anchor": "unigram", "bits_per_byte": 3.5, "hits_at_1": None})
TASK = TaskRow(
    name="capitals",
    version="2.0",
    questions=3,
    of_questions=4,
    examples=1,
    cut=0,
    figures=[
        TaskFigure(name="acc", filter="", value=0.75, interval=(0.5, 1.0), better=1),
        TaskFigure(name="exact_match", filter="strict", value=0.125, interval=None, better=1),
    ],
)


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> RunDir:
    """A copy of the finished run in `models`, with its offline W&B run."""
    shutil.copytree(trained.output, tmp_path / "models")
    run = RunDir(tmp_path / "models/runs/shared-run")
    # Of its own id: W&B's service knows the runs of this process, also those that failed.
    run.write(run.read().model_copy(update={"wandb": WandbInfo(mode="offline", id=uuid4().hex[:8])}))
    return run


def keep(row: EvaluateRow = ROW, *, wandb: str | None = None) -> TrackedRow | None:
    """Keep an evaluation of the run as `evaluate` does."""
    store = EvaluationStore(resolve_model("shared-run"), wandb=wandb, output=Path("models"))
    store.add_evaluation(row, [ANCHOR], [{"prompt": "Hello!", "reply": "Hi."}])
    return store.publish()


def reported(tracked: TrackedRow | None) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Return the start, the summary and the history that W&B received."""
    assert tracked is not None
    found = records(Path(tracked.folder))
    summary: dict[str, Any] = {}
    for record in found:
        summary |= values(record.summary.update)
    return next(record.run for record in found if record.HasField("run")), summary, history(found)


def table(tracked: TrackedRow | None, name: str) -> dict[str, Any]:
    assert tracked is not None
    (path,) = Path(tracked.folder).glob(f"files/media/table/{name}_*.table.json")
    shown: dict[str, Any] = json.loads(path.read_text())
    return shown


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_evaluation_goes_to_the_runs_own_wandb_run_and_page(
    run: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    before = offline_folders(Path("models"))
    done = dialogkit("evaluate", "shared-run", "--samples", "12", "--no-cuda", "--json")
    (tracked,) = (TrackedRow.model_validate(row) for row in done.json["data"]["tracked"])
    row = EvaluateRow.model_validate(done.json["data"]["rows"][0])
    assert (done.code, done.err, tracked.mode, tracked.url) == (0, "", "offline", None)
    assert [str(folder) for folder in offline_folders(Path("models")) if folder not in before] == [tracked.folder]
    started, summary, points = reported(tracked)
    assert (started.run_id, started.project) == (run.read().wandb.id, "dialog-model-training")
    assert (list(started.tags), values(started.config.update).keys() - {"_wandb"}) == ([], set())
    assert summary["evaluate/bits_per_byte"] == row.bits_per_byte
    assert summary["evaluate/stop_rate"] == row.stop_rate
    assert (summary["evaluate/dataset"], summary["evaluate/dialogs"]) == ("starter", 12)
    assert [(point["_step"], point["train/step"]) for point in points] == [(21, 20)]  # after the run's last
    shown = table(tracked, "evaluate/figures")
    assert shown["columns"] == ["figure", "value", "low", "high", "untrained", "unigram", "true answers"]
    figures = {name: numbers for name, *numbers in shown["data"]}
    untrained, unigram, _ = (anchor["bits_per_byte"] for anchor in done.json["data"]["anchors"])
    assert figures["bits/byte"] == [row.bits_per_byte, *row.intervals["bits_per_byte"], untrained, unigram, None]
    page = run.report_path.read_text(encoding="utf-8")
    assert f">{row.bits_per_byte:.4f}<" in page
    assert "starter, 12 dialogs" in page


def test_figures_on_other_dialogs_and_of_tasks_stand_apart(run: RunDir) -> None:
    store = EvaluationStore(resolve_model("shared-run"), wandb="offline", output=Path("models"))
    mine = ROW.model_copy(update={"dataset": "me/mine"})
    store.add_evaluation(mine, [ANCHOR], [])
    store.add_evaluation(mine.model_copy(update={"dialogs": 2, "bits_per_byte": 1.5, "hits_at_1": None}), [], [])
    store.add_tasks([TASK])
    tracked = store.publish()
    _, summary, points = reported(tracked)
    figures = {name: value for name, value in summary.items() if isinstance(value, float) and name[0] != "_"}
    assert figures == {
        "evaluate/me-mine/bits_per_byte": 2.5,
        "evaluate/me-mine/hits_at_1": 0.5,
        "evaluate/me-mine/2-dialogs/bits_per_byte": 1.5,  # which does not take the place of that on more
        "evaluate/tasks/capitals/acc": 0.75,
        "evaluate/tasks/capitals/exact_match strict": 0.125,
    }
    assert len(points) == 1
    assert table(tracked, "evaluate/me-mine/figures")["data"] == [
        ["bits/byte", 2.5, 2.25, 2.75, 3.5],
        ["hits@1 of 10", 0.5, None, None, None],
    ]
    assert table(tracked, "evaluate/tasks")["data"] == [
        ["capitals", "acc", 0.75, 0.5, 1.0],
        ["capitals", "exact_match strict", 0.125, None, None],
    ]


@pytest.mark.parametrize(
    ("facts", "asked", "reported"),
    [
        pytest.param({"wandb": WandbInfo(mode="disabled")}, None, [], marks=pytest.mark.faults),
        ({"wandb": WandbInfo(mode="disabled")}, "offline", ["the run shared-run was trained without W&B"]),
        ({"wandb": WandbInfo(id="../x")}, None, []),
        pytest.param({"wandb": WandbInfo.model_validate({"id": 5})}, None, [], marks=pytest.mark.faults),
        pytest.param({"config": {"tracking": {"wandb": "sometimes"}}}, None, [], marks=pytest.mark.faults),
        ({}, "disabled", []),
    ],
)
def test_without_wandb_nothing_of_it_is_loaded_or_made(
    facts: dict[str, Any],
    asked: str | None,
    reported: list[str],
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run.write(run.read().model_copy(update=facts))
    before = offline_folders(Path("models"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # to import it fails, with a warning
    assert keep(wandb=asked) is None
    assert [warning.partition(":")[0] for warning in warnings(caplog)] == reported
    assert offline_folders(Path("models")) == before
    assert [kept["bits_per_byte"] for kept in best_evaluations(run)] == [2.5]


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("something in W&B")


@pytest.mark.parametrize(
    "failing", ["init", *(pytest.param(name, marks=pytest.mark.faults) for name in ("Table", "import", "folder"))]
)
def test_a_wandb_that_fails_is_one_warning(
    failing: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if failing == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    elif failing == "folder":
        shutil.rmtree("models/wandb")
        Path("models/wandb").write_text("a file")
    else:
        monkeypatch.setattr(f"wandb.{failing}", fail)
    tracked = keep()
    assert (tracked is None) == (failing != "Table")
    assert len(warnings(caplog)) == 1
    assert "2.5000" in run.report_path.read_text(encoding="utf-8")


def test_a_run_that_was_online_is_tracked_offline_where_there_is_no_key(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    record = run.read()
    tracking = {**record.config["tracking"], "wandb": "online"}
    run.write(record.model_copy(update={"config": {**record.config, "tracking": tracking}}))
    tracked = keep()
    assert tracked is not None
    assert tracked.mode == "offline"


def test_a_mode_that_cannot_be_is_refused_before_anything_is_measured(
    run: RunDir, dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.services.evaluate.evaluate_model", fail)
    done = dialogkit("evaluate", "shared-run", "--wandb", "onlin")
    sentence = "error: --wandb: must be 'auto', 'online', 'offline' or 'disabled' (got \"onlin\")"
    assert (done.code, done.err.splitlines()) == (2, [sentence, "try: --wandb auto"])
    with pytest.raises(ConfigError):
        evaluate("custom-nano", wandb="")
    with pytest.raises(UnavailableError, match="needs a key"):
        evaluate("shared-run", wandb="online")


# The page


def test_a_page_that_cannot_be_written_costs_a_warning_and_not_the_evaluation(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dialogkit.tracking.report.render_report", fail)
    keep(wandb="disabled")
    assert warnings(caplog) == ["the report of the run shared-run could not be written: something in W&B"]
    assert len(best_evaluations(run)) == 1


def test_no_page_is_written_where_none_is_wanted(run: RunDir) -> None:
    record = run.read()
    tracking = {**record.config["tracking"], "report": False}
    run.write(record.model_copy(update={"config": {**record.config, "tracking": tracking}}))
    before = run.report_path.read_bytes()
    keep(wandb="disabled")
    assert run.report_path.read_bytes() == before


def test_results_of_tasks_stand_on_the_page_and_in_runs_show(
    run: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    store = EvaluationStore(resolve_model("shared-run"), wandb="disabled", output=Path("models"))
    store.add_tasks([TASK])
    assert store.publish() is None
    page = run.report_path.read_text(encoding="utf-8")
    assert ">capitals <small>3 of 4 questions after 1 example<" in page
    assert re.search(r">0\.7500<small>0\.5000 . 1\.0000<", page)
    assert ">0.1250<" in page
    out = dialogkit("runs", "show", "shared-run").out.splitlines()
    assert " ".join(out[-2].split()) == "capitals (3 questions after 1 example) acc 0.7500 [0.5000, 1.0000]"
    assert " ".join(out[-1].split()) == "exact_match strict 0.1250"


@pytest.mark.parametrize("what", ["checkpoint", "folder"])
def test_of_what_is_not_a_runs_finished_model_nothing_is_kept(what: str, run: RunDir, tmp_path: Path) -> None:
    place = run.path / "checkpoint-20" if what == "checkpoint" else tmp_path / "elsewhere"
    shutil.copytree(run.model_dir, place, dirs_exist_ok=True)
    store = EvaluationStore(resolve_model(str(place)), wandb="offline", output=Path("models"))
    store.add_evaluation(ROW, [], [])
    store.add_tasks([TASK])
    assert store.publish() is None
    assert (best_evaluations(run), task_results(run)) == ([], [])
