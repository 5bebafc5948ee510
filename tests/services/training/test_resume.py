"""Which run is resumed or started from, and what is reported if there is none. No run here was trained."""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.engine.checkpoints import Progress, commit, set_aside
from dialogkit.errors import ConfigError, ModelError
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.services.train import train
from dialogkit.services.training.progress import LogReporter
from dialogkit.services.training.resume import find_resumable, find_start
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import list_runs
from tests.conftest import Finished, typed

Run = Callable[..., Finished]
MODELS = Path("models")
CHECKPOINTS = ("checkpoint-3", "checkpoint-10")


def made(name: str, *, checkpoints: tuple[str, ...] = CHECKPOINTS, finished: bool = False) -> RunDir:
    """Return the folder of a run as training leaves it, with meaningless weights."""
    run = RunDir.create(MODELS, name)
    config = load_run_config("custom-nano", overrides={"name": name})
    status: Any = "completed" if finished else "failed"
    run.write(RunRecord(name=name, created="2026", status=status, config=config.model_dump(mode="json")))
    for place in (*checkpoints, *(["model"] if finished else [])):
        (run.path / place).mkdir()
        (run.path / place / "config.json").write_text("{}")
        (run.path / place / "model.safetensors").write_text(place)
        if place != "model":
            commit(run.path / place, Progress())
    if finished:
        (run.model_dir / "README.md").write_text("---\ntags: [dialogkit, conversational]\n---\n")
    return run


@pytest.fixture
def run() -> RunDir:
    return made("r")


DAMAGES = {
    "cut off": ('{"x":', "is damaged (not valid JSON)"),
    "a list": ("[]", "is damaged (not a JSON object)"),
    "without a name": ('{"created": "now"}', "is damaged (name is missing)"),
    "deleted": (None, "is missing"),
}


@pytest.fixture(params=DAMAGES)
def damaged(request: pytest.FixtureRequest, run: RunDir) -> str:
    """Damage the record of `run`, and return what is reported about it."""
    content, reported = DAMAGES[request.param]
    run.record_path.unlink() if content is None else run.record_path.write_text(content)
    return reported


@pytest.mark.parametrize(
    "words", ["train --resume r", "runs show r", "generate r", "train --from r", "runs prune r"]
)
def test_a_damaged_record_is_reported_with_what_is_left(words: str, damaged: str, dialogkit: Run) -> None:
    done = dialogkit(*words.split())
    left = "'models/runs/r' still holds checkpoint-10 and checkpoint-3"
    hint = "dialogkit train --from models/runs/r/checkpoint-10 --name r-2"
    assert (done.code, done.out, done.err.splitlines()) == (
        2, "", [f"error: run.json of the run 'r' {damaged}; {left}", f"try: {hint}"],
    )  # fmt: skip
    assert find_start(shlex.split(hint)[3], output=MODELS) == (Path("models/runs/r/checkpoint-10"), "r")


def test_a_damaged_run_is_passed_over_aloud(damaged: str, dialogkit: Run) -> None:
    made("whole", finished=True)
    done = dialogkit("runs", "list")
    assert "whole" in done.out
    assert done.err.splitlines() == ["skipped, as the record cannot be read: r", "next: dialogkit runs show r"]
    assert dialogkit("runs", "prune").err.splitlines()[0] == "skipped, as the record cannot be read: r"
    last = dialogkit("train", "--resume", "last")
    assert last.err.splitlines()[1] == "try: dialogkit runs show r"
    made("left")
    refused = dialogkit("train", "--resume", "last", "--set", "train.seed=1")
    assert refused.err.splitlines()[0] == "skipped, as the record cannot be read: r"
    assert "the run 'left' cannot resume with different conditions: train.seed" in refused.err
    listed = dialogkit("runs", "list", "--json")
    assert (listed.err, [row["name"] for row in listed.json["data"]]) == ("", ["whole", "left"])


def test_folders_that_are_no_runs_are_passed_over_in_silence(run: RunDir, dialogkit: Run) -> None:
    for name, file in (("empty", None), ("notes", "a.txt"), ("killed", ".lock"), ("half", ".pruned.json")):
        (MODELS / "runs" / name).mkdir()
        if file is not None:
            (MODELS / "runs" / name / file).touch()
    assert dialogkit("runs", "list").err == ""


def test_the_model_of_a_damaged_run_can_be_used() -> None:
    run = made("done", finished=True)
    run.record_path.write_text("{")
    with pytest.raises(
        ModelError, match="still holds its finished model, checkpoint-10 and checkpoint-3"
    ) as reported:
        run.read()
    assert typed(reported.value) == "dialogkit generate models/runs/done/model --prompt 'Hello!'"
    loadable = resolve_model("models/runs/done/model")
    assert (loadable.model.source, loadable.run) == ("models/runs/done/model", None)


