"""Runs are listed and shown from their folders, and offline ones are uploaded one by one."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dialogkit.cli.comparison_view import render_comparison
from dialogkit.cli.output import Output
from dialogkit.errors import InterruptedRunError
from dialogkit.services.evaluate import EvaluateRow
from dialogkit.services.evaluation.results import TaskFigure, TaskRow
from dialogkit.services.runs.compare import compare_runs, show_run, sync_runs
from dialogkit.services.runs.listing import best_runs, list_run_rows
from dialogkit.tracking.evaluation_files import write_evaluation, write_task
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_sync import offline_folders
from tests.conftest import Finished, Trained, typed
from tests.wandb_server import WandbServer

Run = Callable[..., Finished]


@pytest.fixture
def output(trained: Trained, tmp_path: Path) -> str:
    """A copy of the folder of a finished run."""
    shutil.copytree(trained.output, tmp_path / "models")
    return str(tmp_path / "models")


def test_the_list_has_the_figures_of_the_record(dialogkit: Run, output: str, trained: Trained) -> None:
    (row,) = dialogkit("runs", "list", "--output-dir", output, "--json").json["data"]
    assert (row["name"], row["status"], row["steps"]) == ("shared-run", "completed", 20)
    assert row["bits_per_byte"] == trained.result.metrics["final/bits_per_byte"]
    assert "shared-run" in dialogkit("runs", "list", "--output-dir", output).out


COLUMNS = {
    64: "run bits/byte date model data",
    80: "run status time bits/byte date model data",
    120: "run status steps bits/byte loss stop rate tokens/s time date model data",
    200: "run status steps bits/byte loss stop rate tokens/s time date model parameters preset data",
}


@pytest.mark.parametrize("width", [*COLUMNS, None])
def test_the_list_shows_what_there_is_room_for(
    width: int | None, dialogkit: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if width is None:
        monkeypatch.delenv("COLUMNS")  # as in a pipe
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    header, row = dialogkit("runs", "list", "--output-dir", output).out.splitlines()
    assert sorted(header.split()) == sorted(COLUMNS[width or 200].split())
    assert len(header.rstrip()) <= (width or 200)
    assert re.search(r" \d{4}-\d\d-\d\d( \d\d:\d\d)? ", row)
    assert {"custom-nano", "starter"} <= set(row.split())


def test_in_a_very_narrow_terminal_each_run_has_a_paragraph(
    dialogkit: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name, status, model, date = dialogkit("runs", "list", "--output-dir", output).out.splitlines()
    assert (name, model) == ("shared-run", "  custom-nano on starter")
    assert re.fullmatch(r"  completed, \d\.\d{3} bits/byte", status)
    assert re.fullmatch(r"  \d{4}-\d\d-\d\d \d\d:\d\d", date)


def test_the_status_of_a_run_that_is_not_completed_is_shown_in_every_width(
    dialogkit: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(output) / "runs/shared-run")
    run.write(run.read().model_copy(update={"status": "interrupted"}))
    for width in (40, 64, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        assert "interrupted" in dialogkit("runs", "list", "--output-dir", output).out


def keep_evaluation(output: str, name: str, nats_of_dialogs: Sequence[float] = (), **figures: Any) -> None:
    """Keep an evaluation of a run on the starter set, as `evaluate` does."""
    run = RunDir(Path(output) / "runs" / name)
    row = EvaluateRow(model="custom-nano", dataset="starter", dialogs=15, tokens=484, **figures)
    anchor = EvaluateRow(model="custom-nano", anchor="unigram", dataset="starter", dialogs=15, tokens=484)
    anchors = [anchor.model_copy(update={"bits_per_byte": 2.8053}).model_dump(mode="json")]
    kept = {**row.model_dump(mode="json"), "anchors": anchors}
    scores = [{"dialog": f"{n}", "nats": nats, "bytes": 2.0} for n, nats in enumerate(nats_of_dialogs)]
    write_evaluation(run, "starter", kept, worst=[], replies=[], scores=scores)


def test_the_stop_rate_is_that_of_the_test_prompts_wherever_it_is_shown(
    dialogkit: Run, two: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    keep_evaluation(two, "shared-run", stop_rate=0.4375)
    assert {row.stop_rate for row in list_run_rows(output=two).rows} == {trained.result.stop_rate}
    shown = f"{trained.result.stop_rate:.1%}"
    compared = dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two).out
    assert re.search(rf"^ends by itself \(test prompts\) +{shown} +{shown}$", compared, re.MULTILINE)
    assert shown in dialogkit("runs", "list", "--output-dir", two).out


@pytest.mark.parametrize(("command", "kind"), [("list", "run"), ("best", "finished run")])
def test_where_there_is_no_run_that_is_said(command: str, kind: str, dialogkit: Run) -> None:
    done = dialogkit("runs", command)
    assert done == Finished(
        0, f"there is no {kind} in 'models' yet\n", "next: dialogkit train custom-tiny --preset test\n"
    )
    assert dialogkit("runs", command, "--json").json["data"] == []


def test_an_unfinished_run_is_listed_with_what_it_came_to(dialogkit: Run, output: str) -> None:
    run = RunDir(Path(output) / "runs/shared-run")
    run.write(run.read().model_copy(update={"status": "interrupted", "metrics": {}}))
    run.cut_after(15)
    (row,) = dialogkit("runs", "list", "--output-dir", output, "--json").json["data"]
    evaluated = [point for point in run.metrics() if "eval/bits_per_byte" in point][-1]
    assert (row["steps"], row["total_steps"]) == (15, 20)
    assert row["bits_per_byte"] == evaluated["eval/bits_per_byte"]
    assert "15/20" in dialogkit("runs", "list", "--output-dir", output).out


def test_the_name_of_a_run_is_whole_in_a_narrow_terminal(
    dialogkit: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "custom-medium-development-20261124-123421"
    (Path(output) / "runs/shared-run").rename(Path(output) / "runs" / name)
    run = RunDir(Path(output) / "runs" / name)
    run.write(run.read().model_copy(update={"name": name}))
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["runs", "list"], ["evaluate", name, "--quick"]):
        shown = dialogkit(*words, "--output-dir", output).out
        assert name in shown.split()
        assert max(map(len, shown.splitlines())) <= 80
        assert len(shown.splitlines()) == (4 if words[0] == "runs" else 3)  # under what was measured


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server, with a key for it in the environment."""
    server = WandbServer("accept")
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.vanish()


