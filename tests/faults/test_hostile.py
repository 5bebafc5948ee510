"""What comes from strangers, or was changed at random, steers nothing: no terminal, no file, no process."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli.output import Output, TrainOutput, fitting, settings_table, untrusted
from dialogkit.config.load import known_settings, load_with_origins
from dialogkit.config.model import ModelConfig
from dialogkit.engine.checkpoints import read_progress, seal
from dialogkit.errors import DataError, DialogKitError, ModelError, StorageError
from dialogkit.models.tokenizer import with_format
from dialogkit.services.generate import ReplyResult
from dialogkit.services.train import resume, train
from dialogkit.tracking.rundir import RunDir
from tests.conftest import Finished

MARKS = "\x00\x07\x08\x0b\x1b\x7f\x80\x90\x9b\x9d\u200b\u200f\u202a\u202e\u2066\u2069\ufeff\r"
PIECES = [*MARKS, "[red]", "[/]", "[link=x]", "\x1b]0;owned\x07", "\x1b[2J", "é", "漢", "👋", "a", " ", "\n"]


def hostile(number: int, seed: int) -> list[str]:
    """Return texts made of control characters, marks and markup."""
    chance = random.Random(seed)
    return ["".join(chance.choices(PIECES, k=chance.randrange(1, 12))) for _ in range(number)]


@pytest.mark.parametrize("number", [pytest.param(60, id="some"), pytest.param(2000, marks=pytest.mark.faults)])
@pytest.mark.parametrize("as_json", [False, True])
def test_no_text_steers_a_terminal(number: int, as_json: bool, capfd: pytest.CaptureFixture[str]) -> None:
    for text in hostile(number, seed=number):
        output = Output(json_mode=as_json)
        reply = ReplyResult(model=text, prompt=text, reply=text, tokens=1, seconds=1, stop_reason="length")
        output.error(DialogKitError(text, hint=text, details=[text]))
        output.result(reply, lambda out, reply=reply: out.reply(reply, prompt=True, model=reply.model), hint=text)
        if not as_json:
            output.stream(text)
            output.print(settings_table({"name": text}))
            output.print(fitting(output.out, {"a": str, "b": str}, [text], right=(), dispensable=()))
            drawn = TrainOutput(output)
            drawn.header({"model": text})
            drawn.note(text)
            drawn.doing(text)
            output.print(untrusted(text))
        out, err = capfd.readouterr()
        found = [mark for mark in MARKS if mark in out + err]
        assert not found, (text, found)
        if as_json:
            error, result = json.loads("[" + out.replace("}\n{", "},{") + "]")
            assert (error["error"]["message"], result["data"]["reply"]) == (text, text)


NAMES = [
    *("..", ".", "", "/etc/x", "../x", "a/b", "a\\b", "~", "-x", ".hidden", "con\x00", "a\nb", "x" * 300, "a b"),
    *("é/..", "..%2f", "$HOME", "`id`", "a;b", "*"),
]
PLACES = ["name", "model.name"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_leave_its_folder(
    place: str, name: str, tmp_path: Path, dialogkit: Callable[..., Finished]
) -> None:
    before = set(tmp_path.rglob("*"))
    done = dialogkit("train", "custom-nano", "--set", f"{place}={json.dumps(name)}", "--wandb", "disabled")
    assert done.code == 2
    assert len(done.err.splitlines()) <= 3
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_only_looked_for_in_its_folder(name: str, dialogkit: Callable[..., Finished]) -> None:
    Path("run.json").write_text("{}")
    for words in (["runs", "show"], ["train", "--resume"]):
        done = dialogkit(*words, f"{name}") if name != "-x" else dialogkit(*words, "--", name)
        assert done.code == 2


LINKED = ["console.log", "metrics.jsonl", "samples.jsonl", "run.json", "model", "model/model.safetensors",
          "checkpoint-3", "checkpoint-3/optimizer.pt", ".lock"]  # fmt: skip


@pytest.fixture(scope="module")
def stopped_once(small_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(small_config({"name": "stopped", "train.eval_every_steps": 2, "train.keep": "last"}))
        run = RunDir(Path("models/runs/stopped"))
        run.write(run.read().model_copy(update={"status": "interrupted"}))
    return folder / "models"


@pytest.fixture
def stopped(stopped_once: Path) -> RunDir:
    """A run that has two checkpoints and no end."""
    shutil.copytree(stopped_once, "models")
    return RunDir(Path("models/runs/stopped"))


@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_a_run_is_not_followed(name: str, stopped: RunDir) -> None:
    outside = Path("outside.txt")
    outside.write_text("mine")
    place = stopped.path / name
    place.parent.mkdir(exist_ok=True)
    if place.is_dir():
        place.rename(place.with_name("moved"))
    place.unlink(missing_ok=True)
    place.symlink_to(outside.resolve())
    with pytest.raises(DialogKitError) as refused:
        resume(stopped)
    assert isinstance(refused.value, StorageError) or name == "run.json"
    assert outside.read_text() == "mine"


class Payload:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


PICKLES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_a_checkpoint_does_not_run(name: str, stopped: RunDir) -> None:
    newest = stopped.path / "checkpoint-2"
    (stopped.path / "checkpoint-4/manifest.json").unlink()
    progress = read_progress(newest)
    assert progress is not None
    (newest / name).write_bytes(pickle.dumps({"state": Payload(), "param_groups": []}))
    seal(newest, progress)
    if name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with pytest.raises(ModelError, match="checkpoint-2 is not loaded: it holds more than tensors"):
            resume(stopped)
    else:  # not read at all
        assert resume(stopped) is not None
        assert (stopped.path / "torn-checkpoint-2").exists() == (name == "scaler.pt")
    assert not Path("ran").exists()


TEMPLATES = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}<|end|>",
    "long": "{% for i in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}<|end|>",
    "reads a file": "{{ messages.__class__.__mro__[1].__subclasses__() }}<|end|>",
    "divides by zero": "{{ 1 / 0 }}<|end|>",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_is_bounded(kind: str, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    monkeypatch.setattr("dialogkit.models.tokenizer.TEMPLATE_SECONDS", 0.3)
    tokenizer = copy.deepcopy(small.tokenizer.hf)
    tokenizer.chat_template = TEMPLATES[kind]
    with pytest.raises(DialogKitError) as refused:
        with_format(tokenizer, ModelConfig(source="x"))
    assert isinstance(refused.value, DataError)
    assert refused.value.hint == "--set model.chat_format=plain"


ODD = [None, True, -1, 0, 1e308, 10**400, "", "x" * 5000, "\x00", [], [[]], {}, {"a": {}}, "NaN", 1.5, [1] * 500]


@pytest.mark.parametrize("number", [pytest.param(60, id="some"), pytest.param(1000, marks=pytest.mark.faults)])
def test_a_configuration_that_was_changed_at_random_is_taken_or_refused(number: int) -> None:
    chance, names, taken = random.Random(number), known_settings(), 0
    whole = load_with_origins("custom-tiny").config.model_dump(mode="json")
    for _ in range(number):
        content = json.loads(json.dumps(whole))
        for _ in range(chance.randrange(1, 4)):
            section, _, key = chance.choice(names).rpartition(".")
            place = content[section] if section else content
            if isinstance(place, dict):
                place[chance.choice([key, key + "x"])] = chance.choice(ODD)
        text = json.dumps(content)
        if chance.random() < 0.3:
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(['"', "{", "}", ",", "\x00", "9" * 5000, "[" * 5000]) + text[at:]
        Path("it.json").write_text(text)
        try:
            loaded = load_with_origins(None, preset=None, config_file="it.json")
        except DialogKitError as error:
            problem: DialogKitError | None = error
        else:
            problem = None
            taken += 1
            assert len(loaded.config.model_dump_json()) < 1_000_000
        if problem is not None:
            assert problem.exit_code == 2
            assert len(problem.message) < 1_000
    assert taken < number


def test_the_payload_works_where_it_is_run() -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert Path("ran").exists()
