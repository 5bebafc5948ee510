"""Held-out questions whose answers the dataset can check: asked, counted, and shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.inference import evaluate
from dialogkit.cli.evaluation_view import render_evaluation
from dialogkit.cli.output import Output
from dialogkit.config.data import DataConfig
from dialogkit.config.load import load_run_config
from dialogkit.config.model import ModelConfig
from dialogkit.data.prepare import prepare_data
from dialogkit.dialog import Message
from dialogkit.inference.intervals import wilson
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer
from dialogkit.services.evaluate import EvaluateRequest, EvaluateResult
from dialogkit.services.evaluation.questions import choose_questions, mark, right_rows
from dialogkit.services.train import train
from dialogkit.services.training.result import TrainResult
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import TINY

THINGS = ("apple", "bear", "chair", "door", "eagle", "flower", "garden", "house", "island", "jacket")
WORDS = ("red", "brown", "wooden", "open", "fast", "yellow", "green", "old", "far", "warm")
NEW = ("phrasing", "pair")


def write(path: str, *, wrong: bool = False, held_out: bool) -> None:
    """Write two questions about each of ten things, with checks, and some dialogs for the other set.

    Args:
        path: the file.
        wrong: whether the checks of every other thing ask for what is wrong.
        held_out: whether the questions are held out, or to train on.
    """
    rows: list[dict[str, Any]] = []
    for kind, asked in enumerate(("What is the {}?", "Tell me of the {}.")):
        for number, thing in enumerate(THINGS):
            rows.append(
                {
                    "messages": [
                        {"role": "user", "content": asked.format(thing)},
                        {"role": "assistant", "content": f"It is {WORDS[number]}."},
                    ],
                    "check": [WORDS[number - number % 2 if wrong else number]],
                    "topic": f"{('good', 'bad')[number % 2]} things",
                    "new": NEW[kind],
                    "split": "test" if held_out else "train",
                }
            )
    others = [{**row, "messages": [{"role": "system", "content": "Be short."}, *row["messages"]]} for row in rows]
    rows += [{**row, "split": "train" if held_out else "test"} for row in others[:12]]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(**more: Any) -> dict[str, Any]:
    return {
        **TINY,
        "data.dataset": "known.jsonl",
        "data.samples": None,
        "train.max_steps": 100,
        "train.batch_size": 10,
        "train.learning_rate": 1e-2,
        "train.eval_every_steps": 50,
        "train.keep": "last",
        "runtime.device": "cpu",
        "tracking.wandb": "disabled",
        "tracking.histogram_every_steps": 0,
        "generate.test_prompts": ["Hello!"],
        **more,
    }


class Taught:
    """A model that has memorised twenty answers, and its evaluations."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            write("known.jsonl", held_out=False)
            write("asked.jsonl", held_out=True, wrong=True)
            self.folder = folder
            self.result: TrainResult = train(load_run_config("custom-nano", overrides=settings(name="taught")))
            self.evaluated: EvaluateResult = evaluate("taught", dataset="asked.jsonl", device="cpu")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, isolated_home: Path) -> Taught:
    return Taught(tmp_path_factory.mktemp("taught"))


def test_what_is_known_by_heart_is_right_where_the_check_is(taught: Taught) -> None:
    (row,) = taught.evaluated.rows
    assert (row.questions, row.right_answers, len(row.wrong)) == (20, 0.5, 10)
    assert row.intervals["right_answers"] == wilson(0.5, 20)
    assert {part.name: part.right / part.questions for part in row.right_by_topic} == {
        "good things": 1.0,
        "bad things": 0.0,
    }
    assert [part.name for part in row.right_by_new] == sorted(NEW)
    for parts in (row.right_by_topic, row.right_by_new):
        assert (sum(part.questions for part in parts), sum(part.right for part in parts)) == (20, 10)
    for wrong in row.wrong:
        assert wrong.reply == wrong.answer
        assert (wrong.topic, str(wrong.check) in wrong.reply) == ("bad things", False)
    of_answers = next(anchor for anchor in taught.evaluated.anchors if anchor.anchor == "answers")
    assert of_answers.right_answers == 0.5
    fault = "answers 50% of 20 checked questions right, fewest of bad things (0 of 10), good things (10 of 10)"
    assert any(remark.startswith(fault) for remark in row.remarks)
    assert "wrong answers" in row.checks


def test_an_evaluation_is_kept_with_what_was_wrong(taught: Taught) -> None:
    (kept,) = taught.evaluated.kept
    stored = json.loads((taught.folder / kept.figures).read_text())
    assert (stored["right_answers"], len(stored["wrong"])) == (0.5, 10)