KEY = "k" * 40


def upload_by(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a script of the shell upload in place of W&B's own command."""
    program = folder / "upload"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))


def test_an_upload_of_which_nothing_arrives_fails(
    dialogkit: Run, output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_by("echo wandb: ERROR permission denied; exit 1", tmp_path, monkeypatch)
    done = dialogkit("runs", "sync", "shared-run", "--output-dir", output)
    assert done.code == 1
    assert "permission denied" in done.err
    assert "0 of 1 offline run uploaded" in done.out
    assert f"next: dialogkit runs sync shared-run --output-dir {output}" in done.err


def test_an_upload_that_w_and_b_did_not_mark_as_one_did_not_arrive(
    dialogkit: Run, output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_by("echo wandb: Not authenticated.", tmp_path, monkeypatch)
    done = dialogkit("runs", "sync", "--output-dir", output)
    assert (done.code, "0 of 1 offline run uploaded" in done.out) == (1, True)
    assert "was not uploaded: Not authenticated." in done.err


def test_an_upload_that_does_not_end_is_ended_with_all_that_it_started(
    dialogkit: Run, output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_by(f"sleep 60 & echo $! > {tmp_path}/child; wait", tmp_path, monkeypatch)
    monkeypatch.setattr("dialogkit.tracking.wandb_sync.SYNC_TIMEOUT_S", 1.0)
    (whole,) = offline_folders(Path(output))
    second = whole.with_name("offline-run-29990101_000000-second")
    shutil.copytree(whole, second)
    start = time.monotonic()
    done = dialogkit("runs", "sync", "--output-dir", output)
    assert time.monotonic() - start < 30
    assert done.code == 1
    assert f"{whole.name} was not uploaded within 1 s" in done.err
    assert "not tried, because the previous upload timed out" in done.err
    assert f"uploading {whole.name} (1 of 2), at most 1 s ..." in done.err
    assert "0 of 2 offline runs uploaded" in done.out
    assert ends(int((tmp_path / "child").read_text()))


def test_ctrl_c_ends_an_upload_at_once_and_says_what_was_uploaded(
    output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_by(f"sleep 60 & echo $! > {tmp_path}/child; wait", tmp_path, monkeypatch)

    def interrupt() -> None:
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(InterruptedRunError) as stopped:
        sync_runs(output=output)
    assert stopped.value.exit_code == 130
    assert stopped.value.message == "stopped by Ctrl-C: 0 of 1 offline run uploaded"
    assert typed(stopped.value) == f"dialogkit runs sync --output-dir {output}"
    assert ends(int((tmp_path / "child").read_text()))


def ends(process: int) -> bool:
    """Return whether a process that was killed is gone, or has only to be waited for by its parent."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_server_that_does_not_answer_is_one_sentence(
    dialogkit: Run, output: str, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.system.network.ANSWER_S", 0.5)
    wandb_server.behaviour = "hang"
    done = dialogkit("runs", "sync", "--output-dir", output)
    assert (done.code, done.out) == (2, "")
    reported = f"W&B's server at {wandb_server.url} did not answer within 0.5 s: none of 1 offline run uploaded"
    assert done.err.splitlines() == [
        f"error: {reported}",
        f"try: dialogkit doctor --network --output-dir {output}",
    ]


def test_a_run_is_shown_whole(dialogkit: Run, output: str, trained: Trained) -> None:
    shown = dialogkit("runs", "show", "shared-run", "--all", "--output-dir", output)
    assert (shown.code, shown.err) == (0, "")
    assert "null" not in shown.out
    for name in ("environment.platform", "config.train.learning_rate", "model.parameters", "exit_code"):
        assert name in shown.out
    for reply in trained.result.replies:
        assert f"> {reply.prompt}" in shown.out.splitlines()


@pytest.mark.parametrize(("width", "origins"), [(80, {}), (120, {"train.learning_rate": "command line"})])
def test_a_run_is_shown_in_a_screen_of_rounded_figures(
    width: int,
    origins: dict[str, str],
    dialogkit: Run,
    output: str,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    run = RunDir(Path(output) / "runs/shared-run")
    record = run.read()
    data = record.data.model_copy(update={"split_by": "rows", "known_prompts": 0, "known_answers": 14})
    run.write(record.model_copy(update={"origins": origins, "data": data}))
    out = dialogkit("runs", "show", "shared-run", "--output-dir", output).out
    lines = out.splitlines()
    assert re.match(r"shared-run  completed  \d{4}-\d\d-\d\d \d\d:\d\d, [\d.]+ s$", lines[0])
    assert len(lines) < 70
    assert max(map(len, lines)) <= width
    figures = re.sub(r" [0-9a-f]{12} on ", "", out.replace(str(trained.output), ""))  # without the commit
    assert not re.search(r"\d\.\d{5}|\d{9}", figures)
    metrics = trained.result.metrics
    bits = [f"{metrics[f'{when}/bits_per_byte']:.3f}" for when in ("before", "final")]
    assert re.search(rf"^bits per byte +{bits[0]} +{bits[1]}$", out, re.MULTILINE)
    said = r" data starter, 40 to train on, 15 held out, as the rows say(, [^.]*)?\. Of the held-out dialogs, "
    assert re.search(rf"{said}training contains the answer of 14\. training ", " ".join(out.split()))
    settings = out[out.index("setting ") : out.index("replies ")]
    reported = " ".join(["train.learning_rate", "0.01", *origins.values()])
    assert reported in [" ".join(line.split()) for line in settings.splitlines()]
    assert "train.seed" not in settings


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_came(dialogkit: Run, output: str) -> None:
    run = RunDir(Path(output) / "runs/shared-run")
    run.write(
        run.read().model_copy(update={"status": "failed", "metrics": {}, "replies": {}, "error": "no\x1b[m"})
    )
    run.cut_after(15)
    evaluated = [point for point in run.metrics() if "eval/nats_per_token" in point][-1]
    out = dialogkit("runs", "show", "shared-run", "--output-dir", output).out
    assert "error: no\\x1b[m" in out.splitlines()
    assert re.search(rf"^held out +before +at step {evaluated['step']}$", out, re.MULTILINE)
    assert re.search(rf"^loss \(nats/token\) +{evaluated['eval/nats_per_token']:.3f}$", out, re.MULTILINE)
    assert re.search(r"^training +15 of 20 steps$", out, re.MULTILINE)


def test_a_run_of_which_little_is_recorded_is_shown(dialogkit: Run) -> None:
    RunDir.create(Path("models"), "bare").write(RunRecord(name="bare", created="once", wandb={"mode": 1}))
    done = dialogkit("runs", "show", "bare")
    assert (done.code, done.err) == (0, "next: dialogkit runs show bare --all\n")
    assert done.out.splitlines() == ["bare  running  once", "", "training  0 steps"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_run_is_shown_with_its_curve_and_its_evaluation(
    width: int, dialogkit: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    keep_evaluation(output, "shared-run", bits_per_byte=2.5, intervals={"bits_per_byte": (2.25, 2.75)})
    done = dialogkit("runs", "show", "shared-run", "--output-dir", output)
    assert (done.code, done.err) == (0, f"next: dialogkit runs show shared-run --all --output-dir {output}\n")
    assert max(map(len, done.out.splitlines())) <= width
    _, _, drawn = done.out.partition("nats/token ")
    assert max(map(len, drawn.splitlines())) <= width
    assert "20 steps" in drawn
    assert re.search(r"bits/byte +2\.5000 \[2\.2500, 2\.7500\] +2\.8053$", drawn, re.MULTILINE)
    assert "evaluated on starter, 15 dialogs" in drawn
    assert re.search(r"in brackets +shared-run +unigram$", drawn, re.MULTILINE)


def test_for_programs_the_curve_is_numbers(dialogkit: Run, output: str) -> None:
    data = dialogkit("runs", "show", "shared-run", "--output-dir", output, "--json").json["data"]
    points = RunDir(Path(output) / "runs/shared-run").metrics()
    assert data["train_loss"] == [[p["step"], p["train/loss"]] for p in points if "train/loss" in p]
    held_out = [[p["step"], p["eval/nats_per_token"]] for p in points if "eval/nats_per_token" in p]
    assert data["held_out_loss"] == held_out
    assert len(held_out) > 1
    assert "nats/token" not in json.dumps(data["origins"])
    assert data["name"] == "shared-run"


def test_what_is_kept_and_cannot_be_read_is_left_out(dialogkit: Run, output: str) -> None:
    run = RunDir(Path(output) / "runs/shared-run")
    run.append_metrics(21, {"train/loss": float("nan")})
    write_evaluation(run, "one", {"model": 1}, worst=[], replies=[])
    write_task(run, "two", {"name": "two"})
    (run.path / "evaluation/three.json").write_text("{")
    shown = show_run("shared-run", output=output)
    assert (shown.evaluations, shown.tasks) == ([], [])
    assert shown.train_loss[-1][0] == 20
    assert dialogkit("runs", "show", "shared-run", "--output-dir", output).code == 0


def test_an_unknown_run_is_one_sentence(dialogkit: Run, output: str) -> None:
    done = dialogkit("runs", "show", "shared-rum", "--output-dir", output)
    assert (done.code, done.out) == (2, "")
    assert "shared-run" in done.err


def test_an_upload_needs_a_key(dialogkit: Run, output: str) -> None:
    done = dialogkit("runs", "sync", "--output-dir", output)
    assert done.code == 2
    assert "WANDB_API_KEY" in done.err


def test_an_unreadable_run_does_not_keep_the_others(
    dialogkit: Run, output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = offline_folders(Path(output))
    broken = whole.parent / "offline-run-20200101_000000-broken"
    broken.mkdir()
    (broken / "run-broken.wandb").write_bytes(b":W&B000")
    upload_by(
        f'echo "$@" >> {tmp_path}/uploads; test "$WANDB_API_KEY" = {KEY} && touch "$5/run.wandb.synced"',
        tmp_path,
        monkeypatch,
    )
    done = dialogkit("runs", "sync", "--output-dir", output)
    assert done.code == 0
    assert (tmp_path / "uploads").read_text() == f"-P -m wandb sync {whole}\n"
    assert "skipped" in done.out
    assert "holds no record" in done.err


def test_an_upload_is_reported_once(
    dialogkit: Run, output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = offline_folders(Path(output))
    upload_by('touch "$5/run.wandb.synced"', tmp_path, monkeypatch)
    done = dialogkit("runs", "sync", "shared-run", "--output-dir", output)
    assert (done.code, done.out.split()) == (0, ["uploaded", str(folder)])
    assert done.err == f"uploading {folder.name}, at most 600 s ...\n"


def test_a_reason_of_several_uploads_is_reported_once(
    dialogkit: Run, output: str, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = offline_folders(Path(output))
    for number in range(3):
        shutil.copytree(whole, whole.with_name(f"offline-run-2999010{number}_000000-more"))
    upload_by("echo wandb: ERROR permission denied; exit 1", tmp_path, monkeypatch)
    done = dialogkit("runs", "sync", "--output-dir", output)
    assert (done.code, done.err.count("permission denied"), done.out.count("skipped")) == (1, 1, 4)


# Runs side by side


@pytest.fixture
def two(output: str, trained: Trained) -> str:
    """The finished run, and another one that was a little better and had another setting."""
    runs = Path(output) / "runs"
    shutil.copytree(runs / "shared-run", runs / "other-run")
    run = RunDir(runs / "other-run")
    record = run.read()
    settings = {**record.config, "train": {**record.config["train"], "learning_rate": 0.5}}
    metrics = {**record.metrics, "final/bits_per_byte": record.metrics["final/bits_per_byte"] - 0.5}
    versions = {**record.versions, "torch": "0"}
    update = {"name": "other-run", "config": settings, "metrics": metrics, "versions": versions}
    run.write(record.model_copy(update=update))
    return output


def test_what_differs_between_runs_is_reported_and_nothing_else(two: str, trained: Trained) -> None:
    compared = compare_runs(["shared-run", "other-run"], output=two)
    learning_rate = RunDir(Path(two) / "runs/shared-run").read().config["train"]["learning_rate"]
    assert [(row.name, row.values) for row in compared.settings] == [("train.learning_rate", [learning_rate, 0.5])]
    assert [row.name for row in compared.versions] == ["torch"]
    bits = trained.result.metrics["final/bits_per_byte"]
    assert {row.name: row.values for row in compared.figures}["bits per byte"] == [bits, bits - 0.5]
    assert compared.same_data
    assert compared.verdict.text == (
        f"other-run predicts better than shared-run, {bits - 0.5:.3f} against {bits:.3f} bits/byte on the same 15 "
        "dialogs: 0.500 fewer, but their 95% intervals overlap, so that may be chance. An evaluation compares "
        "them dialog by dialog, which is sharper. "
        f"Settings that differ: train.learning_rate {learning_rate:g} / 0.5."
    )
    prompts = {reply.prompt: reply.reply for reply in trained.result.replies}
    answered = {row.prompt: row.replies for row in compared.replies}
    assert {prompt: answered[prompt] for prompt in prompts} == {p: [reply] * 2 for p, reply in prompts.items()}
    true = {row.prompt: row.reference for row in compared.replies if row.reference is not None}
    assert true == {reply.prompt: reply.reference for reply in trained.result.held_out_replies}


def test_what_the_trainings_measured_makes_the_verdict(two: str) -> None:
    run = RunDir(Path(two) / "runs/other-run")
    record = run.read()
    update = {
        "metrics": {**record.metrics, "final/bits_per_byte": 0.05, "final/right_answers": 0.5},
        "intervals": {"final/bits_per_byte": (0.0, 0.1), "final/right_answers": (0.4, 0.6)},
    }
    run.write(record.model_copy(update=update))
    verdict = compare_runs(["shared-run", "other-run"], output=two).verdict
    assert (verdict.best, verdict.behind[0].clear) == ("other-run", True)
    assert "fewer, more than chance. Settings" in verdict.text
    run.write(record.model_copy(update={"intervals": {}}))  # as a training in several processes
    assert compare_runs(["shared-run", "other-run"], output=two).verdict.behind[0].clear is None


@pytest.mark.parametrize("width", [80, 120])
def test_a_comparison_fits_into_the_terminal(
    width: int, two: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two)
    assert (done.code, done.err) == (0, f"next: dialogkit evaluate shared-run other-run --output-dir {two}\n")
    assert done.out.splitlines()[:2] == ["A  shared-run", "B  other-run"]
    assert max(map(len, done.out.splitlines())) <= width
    assert "train.learning_rate" in done.out


def test_kept_evaluations_stand_side_by_side_with_their_intervals(
    two: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    keep_evaluation(
        two, "shared-run", bits_per_byte=3.5, intervals={"bits_per_byte": (3.25, 3.75)}, perplexity=9.0
    )
    keep_evaluation(two, "other-run", bits_per_byte=2.5, intervals={"bits_per_byte": (2.25, 2.75)}, perplexity=8.0)
    figure = TaskFigure(name="acc", filter="", value=0.25, interval=(0.0, 0.5), better=1)
    task = TaskRow(name="t", version="", questions=4, of_questions=4, examples=0, cut=0, figures=[figure])
    write_task(RunDir(Path(two) / "runs/other-run"), "t", task.model_dump(mode="json"))
    done = dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two)
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    assert re.search(r"in brackets +A +B$", done.out, re.MULTILINE)
    row = r"^\S bits/byte +3\.5000 \[3\.2500, 3\.7500\] +2\.5000 \[2\.2500, 2\.7500\]$"
    assert re.search(row, done.out, re.MULTILINE)
    assert re.search(r"^t \(4 questions\) +acc +0\.2500 \[0\.0000, 0\.5000\]$", done.out, re.MULTILINE)
    data = dialogkit("runs", "compare", "other-run", "shared-run", "--output-dir", two, "--json").json["data"]
    assert [row["bits_per_byte"] for row in data["evaluations"][0]["rows"]] == [2.5, 3.5]
    assert [[task["name"] for task in tasks] for tasks in data["tasks"]] == [["t"], []]
    assert "1.000 fewer, more than chance." in " ".join(done.out.split())


def test_kept_scores_of_dialogs_make_the_verdict_sharp_on_the_screen_and_on_the_page(
    two: str, dialogkit: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    wide = {"intervals": {"bits_per_byte": (1.0, 5.0)}}
    nats = [float(n) for n in range(15)]
    keep_evaluation(two, "shared-run", nats, bits_per_byte=3.0, **wide)
    keep_evaluation(two, "other-run", [n - 0.5 for n in nats], bits_per_byte=2.9, **wide)
    verdict = compare_runs(["shared-run", "other-run"], output=two).verdict
    assert (verdict.best, verdict.dialogs, verdict.behind[0].clear) == ("other-run", 15, True)
    assert [(row.name, row.tied_with) for row in best_runs(output=two)] == [("other-run", [])]
    dialogkit("runs", "report", "shared-run", "other-run", "--output-dir", two, "--output", "two.html")
    page = Path("two.html").read_text()
    assert f'<p class="verdict" dir="auto">{verdict.text}</p>' in page
    assert re.findall(r'<td class="best">([\d.]+)', page) == ["2.9000"]  # though the intervals overlap
    output = Output()
    output.out = Console(force_terminal=True, color_system="truecolor", no_color=False, width=100)
    render_comparison(output, compare_runs(["shared-run", "other-run"], output=two))
    assert re.findall(r"\x1b\[1m(\d\.[^\x1b]*)", capfd.readouterr().out) == ["2.9000 [1.0000, 5.0000]"]
    path = Path(two) / "runs/other-run/evaluation/starter-15-dialogs-scores.jsonl"
    path.write_text(path.read_text().replace('"nats"', '"nots"', 1))
    assert compare_runs(["shared-run", "other-run"], output=two).verdict.behind[0].interval is None
    assert (
        "their 95% intervals overlap; dialogkit evaluate other-run shared-run"
        in dialogkit("runs", "best", "--output-dir", two).err
    )


def test_evaluations_on_other_dialogs_are_not_set_side_by_side_and_that_is_said(two: str, dialogkit: Run) -> None:
    keep_evaluation(two, "shared-run")
    run = RunDir(Path(two) / "runs/other-run")
    row = EvaluateRow(model="m", dataset="starter", dialogs=5, tokens=100)
    write_evaluation(run, "starter", row.model_dump(mode="json"), worst=[], replies=[])
    assert compare_runs(["shared-run", "other-run"], output=two).evaluations == []
    reported = dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two).err.splitlines()
    assert reported == [
        "their stored evaluations are on different dialogs (A on 15 of starter, B on 5 of starter), so their "
        "evaluations are not shown side by side",
        f"next: dialogkit evaluate shared-run other-run --output-dir {two}",
    ]


@pytest.mark.parametrize("same_file", [True, False])
def test_runs_with_other_held_out_dialogs_are_evaluated_on_the_same_ones(
    same_file: bool, two: str, dialogkit: Run
) -> None:
    run = RunDir(Path(two) / "runs/other-run")
    record = run.read()
    other = {"eval_dialogs": 2} if same_file else {"eval_dialogs": 2, "dataset": "b.json", "revision": "0"}
    run.write(record.model_copy(update={"data": record.data.model_copy(update=other)}))
    keep_evaluation(two, "shared-run")
    reported = dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two).err.splitlines()
    name, samples = ("starter", 2) if same_file else ("b.json", 15)
    assert reported == [
        f"their held-out dialogs differ (A's are 15 of starter, B's are 2 of {name}): results on different "
        "dialogs cannot be compared, so their evaluations are not shown side by side",
        f"next: dialogkit evaluate shared-run other-run --dataset starter --samples {samples} --output-dir {two}",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_replies_stand_beside_each_other_where_there_is_room(
    width: int, two: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two).out
    assert ("> Hello! How are you?" in out.splitlines()) == (width == 80)
    assert bool(re.search(r"^prompt +A +B$", out, re.MULTILINE)) == (width == 120)


def test_runs_on_other_data_are_not_compared_in_silence(two: str, dialogkit: Run) -> None:
    run = RunDir(Path(two) / "runs/other-run")
    record = run.read()
    run.write(record.model_copy(update={"data": record.data.model_copy(update={"revision": "another"})}))
    assert "cannot be compared" in dialogkit("runs", "compare", "shared-run", "other-run", "--output-dir", two).err
    rows = dialogkit("runs", "best", "--output-dir", two, "--json").json["data"]
    assert {row["name"] for row in rows} == {"shared-run", "other-run"}


def test_the_best_run_has_the_fewest_bits_per_byte(two: str, dialogkit: Run) -> None:
    done = dialogkit("runs", "best", "--output-dir", two, "--json").json
    assert [row["name"] for row in done["data"]] == ["other-run"]
    assert done["hint"] == f"dialogkit generate other-run --output-dir {two}"


@pytest.mark.parametrize("names", [["shared-run"], ["shared-run", "shared-run"], ["shared-run", "nope"]])
def test_what_cannot_be_compared_is_one_sentence(names: list[str], two: str, dialogkit: Run) -> None:
    done = dialogkit("runs", "compare", *names, "--output-dir", two)
    assert (done.code, done.err.splitlines()[-1]) == (2, f"try: dialogkit runs list --output-dir {two}")
