"""`data inspect` on the terminal: what is learned is seen with and without colours, and no text steers it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dialogkit.services.inspect import inspect_data
from tests.conftest import Finished
from tests.faults.test_hostile import MARKS, hostile

Run = Callable[..., Finished]


def write(rows: list[dict[str, str]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def hostile_rows(number: int) -> list[dict[str, str]]:
    texts = hostile(2 * number, seed=number)
    return [{"prompt": f"ask {n} {texts[n]}", "response": f"say {n} {texts[number + n]}"} for n in range(number)]


@pytest.mark.parametrize("width", [80, pytest.param(120, marks=pytest.mark.faults)])
def test_no_text_steers_the_terminal_or_leaves_its_width(
    width: int, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    endless = [
        {"prompt": "long", "response": "[red]x\x1b" * (2**20 // 7)},
        {"prompt": "y" * 2**20, "response": "z"},
    ]
    write([*hostile_rows(60), *endless, {"prompt": "wide", "response": "\u8702\u871c" * 60}])
    name = "a\x1b[31m\u202eb.jsonl"
    Path("rows.jsonl").rename(name)
    done = dialogkit("data", "inspect", name, "--show", "60")
    assert done.code == 0
    assert not [mark for mark in MARKS if mark in done.out + done.err]
    assert "[red]" in done.out
    assert "a\\x1b[31m\\u202eb.jsonl" in done.out
    wide = re.compile("[\u2e80-\uffdc\U0001f300-\U0001faff]")
    assert max(len(line) + len(wide.findall(line)) for line in done.out.splitlines()) <= width
    assert len(done.out) < 400_000


def test_the_json_is_the_result_and_holds_the_texts_as_they_are(dialogkit: Run) -> None:
    write(hostile_rows(60))
    done = dialogkit("data", "inspect", "rows.jsonl", "--show", "9", "--json")
    assert (done.code, done.err) == (0, "")
    assert not [mark for mark in MARKS if mark in done.out]
    assert done.json["data"] == inspect_data("rows.jsonl", show=9).model_dump(mode="json")
    assert done.json["hint"] == "dialogkit train custom-tiny --dataset rows.jsonl --epochs 19"


def tokens_of(lines: list[str]) -> list[tuple[bool, str]]:
    """Return whether a shown token is learned, and its text, for each token of the lines."""
    return [(line.startswith("+ "), text) for line in lines for text in line[2:].split("\u2502")[:-1]]


def test_without_colours_the_lines_show_what_is_learned(dialogkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = inspect_data(show=40)
    blocks = dialogkit("data", "inspect", "--show", "40").out.split("\n\n")[:40]
    assert any(len(dialog.tokens) > 100 for dialog in result.shown)
    for block, dialog in zip(blocks, result.shown, strict=True):
        title, *lines = block.splitlines()
        learned = sum(token.supervised for token in dialog.tokens)
        assert title == f"{dialog.place}: {len(dialog.tokens)} tokens, {learned} learned (the lines with +)"
        shown = [(token.supervised, token.text.replace("\n", "\u21b5").rstrip()) for token in dialog.tokens]
        assert [(mark, text.rstrip()) for mark, text in tokens_of(lines)] == shown


@pytest.mark.parametrize(("name", "where"), [("rows.jsonl", "line"), ("rows.json", "row")])
def test_the_place_of_a_dialog_is_reported_in_words(name: str, where: str, dialogkit: Run) -> None:
    rows = [{"prompt": f"ask {n}", "response": f"say {n} " * n} for n in range(1, 31)]
    ends = ("", "\n", "") if where == "line" else ("[", ",", "]")
    Path(name).write_text(ends[0] + ends[1].join(map(json.dumps, rows)) + ends[2])
    out = dialogkit("data", "inspect", name).out
    assert re.search(rf"^longest +[\d,]+ tokens +{where} 30 ask 30", out, re.MULTILINE)


def test_of_three_dialogs_it_is_said_what_that_means(dialogkit: Run) -> None:
    write([{"prompt": f"ask {n}", "response": f"say {n}"} for n in range(3)])
    out = " ".join(dialogkit("data", "inspect", "rows.jsonl").out.split())
    assert "only 3 dialogs: enough to" in out
    assert "only 1 dialog held out: metrics on so few say little" in out
    assert "Nothing to improve" not in out


def test_with_colours_the_same_is_shown_and_what_is_learned_is_green(
    dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = dialogkit("data", "inspect", "--show", "3")
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    coloured = dialogkit("data", "inspect", "--show", "3")
    without = re.sub(r"\x1b\[[\d;]*m", "", coloured.out)
    assert [line.rstrip() for line in without.splitlines()] == plain.out.splitlines()
    for token in inspect_data(show=1).shown[0].tokens:
        style = ("1;" if token.special else "") + ("32" if token.supervised else "35" if token.special else "")
        if style and token.text.strip():
            assert f"\x1b[{style}m{token.text.strip()}" in coloured.out.replace("m ", "m")


def test_where_there_is_no_unicode_the_marks_are_ascii(dialogkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.encoding", "ascii")
    write([{"prompt": f"ask {n}", "response": f"say {n}\nand more"} for n in range(30)])
    done = dialogkit("data", "inspect", "rows.jsonl", "--show", "1")
    assert done.code == 0
    assert done.out.isascii()
    assert "|\\n|" in done.out
    assert "####" in done.out


def test_the_next_command_trains_on_what_was_inspected(dialogkit: Run) -> None:
    write([{"prompt": f"ask {n}", "response": f"say {n}"} for n in range(30)])
    Path("rows.jsonl").rename("my rows.jsonl")
    words = ["my rows.jsonl", "--model", "custom-nano", "--samples", "9", "--set", "data.max_tokens=64"]
    done = dialogkit("data", "inspect", *words)
    assert done.err == (
        "next: dialogkit train custom-nano --dataset 'my rows.jsonl' --samples 9 --set data.max_tokens=64 "
        "--epochs 30\n"
    )