def test_a_few_wrong_answers_are_shown_and_the_topics(taught: Taught, capfd: pytest.CaptureFixture[str]) -> None:
    request = EvaluateRequest(models=("taught",))
    render_evaluation(Output(), taught.evaluated, request)
    shown = capfd.readouterr().out
    assert re.search(r"right answers +50\.0% \[", shown)
    assert shown.count("taught, wrong answer ") == 3
    assert "bad things " not in shown.replace("bad things (", "")
    render_evaluation(Output(), taught.evaluated, request, slices=True, worst=5)
    shown = capfd.readouterr().out
    assert "taught, wrong answer 5 of 10" in shown
    assert re.search(r"^new phrasing +10 +50% +24% - 76%$", shown, re.MULTILINE)
    assert re.search(r"^bad things +10 +0% ", shown, re.MULTILINE)


def test_a_run_measures_its_right_answers_and_shows_them(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(taught.folder / taught.result.run_dir)
    points = {p["step"]: p["eval/right_answers"] for p in run.metrics() if "eval/right_answers" in p}
    assert sorted(points) == [0, 50, 100]
    assert points[0] == 0.0 == taught.result.metrics["before/right_answers"]
    assert taught.result.metrics["final/right_answers"] == points[100] > 0.5
    monkeypatch.chdir(taught.folder)
    assert evaluate("taught", device="cpu").rows[0].right_answers == points[100]
    assert "final/right_answers" in run.read().intervals
    assert re.search(r"step 100/100 .* right answers \d", (run.path / "console.log").read_text())
    assert "| right answers | 0.0% |" in (Path(taught.folder / taught.result.model_dir) / "README.md").read_text()
    assert "Right answers" in (run.path / "report.html").read_text()


@pytest.mark.faults
def test_asking_does_not_change_what_is_learned(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws random numbers at each step: replies in between must draw none of them."""
    monkeypatch.chdir(taught.folder)
    made = {}
    for replies in (0, 3):
        short = {"train.max_steps": 4, "train.eval_every_steps": 1, "train.dropout": 0.1}
        config = settings(**short, name=f"asks-{replies}", **{"tracking.replies_at_evaluations": replies})
        result = train(load_run_config("custom-nano", overrides=config))
        made[replies] = (Path(result.model_dir) / "model.safetensors").read_bytes()
        assert ("final/right_answers" in result.metrics) is bool(replies)
    assert made[0] == made[3]


@pytest.fixture(scope="module")
def tokenizer(isolated_home: Path) -> ChatTokenizer:
    shape = {name.removeprefix("model."): value for name, value in TINY.items() if name.startswith("model.")}
    return load_tokenizer(ModelConfig(**shape))


def test_questions_are_of_each_topic_in_turn_and_prompts_those_of_a_chat(tokenizer: ChatTokenizer) -> None:
    write("asked.jsonl", held_out=True)
    rows = [json.loads(line) for line in Path("asked.jsonl").read_text().splitlines()]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Is the sky blue?"},
        {"role": "assistant", "content": "Yes."},
    ]
    rows.append({"messages": turns, "check": [None, "yes"], "split": "test", "topic": "sky"})
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare_data(DataConfig(dataset="asked.jsonl"), tokenizer, context=256, cache=Path("cache"))
    chosen = choose_questions(data.evaluation, data.checked, tokenizer, 6)
    assert sorted(question.topic for question in chosen[:3]) == ["bad things", "good things", "sky"]
    assert len(chosen) == 6
    (sky,) = (question for question in chosen if question.topic == "sky")
    assert sky.prompt_ids == tokenizer.encode_prompt([Message(**turn) for turn in turns[:-1]])
    assert (sky.text, sky.answer) == ("(system: Be short.) Hello! / Hi. / Is the sky blue?", "Yes.")
    assert len(choose_questions(data.evaluation, data.checked, tokenizer)) == 21
    # Of a dialog that is cut before its checked answer, nothing can be asked.
    short = prepare_data(DataConfig(dataset="asked.jsonl"), tokenizer, context=24, cache=Path("cache"))
    assert "sky" not in {
        question.topic for question in choose_questions(short.evaluation, short.checked, tokenizer)
    }


def test_questions_without_a_topic_are_of_no_kind(tokenizer: ChatTokenizer) -> None:
    write("asked.jsonl", held_out=True)
    data = prepare_data(DataConfig(dataset="asked.jsonl"), tokenizer, context=256, cache=Path("cache"))
    questions = choose_questions(data.evaluation, data.checked, tokenizer)
    marked = mark(questions, [questions[0].answer] * len(questions))
    assert 1 <= sum(one.is_right for one in marked) <= 2
    assert right_rows(marked, lambda question: "") == []