def test_a_new_run_starts_from_a_finished_run_or_a_checkpoint(run: RunDir) -> None:
    finished = made("done", finished=True)
    for name in ("done", "models/runs/done", "models/runs/done/model"):
        assert find_start(name, output=MODELS) == (finished.model_dir, "custom-nano")
    newest = run.path / "checkpoint-10"
    for name in (str(newest), "r/checkpoint-10"):
        assert find_start(name, output=MODELS) == (newest, "custom-nano")
    (newest / "model.safetensors").write_text("another")
    with pytest.raises(ModelError, match="is torn or damaged") as reported:
        find_start(str(newest), output=MODELS)
    assert typed(reported.value) == "dialogkit train --from models/runs/r/checkpoint-3"


@pytest.mark.parametrize("words", ["train --from {}/checkpoint-10", "generate {}/checkpoint-10"])
@pytest.mark.parametrize(
    ("name", "command"), [("done", "dialogkit generate done"), ("r", "dialogkit train --resume r")]
)
def test_the_parts_of_a_sharded_model_are_called_so(
    words: str, name: str, command: str, run: RunDir, dialogkit: Run
) -> None:
    checkpoint = (run if name == "r" else made("done", finished=True)).path / "checkpoint-10"
    for file in checkpoint.iterdir():
        file.unlink()
    (checkpoint / "pytorch_model_fsdp_0").mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    commit(checkpoint, Progress())
    done = dialogkit(*words.format(name).split())
    reported = "holds a sharded model, which can only be resumed"
    assert done == Finished(2, "", f"error: '{name}/checkpoint-10' {reported}\ntry: {command}\n")


@pytest.mark.parametrize("output", ["models", "elsewhere"])
@pytest.mark.parametrize("words", ["train --from r", "generate r"])
@pytest.mark.parametrize(
    ("state", "command"),
    {
        "as it is": "dialogkit train --resume r",
        "never saved": "dialogkit train --resume r",
        "newest damaged": "dialogkit train --resume r",
        "all damaged": "dialogkit train --resume r{} --force",
        "all aside": "dialogkit train --resume r{} --force",
        "held": "dialogkit runs show r",
    }.items(),
)
def test_where_a_run_has_no_model_the_hint_is_what_works(
    output: str, words: str, state: str, command: str, run: RunDir, dialogkit: Run
) -> None:
    for name in {"newest damaged": CHECKPOINTS[1:], "all damaged": CHECKPOINTS}.get(state, ()):
        (run.path / name / "model.safetensors").write_text("")
    for name in CHECKPOINTS if state == "all aside" else ():
        set_aside(run.path / name)
    for name in CHECKPOINTS if state == "never saved" else ():
        for file in (run.path / name).iterdir():
            file.unlink()
        (run.path / name).rmdir()
    option = "" if output == "models" else f" --output-dir {output}"
    os.rename("models", output)
    run = RunDir(Path(output) / "runs" / "r")
    if state == "held":
        import fcntl

        with (run.path / ".lock").open("w") as other:  # another open file counts as another process
            fcntl.flock(other, fcntl.LOCK_EX)
            done = dialogkit(*words.split(), *option.split())
    else:
        done = dialogkit(*words.split(), *option.split())
    expected = command.format(option) if "{}" in command else command + option
    assert done.err.splitlines() == [
        "error: the run 'r' has no finished model (it is failed)", f"try: {expected}",
    ]  # fmt: skip


def test_a_run_keeps_its_name(run: RunDir, dialogkit: Run) -> None:
    before = run.record_path.read_bytes()
    for force in ([], ["--force"]):
        done = dialogkit("train", "--resume", "r", "--name", "other", *force)
        assert (done.code, done.err.splitlines()[0]) == (
            2, "error: a run keeps its name: 'r' cannot resume as 'other'",
        )  # fmt: skip
    assert run.record_path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "reported", "hint"),
    [
        ("--force", ", and --force has no effect", "dialogkit train --from done"),
        (
            "--set train.batch_size=4 --wandb offline --force",
            ", and --wandb, --batch-size and --force have no effect",
            "dialogkit train --from done",
        ),
        ("--name other", ", and --name has no effect", "dialogkit train --from done --name other"),
        ("--output-dir models", "", 'dialogkit generate done --prompt "Hello!"'),  # nothing is published
    ],
)
def test_a_finished_run_says_what_has_no_effect(words: str, reported: str, hint: str, dialogkit: Run) -> None:
    made("done", finished=True)
    done = dialogkit("train", "--resume", "done", *words.split())
    sentence = " ".join(done.out.split())
    assert (done.code, sentence) == (0, f"the run done is finished: there is nothing to do{reported}")
    assert done.err.splitlines() == [f"next: {hint}"]


