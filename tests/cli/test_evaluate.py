"""What `evaluate` prints says what was measured of which model, and what its figures are worth."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dialogkit.cli.evaluation_view import next_command, render_evaluation, size_notes
from dialogkit.cli.hints import render
from dialogkit.cli.output import Output
from dialogkit.hints import Call
from dialogkit.services.evaluate import EvaluateRequest, EvaluateResult, EvaluateRow
from dialogkit.services.evaluation.store import KeptRow
from dialogkit.services.runs.verdict import Contender, judge
from tests.conftest import Finished

FIGURES: dict[str, Any] = {
    "nats_per_token": 8.0,
    "perplexity": 2980.958,
    "bits_per_byte": 2.75,
    "accuracy": 0.125,
    "prompt_gain": 0.01,
    "stop_rate": 0.5,
    "intervals": {
        "nats_per_token": (7.0, 9.0),
        "perplexity": (1096.633, 8103.084),
        "bits_per_byte": (2.5, 3.0),
        "accuracy": (0.0625, 0.25),
    },
}


def row(model: str, **changed: Any) -> EvaluateRow:
    facts = {"dataset": "starter", "dialogs": 15, "held_out": 15, "of_dialogs": 314, "tokens": 484}
    return EvaluateRow.model_validate({"model": model, **facts, **FIGURES, **changed})


def anchors(model: str, unigram: float = 3.25) -> list[EvaluateRow]:
    return [
        row(model, anchor="untrained", bits_per_byte=3.75 + ord(model[-1]) / 1000),
        row(model, anchor="unigram", bits_per_byte=unigram, stop_rate=None, accuracy=None),
        row(model, anchor="answers", bits_per_byte=None, chrf=100.0, stop_rate=1.0),
    ]


def drawn(
    capfd: pytest.CaptureFixture[str], result: EvaluateResult, asked: EvaluateRequest | None = None, **shown: Any
) -> tuple[str, str]:
    asked = asked or EvaluateRequest(models=(None,) * len(result.rows))
    render_evaluation(Output(), result, asked, **shown)
    said = capfd.readouterr()
    return said.out, said.err


def test_of_one_model_the_baselines_need_no_owner(capfd: pytest.CaptureFixture[str]) -> None:
    checked = row("a", checks=["memorised", "no end"])
    result = EvaluateResult(rows=[checked], anchors=[row("what is no anchor"), *anchors("a")])
    out, err = drawn(capfd, result, EvaluateRequest(models=("custom-nano",)))
    assert out.startswith("a (custom-nano) on starter, 15 held-out dialogs\n")
    assert re.search(r"^95% interval in brackets +a +untrained +unigram +true answers$", out, re.MULTILINE)
    assert re.search(
        r"^How well it predicts\n\S loss .*\n\S perplexity +2,981 \[1,097, 8,103\] ", out, re.MULTILINE
    )
    assert out.index("bits/byte") < out.index("Whether it listens") < out.index("prompt gain")
    none = "a: none of the checks made (memorised, no end) found a fault; whether what it says is true is not"
    assert none in " ".join(out.split())
    assert "dialogkit evaluate --help explains the metrics" in err
    assert "a: not from a run folder, so nothing was saved" in err


@pytest.mark.parametrize("width", [80, 120])
def test_of_several_models_each_baseline_says_whose_it_is(
    width: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["the-first-of-all-runs-a", "the-second-of-all-runs-b"]
    shared = EvaluateResult(rows=list(map(row, names)), anchors=[*anchors(names[0]), *anchors(names[1])])
    out, _ = drawn(capfd, shared)
    assert out.splitlines()[:3] == [f"A  {names[0]}", f"B  {names[1]}", "on starter, 15 held-out dialogs"]
    lines = out.splitlines()
    heads = [
        lines[n - 1].removeprefix("95% interval in brackets") for n, line in enumerate(lines) if line[:3] == "How"
    ]
    found = [title for head in heads for title in re.split("  +", head.strip())]
    assert [title for title in found if title in TITLES] == TITLES
    assert sum("untrained" in line for line in lines) == (1 if width == 120 else 2)
    assert max(map(len, out.splitlines())) <= width
    apart = shared.model_copy(update={"anchors": [*anchors(names[0]), *anchors(names[1], 3.5)]})
    out, _ = drawn(capfd, apart)
    assert out.count("unigram") == 2
    assert re.search(r"answers$", out, re.MULTILINE)  # which are everybody's, and the last
    assert sorted(re.findall(r"of [AB]", out)) == ["of A", "of A", "of B", "of B"]
    assert out.count("answers") == 1


def test_a_console_that_knows_no_arrows_is_given_signs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "encoding", "ascii")
    out, err = drawn(capfd, EvaluateResult(rows=[row("a")], anchors=anchors("a")))
    assert re.search(r"^- bits/byte .*\n\+ token accuracy ", out, re.MULTILINE)
    assert "+ higher is better, - lower is" in err


TITLES = ["A", "of A", "B", "of B", "unigram", "true answers"]
FEW = {"dataset": "my-dialogs.json", "dialogs": 1, "held_out": 1, "of_dialogs": 3, "intervals": {}}


@pytest.mark.parametrize(
    ("facts", "asked", "said", "command"),
    [
        ({}, EvaluateRequest(), "", None),
        (
            FEW,
            EvaluateRequest(models=("a",), dataset="my-dialogs.json", samples=40),
            "a: 40 dialogs were asked for, and 1 is held out; --whole takes all 3. "
            "a: results on only 1 dialog say little about a model, and have no intervals.",
            "dialogkit evaluate a --dataset my-dialogs.json --whole",
        ),
        (
            {"dialogs": 2},
            EvaluateRequest(samples=2),
            "a: results on only 2 dialogs say little about a model, and their intervals are too narrow.",
            "dialogkit evaluate a",
        ),
        (
            {"dialogs": 5, "held_out": 5, "of_dialogs": 40},
            EvaluateRequest(output=Path("there")),
            "a: results on only 5 dialogs say little about a model, and their intervals are too narrow; --whole "
            "takes all 40.",
            "dialogkit evaluate a --whole --output-dir there",
        ),
        (
            {"dialogs": 5, "held_out": 5, "of_dialogs": 40, "own_data": True},
            EvaluateRequest(),
            "a: results on only 5 dialogs say little about a model, and their intervals are too narrow; it can be "
            "tested on another file (--dataset FILE), or trained with more held out (train --set "
            "data.eval_fraction=0.5).",
            None,
        ),
        (
            {"dialogs": 3, "held_out": 1, "of_dialogs": 3},
            EvaluateRequest(dataset="d", samples=9, whole=True),
            "a: 9 dialogs were asked for, and 3 are there. "
            "a: results on only 3 dialogs say little about a model, and their intervals are too narrow.",
            None,
        ),
        ({}, EvaluateRequest(samples=15), "", None),
        (
            {"known_prompts": 0, "known_answers": 14},
            EvaluateRequest(),
            "a: of 15 dialogs, training contains the answer of 14: the metrics say less about new questions.",
            None,
        ),
        (
            {"own_data": True, "of_dialogs": 24, "held_out": 15},
            EvaluateRequest(samples=20),
            "a: 20 dialogs were asked for, and 15 are held out; it can be tested on another file "
            "(--dataset FILE).",
            None,
        ),
    ],
)
def test_too_few_dialogs_are_reported_with_the_command_that_takes_more(
    facts: dict[str, Any],
    asked: EvaluateRequest,
    said: str,
    command: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = EvaluateResult(rows=[row("a", remarks=["says nothing"], **facts)], anchors=anchors("a"))
    out, _ = drawn(capfd, result, asked)
    assert " ".join(size_notes(result.rows[0], asked)) == said
    assert said in " ".join(out.split())
    assert ("interval in brackets" in out) == (facts.get("intervals") != {})
    assert render(next_command(result, asked)) == command


def test_what_is_kept_is_reported_with_the_next_command(capfd: pytest.CaptureFixture[str]) -> None:
    files = {"figures": "m/x.json", "replies": "m/x-replies.jsonl", "worst": "m/x-worst.jsonl"}
    kept = KeptRow(run="a", **files, shown_dialogs=15)
    result = EvaluateResult(rows=[row("a")], anchors=anchors("a"), kept=[kept])
    _, err = drawn(capfd, result)
    assert "saved: m/x.json, -replies.jsonl, -worst.jsonl\n" in err
    assert render(next_command(result, EvaluateRequest())) == "dialogkit runs report a"
    both = result.model_copy(update={"kept": [kept, kept.model_copy(update={"run": "b"})]})
    assert (
        render(next_command(both, EvaluateRequest(output=Path("x"))))
        == "dialogkit runs compare a b --output-dir x"
    )
    less = result.model_copy(update={"kept": [kept.model_copy(update={"shown_dialogs": 40})]})
    assert "; `runs` and the page still show that on 40 dialogs\n" in drawn(capfd, less)[1]


def test_long_texts_of_the_worst_dialogs_are_cut(capfd: pytest.CaptureFixture[str]) -> None:
    worst = [{"bits_per_byte": 9.5, "prompt": "\x1b[31mWhy?", "answer": "x" * 900, "reply": "No.\x07"}]
    result = EvaluateResult(rows=[row("a", worst=worst)], anchors=anchors("a"))
    out, _ = drawn(capfd, result, worst=3)
    assert "a, worst 1: 9.50 bits/byte for the true answer\n> \\x1b[31mWhy?\n" in out
    assert out.count("x" * 50) >= 8
    assert "(100 more characters)" in " ".join(out.split())
    assert re.search(r"^its reply +No\.\\x07$", out, re.MULTILINE)


def test_models_on_different_data_are_reported_separately_with_the_command_that_compares_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    verdict = judge([Contender("a", 1.0), Contender("b", 2.0)], dialogs=None)
    again = Call("evaluate", "a", "b", dataset="my dialogs.jsonl")
    rows = [row("a", dialogs=5), row("b", dataset="mine")]
    result = EvaluateResult(rows=rows, verdict=verdict, same_dialogs=again)
    out, _ = drawn(capfd, result)
    assert "a and b cannot be compared: they were not evaluated on the same dialogs.\n" in out
    command = render(next_command(result, EvaluateRequest()))
    assert command == "dialogkit evaluate a b --dataset 'my dialogs.jsonl'"


@pytest.mark.parametrize("option", ["--slices", "--worst=3"])
def test_quick_measures_nothing_that_these_could_show(option: str, dialogkit: Callable[..., Finished]) -> None:
    done = dialogkit("evaluate", "--quick", option)
    assert (done.code, done.out) == (2, "")
    assert f"{option.partition('=')[0]} shows what --quick does not measure" in done.err


def test_in_a_terminal_the_text_beside_the_bar_is_of_one_width(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    output.err = Console(stderr=True, force_terminal=True, width=60, color_system=None)
    with output.progress() as reported:
        for what, share in (("short", 0.0), ("something much longer than there is room for it", 0.5)):
            reported(what, share)
            time.sleep(0.4)  # it is drawn four times a second
    frames = re.split(r"\x1b\[2K|\r|\n", capfd.readouterr().err)
    (before,) = {frame.index("short") for frame in frames if "short" in frame}
    (after,) = {frame.index("something") for frame in frames if "something" in frame}
    assert before == after
    assert max(map(len, frames)) <= 60
