"""What comes from strangers, or was changed at random, steers nothing: no terminal, no file, no process."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli import comparison_view, evaluation_view, generate, models, prune, runs, train_view
from dialogkit.cli.output import Output, fitting, options_table, settings_table, untrusted
from dialogkit.cli.progress import TrainOutput
from dialogkit.cli.run_view import render_run
from dialogkit.config.load import load_with_origins
from dialogkit.config.model import ModelConfig
from dialogkit.config.problems import known_settings
from dialogkit.engine.checkpoints import commit, read_progress
from dialogkit.errors import DataError, DialogKitError, ModelError, StorageError
from dialogkit.inference.results import ReplyResult
from dialogkit.models.tokenizer import with_format
from dialogkit.services.evaluate import EvaluateRequest, EvaluateResult, EvaluateRow
from dialogkit.services.evaluation.results import SliceRow, TaskFigure, TaskRow, WorstRow
from dialogkit.services.generate import GenerateResult
from dialogkit.services.models import ModelRow
from dialogkit.services.runs.compare import AnsweredPrompt, Comparison, HeldOut, RunDetails
from dialogkit.services.runs.listing import RunRow
from dialogkit.services.runs.prune import PruneResult, PruneRow
from dialogkit.services.runs.verdict import Behind, Differing, Verdict
from dialogkit.services.train import resume, train
from dialogkit.services.training.dry_run import DryRunResult
from dialogkit.services.training.result import TrainResult
from dialogkit.text import sanitize
from dialogkit.tracking.evaluation_files import best_evaluations, write_evaluation
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, Finished, typed

CONTROLS = "\x00\x07\x08\x0b\r\x1b\x7f\x80\x90\x9b\x9d"
MARKS = CONTROLS + "\u061c\u200b\u200f\u2028\u202a\u202e\u2066\u2069\ufeff\udc9b\U000e0041"
PIECES = [*MARKS, "[red]", "[/]", "[link=x]", "\x1b]0;owned\x07", "\x1b[2J", "é", "漢", "👋", "a", " ", "\n"]


def hostile(number: int, seed: int) -> list[str]:
    """Return texts made of control characters, marks and markup."""
    chance = random.Random(seed)
    return ["".join(chance.choices(PIECES, k=chance.randrange(1, 12))) for _ in range(number)]


def print_results(output: Output, text: str) -> None:
    """Print every result of a command in which the text stands wherever one can."""
    reply = ReplyResult(model=text, prompt=text, reply=text, tokens=1, seconds=1, stop_reason="length")
    output.result(reply, lambda out: out.reply(reply, prompt=True, model=reply.model), hint=text)
    replies = GenerateResult(replies=[reply, reply.model_copy(update={"model": f"b{text}"})])
    output.result(replies, lambda out: generate.render_replies(out, replies, streamed=False))
    run = RunRow(
        name=text, status=text, created=text, duration_s=1, model=text, preset=text, parameters=1, dataset=text,
        steps=1, total_steps=2, bits_per_byte=1, nats_per_token=1, reply_rate=1, stop_rate=1, tokens_per_s=1,
    )  # fmt: skip
    output.result([run], lambda out: runs.render_runs(out, [run]))
    output.result([], lambda out: runs.render_runs(out, [], none=text))
    figure = TaskFigure(name=text, filter=text, value=0.5, interval=None, better=1)
    task = TaskRow(name=text, version=text, questions=1, of_questions=1, examples=0, cut=0, figures=[figure])
    pruned = PruneRow(
        name=text, status=text, checkpoints_only=False, bytes=1, freed_bytes=1, deletes_model=True, foreign=[text]
    )
    freed = PruneResult(rows=[pruned], freed_bytes=1, pruned=False)
    output.result(freed, lambda out: prune.render_pruning(out, freed))
    differing = [Differing(name=text, values=[text, [text]])]
    behind = Behind(model=text, bits_per_byte=1, difference=1, interval=None, clear=None)
    verdict = Verdict(best=text, bits_per_byte=1, dialogs=1, behind=[behind], text=text)
    compared = Comparison(
        runs=[text, text], figures=differing, same_data=False, settings=differing, versions=differing,
        replies=[AnsweredPrompt(prompt=text, replies=[text, text])], evaluations=[], tasks=[[task], [task]],
        held_out=[HeldOut(dataset=text, dialogs=1), None], evaluated_on=[[HeldOut(dataset=text, dialogs=1)], []],
        evaluate=[text], verdict=verdict,
    )  # fmt: skip
    output.result(compared, lambda out: comparison_view.render_comparison(out, compared))
    model = ModelRow(
        name=text, description=text, kind="from scratch", size_class=text, parameters=1,
        parameters_without_embeddings=1, architecture=text, layers=1, width=1, heads=1, context=1, vocabulary=1,
        source=text, license=text, chat_format=text, trained=True, folder=text,
    )  # fmt: skip
    output.result(model, lambda out: models.render_model(out, model))
    output.result([model], lambda out: models.render_models(out, [model]))
    part = SliceRow(name=text, dialogs=1, bits_per_byte=1, interval=None)
    figures = {"nats_per_token": 1.0, "perplexity": 1.0, "bits_per_byte": 1.0, "accuracy": 1.0}
    row = EvaluateRow(
        model=text, dataset=text, dialogs=1, tokens=1, slices=[part], scarce={text: 1}, remarks=[text],
        worst=[WorstRow(bits_per_byte=1, prompt=text, answer=text)], **figures,
    )  # fmt: skip
    for anchors in ([], [row.model_copy(update={"anchor": "untrained"})]):
        judged = EvaluateResult(rows=[row, row.model_copy(update={"dataset": "b"})], anchors=anchors)
        request = EvaluateRequest(models=(text, None))
        table = partial(evaluation_view.render_evaluation, result=judged, request=request, slices=True, worst=1)
        output.result(judged, table)
    details = RunDetails(
        name=text, created=text, command=[text], environment={text: text, "git": {"commit": text, "branch": text}},
        config={text: text, "preset": text}, origins={text: text} if text else {},
        model={"name": text, "source": text},
        runtime={"device": text}, versions={text: text, "torch": text}, data={"dataset": text, "cut": text},
        wandb={"mode": text, "reason": text, "url": text}, error=text,
        answers=[AnsweredPrompt(prompt=text, replies=[text])],
        train_loss=[(1, 2.0), (2, 1.0)], held_out_loss=[(2, 1.5)],
        evaluations=[judged.model_copy(update={"rows": [row]})], tasks=[task],
    )  # fmt: skip
    for everything in (False, True):
        output.result(details, partial(render_run, shown=details, everything=everything))
    trained = TrainResult(
        run=text, run_dir=text, model_dir=text, published_dir=text, steps=1, duration_s=1,
        metrics={f"{when}/{name}": 1.0 for when in ("before", "final") for name in figures}
        | {"perf/tokens_per_s": 1.0},
        replies=[reply], kept_step=1, reply_rate=1, stop_rate=1, wandb_mode=text, wandb_dir=text, wandb_url=None,
        report=text,
    )  # fmt: skip
    output.result(trained, lambda out: train_view.render_training(out, trained))
    dry = DryRunResult(
        model=text, parameters=1, trainable_parameters=1, device=text, precision=text, train_dialogs=1,
        total_steps=1, tokens_per_step=1, longest_batch_tokens=1, tokens_per_s=1, peak_memory_bytes=1,
        expected_s=1, training_s=1, eval_nats_per_token=1, reply=text,
    )  # fmt: skip
    output.result(dry, lambda out: train_view.render_dry_run(out, dry))


@pytest.mark.parametrize("number", [pytest.param(5, id="some"), pytest.param(2000, marks=pytest.mark.faults)])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.timeout(900)
def test_no_text_steers_a_terminal(number: int, as_json: bool, capfd: pytest.CaptureFixture[str]) -> None:
    for text in hostile(number, seed=number):
        output = Output(json_mode=as_json)
        output.error(DialogKitError(text, hint=text, details=[text]))
        print_results(output, text)
        if not as_json:
            output.stream(text)
            output.hint(text)
            output.print(settings_table({text: text}))
            output.print(options_table([("name", [text], text)]))
            output.print(fitting(output.out, {"a": str, "b": str}, [text], right=(), dispensable=()))
            drawn = TrainOutput(output)
            drawn.header({"model": text})
            drawn.note(text)
            drawn.activity(text)
            output.print(untrusted(text))
            Output().text(sanitize(text))
        out, err = capfd.readouterr()
        found = [mark for mark in MARKS if mark in out + err]
        assert not found, (text, found)
        if as_json:
            error, reply, *_ = json.loads("[" + out.replace("}\n{", "},{") + "]")
            assert (error["error"]["message"], reply["data"]["reply"]) == (text, text)


def test_every_character_that_controls_or_reorders_is_made_visible() -> None:
    steering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "LRM", "RLM", "ALM"}
    for code in (code for code in range(0x110000) if chr(code) not in "\n\t"):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(
            character
        ) in steering - {"LRM", "RLM", "ALM"}:
            assert character not in sanitize(character), hex(code)


def test_a_warning_of_a_library_steers_no_terminal(tmp_path: Path) -> None:
    program = (
        "import logging, sys; from dialogkit.cli import app, data\n"
        "data_list = app.data_app.registered_commands[0]\n"
        "data_list.callback = lambda: logging.getLogger('x').warning('\\x1b[2J%s', '\\u202e')\n"
        "app.main(['data', 'list'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "\\x1b[2J\\u202e\n")


NAMES = [
    *("..", ".", "", "/etc/x", "../x", "a/b", "a\\b", "~", "-x", ".hidden", "con\x00", "a\nb", "x" * 300, "a b"),
    *("é/..", "..%2f", "$HOME", "`id`", "a;b", "*", "/", "//", "./x", "x/", "x/..", "a\tb", "\x1b[2J", "\u202e"),
    *("{model}", "~root", "a|b", "a&b", "'x'", '"x"', "a:b", "COM1 ", "a\r", "..\\x", "...", "\ufeffx", "a\x85"),
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
        done = dialogkit(*words, f"{name}") if not name.startswith("-") else dialogkit(*words, "--", name)
        assert done.code == 2


LINKED = [
    *("console.log", "metrics.jsonl", "samples.jsonl", "histograms.jsonl", "run.json", "model", ".lock"),
    *("model/model.safetensors", "model/README.md", "model/config.json", "evaluation", "tensorboard", "anything"),
    *("checkpoint-3", "checkpoint-9", "torn-checkpoint-4", ".old-checkpoint-2", "checkpoint-4/optimizer.pt"),
    *("checkpoint-4/manifest.json", "checkpoint-2/model.safetensors"),
]


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


@pytest.mark.parametrize("to_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_a_run_is_not_followed(name: str, to_folder: bool, stopped: RunDir) -> None:
    outside = Path("outside")
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    place = stopped.path / name
    place.parent.mkdir(exist_ok=True)
    if place.is_dir():
        place.rename(place.with_name("moved"))
    place.unlink(missing_ok=True)
    place.symlink_to((outside if to_folder else outside / "mine.txt").resolve())
    with pytest.raises(DialogKitError) as refused:
        resume(stopped)
    assert isinstance(refused.value, StorageError) or name == "run.json"
    with pytest.raises(DialogKitError):
        write_evaluation(stopped, "data", {}, worst=[], replies=[])
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("mine.txt", "mine")]


@pytest.mark.parametrize("name", ["custom_nano", ".custom_nano.new", ".custom_nano.old"])
def test_a_link_in_the_place_of_a_model_is_not_followed(name: str, small_config: Callable[..., Any]) -> None:
    outside = Path("outside")
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    Path("models").mkdir()
    Path("models", name).symlink_to(outside.resolve())
    with suppress(StorageError):
        train(small_config({"train.max_steps": 1, "train.eval_every_steps": 1}))
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("mine.txt", "mine")]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "samples.jsonl", "evaluation/a.json"])
def test_a_pipe_in_a_run_keeps_nobody_waiting(
    name: str, stopped: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    place = stopped.path / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    assert dialogkit("runs", "list").code == 0
    assert dialogkit("runs", "show", "stopped").code == (2 if name == "run.json" else 0)
    assert best_evaluations(stopped) == []


LINES = ["5", "null", "[]", "[" * 100_000, "{}", '{"step": "x"}', '{"step": 1, "eval/bits_per_byte": "x"}', "\x00"]


@pytest.mark.parametrize("number", [pytest.param(30, id="some"), pytest.param(500, marks=pytest.mark.faults)])
def test_a_record_that_was_changed_at_random_is_read_or_passed_over(
    number: int, stopped: RunDir, dialogkit: Callable[..., Finished]
) -> None:
    chance, content = random.Random(number), (stopped.path / "run.json").read_text()
    odd = [value for value in ODD if value != 10**400]
    for _ in range(number):
        record = json.loads(content)
        for _ in range(chance.randrange(1, 4)):
            section = chance.choice([record, record["config"], record["model"], record["data"], record["metrics"]])
            section[chance.choice([*section, "x"])] = chance.choice(odd)
            if not all(isinstance(record.get(name), dict) for name in ("config", "model", "data", "metrics")):
                break
        (stopped.path / "run.json").write_text(json.dumps(record))
        for name in ("metrics.jsonl", "samples.jsonl"):
            with (stopped.path / name).open("a") as file:
                file.write(chance.choice(LINES) + "\n")
        assert dialogkit("runs", "list").code == 0
        assert dialogkit("runs", "show", "stopped").code in (0, 2)


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
    commit(newest, progress)
    if name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with pytest.raises(ModelError, match="checkpoint-2 is not loaded: it contains pickled objects"):
            resume(stopped)
    else:  # not read at all; the scaler only in fp16, with weights alone
        assert resume(stopped) is not None
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

    monkeypatch.setattr("dialogkit.models.chat_template.TEMPLATE_SECONDS", 0.3)
    tokenizer = copy.deepcopy(small.tokenizer.hf)
    tokenizer.chat_template = TEMPLATES[kind]
    with pytest.raises(DialogKitError) as refused:
        with_format(tokenizer, ModelConfig(source="x"))
    assert isinstance(refused.value, DataError)
    assert typed(refused.value) == "--set model.chat_format=plain"


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    "",
    "x" * 5000,
    "\x00",
    [],
    [[]],
    {},
    {"a": {}},
    "NaN",
    1.5,
    [1] * 500,
]


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