def test_a_change_is_refused_with_a_command_that_continues(run: RunDir, dialogkit: Run) -> None:
    done = dialogkit("train", "--resume", "r", "--set", "train.batch_size=4")
    reported = "cannot resume with different conditions: train.batch_size is 2, not 4"
    assert done.err.splitlines() == [f"error: the run 'r' {reported}", "try: dialogkit train --resume r"]


@pytest.mark.parametrize("name", ["r", "last", "models/runs/r"])
def test_settings_that_are_none_are_reported_with_the_run(name: str, run: RunDir) -> None:
    record = json.loads(run.record_path.read_text())
    record["config"]["train"].update(batch_size="two", epochs=0)
    run.record_path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"in run\.json of the run 'r' are not valid: train\.") as reported:
        find_resumable(name, model=None, output=MODELS)
    assert typed(reported.value) == "dialogkit config validate models/runs/r/run.json"
    assert len(reported.value.details) == 1


# Which run is the newest


NOW = datetime.now(UTC)
WRONG = ["2153-01-01T00:00:00+00:00", "21530101T000000Z", "9999-12-31T23:59:59-12:00", "no time", ""]
"""Times of a clock that was wrong, and what is no time."""


def begun(name: str, created: str, *, finished: bool = False) -> RunDir:
    run = made(name, finished=finished)
    run.write(run.read().model_copy(update={"created": created}))
    return run


@pytest.mark.parametrize("created", WRONG)
def test_a_run_that_does_not_say_when_it_began_is_not_the_newest(created: str, dialogkit: Run) -> None:
    begun("wrong", created, finished=True)
    begun("right", (NOW - timedelta(days=300)).isoformat(), finished=True)
    begun("wrong-too", created)
    begun("right-too", (NOW - timedelta(days=301)).isoformat())
    assert resolve_model(None, output=MODELS).name == "right"
    assert find_resumable("last", model=None, output=MODELS).name == "right-too"
    listed = dialogkit("runs", "list", "--json").json["data"]
    assert [row["name"] for row in listed] == ["right", "right-too", "wrong-too", "wrong"]
    reported = dialogkit("runs", "list").err
    assert reported == (
        f"listed last, as the clock was wrong: wrong-too ({created}), wrong ({created})\n"
        if created in WRONG[:3]
        else ""
    )
    published = MODELS / "custom_nano"
    shutil.copytree(MODELS / "runs/right/model", published)
    shutil.copy(published / "model.safetensors", MODELS / "runs/wrong/model")
    found = resolve_model("custom-nano", output=MODELS).run
    assert found is not None
    assert found.name == "right"


def test_where_all_clocks_were_ahead_runs_keep_their_order() -> None:
    for year in (2153, 2154, 2152):
        begun(f"r{year}", f"{year}-01-01T00:00:00+00:00")
    assert find_resumable("last", model=None, output=MODELS).name == "r2154"


def test_times_are_compared_and_not_their_texts() -> None:
    day = f"{NOW - timedelta(days=2):%Y-%m-%d}"
    created = [
        f"{day}T03:00:00+09:00",
        f"{day}T00:00:00",
        f"{day.replace('-', '')}T010000Z",
        f"{day}T01:30:00-01:00",
    ]
    for number, text in enumerate(created):
        begun(f"r{number}", text)
    assert [run.name for run, _ in list_runs(MODELS)] == ["r3", "r2", "r1", "r0"]
    assert find_resumable("last", model=None, output=MODELS).name == "r3"


def test_a_clock_that_is_a_little_ahead_counts() -> None:
    begun("ahead", (NOW + timedelta(hours=20)).isoformat())
    begun("now", NOW.isoformat())
    assert find_resumable("last", model=None, output=MODELS).name == "ahead"


# A run folder that was renamed


def test_a_renamed_run_is_known_by_the_name_of_its_folder(dialogkit: Run) -> None:
    os.rename(made("old", finished=True).path, "models/runs/new")
    before = Path("models/runs/new/run.json").read_bytes()
    made("other", finished=True)
    assert {row["name"] for row in dialogkit("runs", "list", "--json").json["data"]} == {"new", "other"}
    assert dialogkit("runs", "show", "new", "--json").json["data"]["name"] == "new"
    assert dialogkit("runs", "show", "new").out.split()[0] == "new"
    assert dialogkit("runs", "compare", "new", "other", "--json").json["data"]["runs"] == ["new", "other"]
    assert resolve_model("new", output=MODELS).name == "new"
    assert dialogkit("train", "--resume", "new").out.startswith("the run new is finished")
    assert dialogkit("runs", "report", "new").code == 0
    page = Path("models/runs/new/report.html").read_text()
    assert "<title>new" in page
    assert "dialogkit train --resume old" not in page
    for words in ("runs show old", "train --resume old", "runs report old", "runs prune old"):
        assert "no run 'old'" in dialogkit(*words.split()).err
    assert Path("models/runs/new/run.json").read_bytes() == before
    assert dialogkit("runs", "prune", "new", "--yes").code == 0


