"""Which run is gone on with or started from, and what is said where there is none. No run here was trained."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.engine.checkpoints import Progress, seal, set_aside
from dialogkit.errors import ConfigError, ModelError
from dialogkit.services.models import resolve_model
from dialogkit.services.resume import find_resumable, find_start
from dialogkit.tracking.rundir import RunDir, RunRecord
from tests.conftest import Finished

Run = Callable[..., Finished]
MODELS = Path("models")
CHECKPOINTS = ("checkpoint-3", "checkpoint-10")


def made(name: str, *, checkpoints: tuple[str, ...] = CHECKPOINTS, finished: bool = False) -> RunDir:
    """Return the folder of a run as a training leaves it, without weights that mean something."""
    run = RunDir.create(MODELS, name)
    config = load_run_config("custom-nano", overrides={"name": name})
    status: Any = "completed" if finished else "failed"
    run.write(RunRecord(name=name, created="2026", status=status, config=config.model_dump(mode="json")))
    for place in (*checkpoints, *(["model"] if finished else [])):
        (run.path / place).mkdir()
        (run.path / place / "config.json").write_text("{}")
        (run.path / place / "model.safetensors").write_text(place)
        if place != "model":
            seal(run.path / place, Progress())
    if finished:
        (run.model_dir / "README.md").write_text("---\ntags: [dialogkit, conversational]\n---\n")
    return run


@pytest.fixture
def run() -> RunDir:
    return made("r")


DAMAGES = {
    "cut off": ('{"x":', "is damaged (not valid JSON)"),
    "a list": ("[]", "is damaged (no JSON object)"),
    "without a name": ('{"created": "now"}', "is damaged (name is missing)"),
    "deleted": (None, "is missing"),
}


@pytest.fixture(params=DAMAGES)
def damaged(request: pytest.FixtureRequest, run: RunDir) -> str:
    """Damage the record of `run`, and return what is told of it."""
    content, told = DAMAGES[request.param]
    run.record_path.unlink() if content is None else run.record_path.write_text(content)
    return told


@pytest.mark.parametrize(
    "words", ["train --resume r", "runs show r", "generate r", "train --from r", "runs prune r"]
)
def test_a_damaged_record_is_told_with_what_is_left(words: str, damaged: str, dialogkit: Run) -> None:
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
    assert done.err.splitlines() == ["passed over, as the record cannot be read: r", "next: dialogkit runs show r"]
    assert dialogkit("runs", "prune").err.splitlines()[0] == "passed over, as the record cannot be read: r"
    last = dialogkit("train", "--resume", "last")
    assert last.err.splitlines()[1] == "try: dialogkit runs show r"
    made("left")
    refused = dialogkit("train", "--resume", "last", "--set", "train.seed=1")
    assert refused.err.splitlines()[0] == "passed over, as the record cannot be read: r"
    assert "the run 'left' would not go on as it began: train.seed" in refused.err
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
    with pytest.raises(ModelError, match="still holds its finished model, checkpoint-10 and checkpoint-3") as told:
        run.read()
    assert told.value.hint == 'dialogkit generate models/runs/done/model --prompt "Hello!"'
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
    with pytest.raises(ModelError, match="is torn or damaged") as told:
        find_start(str(newest), output=MODELS)
    assert told.value.hint == "dialogkit train --from models/runs/r/checkpoint-3"


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
    seal(checkpoint, Progress())
    done = dialogkit(*words.format(name).split())
    told = "holds the parts of a sharded model, which only --resume reads"
    assert done == Finished(2, "", f"error: '{name}/checkpoint-10' {told}\ntry: {command}\n")


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
            2, "error: a run keeps its name: 'r' cannot go on as 'other'",
        )  # fmt: skip
    assert run.record_path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        ("--force", ", and --force has no effect", "dialogkit train --from done"),
        (
            "--set train.batch_size=4 --wandb offline --force",
            ", and --wandb, train.batch_size and --force have no effect",
            "dialogkit train --from done",
        ),
        ("--name other", ", and --name has no effect", "dialogkit train --from done --name other"),
        ("--output-dir models", "", 'dialogkit generate done --prompt "Hello!"'),  # nothing is published
    ],
)
def test_a_finished_run_says_what_has_no_effect(words: str, told: str, hint: str, dialogkit: Run) -> None:
    made("done", finished=True)
    done = dialogkit("train", "--resume", "done", *words.split())
    sentence = " ".join(done.out.split())
    assert (done.code, sentence) == (0, f"the run done is finished: there is nothing to do{told}")
    assert done.err.splitlines() == [f"next: {hint}"]


def test_a_change_is_refused_with_a_command_that_goes_on(run: RunDir, dialogkit: Run) -> None:
    done = dialogkit("train", "--resume", "r", "--set", "train.batch_size=4")
    told = "would not go on as it began: train.batch_size is 2, not 4; --force goes on all the same"
    assert done.err.splitlines() == [f"error: the run 'r' {told}", "try: dialogkit train --resume r"]


@pytest.mark.parametrize("name", ["r", "last", "models/runs/r"])
def test_settings_that_are_none_are_told_with_the_run(name: str, run: RunDir) -> None:
    record = json.loads(run.record_path.read_text())
    record["config"]["train"].update(batch_size="two", epochs=0)
    run.record_path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"in run\.json of the run 'r' are not valid: train\.") as told:
        find_resumable(name, model=None, output=MODELS)
    assert told.value.hint == "dialogkit config validate models/runs/r/run.json"
    assert len(told.value.details) == 1