def test_a_renamed_run_is_refused_under_its_name(run: RunDir, dialogkit: Run) -> None:
    os.rename(run.path, "models/runs/new")
    done = dialogkit("train", "--resume", "new", "--set", "train.batch_size=4")
    assert done.err.startswith("error: the run 'new' cannot resume with different conditions")
    assert done.err.splitlines()[-1] == "try: dialogkit train --resume new"


@pytest.mark.parametrize("name", ["my run", "-dash", "é", "a$b", "x" * 100])
def test_a_run_of_any_name_is_found_by_its_path_and_by_what_hints_say(name: str, dialogkit: Run) -> None:
    folder = Path("models/runs") / name
    os.rename(made("old", finished=True).path, folder)
    other = made("other", finished=True)
    assert {row["name"] for row in dialogkit("runs", "list", "--json").json["data"]} == {name, "other"}
    path = str(folder)
    assert dialogkit("runs", "show", path, "--json").json["data"]["name"] == name
    assert dialogkit("runs", "compare", path, str(other.path), "--json").json["data"]["runs"] == [name, "other"]
    assert dialogkit("runs", "report", path).code == 0
    assert find_resumable(path, model=None, output=MODELS).name == name
    assert resolve_model(path, output=MODELS).name == name
    if not name.startswith("-"):
        assert dialogkit("runs", "show", name, "--json").json["data"]["name"] == name
    done = dialogkit("train", "--resume", path, "--force")
    assert done.err == f"next: dialogkit train --from {shlex.quote(path)}\n"
    shutil.rmtree(folder / "model")
    hint = dialogkit("generate", path).err.splitlines()[-1]
    assert hint == f"try: dialogkit train --resume {shlex.quote(path)}"
    assert dialogkit("runs", "prune", path, "--yes").code == 0
    assert not folder.exists()


def test_a_run_of_another_output_folder_is_not_pruned_from_here(dialogkit: Run) -> None:
    made("r", finished=True)
    os.rename("models", "elsewhere")
    made("r", finished=True)
    done = dialogkit("runs", "prune", "elsewhere/runs/r", "--yes")
    assert (done.code, done.err.splitlines()) == (
        2,
        [
            "error: the run 'elsewhere/runs/r' is not in 'models'",
            "try: dialogkit runs prune r --output-dir elsewhere",
        ],
    )
    assert dialogkit("runs", "prune", "--output-dir", "elsewhere", "elsewhere/runs/r", "--yes").code == 0
    assert Path("models/runs/r").is_dir()


# A run that is resumed from elsewhere


@pytest.mark.parametrize("way", ["relative", "absolute", "inside"])
def test_a_run_resumed_by_its_path_publishes_where_it_lies(
    way: str, small_config: Callable[..., Any], dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"name": "r", "train.eval_every_steps": 2, "tracking.wandb": "offline"}
    project = Path("project").absolute()
    project.mkdir()
    monkeypatch.chdir(project)
    reporter = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        train(small_config(settings), reporter=reporter)
    here = {"relative": project.parent, "absolute": project.parent, "inside": project / "models/runs/r"}[way]
    monkeypatch.chdir(here)
    whole = project / "models/runs/r"
    path = {"relative": "project/models/runs/r", "absolute": str(whole), "inside": "."}[way]
    refused = dialogkit("train", "--resume", path, "--set", "train.batch_size=4")
    done = dialogkit("train", "--resume", path)
    assert done.code == 0, done.err
    assert (project / "models/custom_nano/config.json").is_file()
    assert len(list((project / "models/wandb").glob("offline-run-*"))) == 2
    assert not (here / "models").exists()
    output = {"relative": "project/models", "absolute": str(project / "models"), "inside": "../.."}[way]
    assert refused.err.splitlines()[-1] == f"try: dialogkit train --resume r --output-dir {output}"
    hint = done.err.splitlines()[-1]
    assert hint == f'next: dialogkit generate r --output-dir {output} --prompt "Hello!"'
    assert dialogkit(*shlex.split(hint)[2:], "--max-new-tokens", "1").code == 0


class Interrupting(LogReporter):
    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt
