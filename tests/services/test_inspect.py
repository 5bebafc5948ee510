"""What `data inspect` reports about a dataset is what training makes of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest

from dialogkit.config.load import load_run_config, parse_sets
from dialogkit.config.paths import cache_dir
from dialogkit.data.prepare import PreparedData, prepare_data
from dialogkit.data.split import hash_dialog, split_by_hash
from dialogkit.dialog import Message
from dialogkit.errors import DataError, DialogKitError
from dialogkit.hints import Call, Change, Either, Hint
from dialogkit.models.tokenizer import load_tokenizer, train_tokenizer
from dialogkit.services.inspect import InspectResult, inspect_data
from tests.conftest import Trained, typed

Row = dict[str, Any]


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a model of 100 tokens whose tokens are single bytes: lengths can be counted by hand."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["x"], vocabulary=262, output=folder)
    return {"model.tokenizer": str(folder), "model.context": 100}


def row(*turns: str, system: str | None = None) -> Row:
    roles = ("user", "assistant") * len(turns)
    opening = [{"role": "system", "content": system}] if system is not None else []
    return {"messages": [*opening, *({"role": r, "content": c} for r, c in zip(roles, turns, strict=False))]}


def numbered(count: int, start: int = 0) -> list[Row]:
    """Return dialogs that have no three words in common."""
    return [row(f"ask{n} b{n} c{n} d{n}", f"say{n} f{n} g{n} h{n}") for n in range(start, start + count)]


def write(rows: list[Row], path: str = "rows.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def tokens_of(r: Row) -> int:
    """Return the tokens of a row where each is a byte: one opens a turn and one ends it."""
    return sum(len(turn["content"].encode()) + 2 for turn in r["messages"])


def dialog_of(r: Row) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in r["messages"])


def prepared(dataset: str, **overrides: Any) -> PreparedData:
    config = load_run_config("custom-tiny", overrides={"data.samples": None, "data.dataset": dataset, **overrides})
    context = config.model.context or 0
    return prepare_data(config.data, load_tokenizer(config.model), context=context, cache=cache_dir())


def test_every_figure_of_a_file_made_by_hand_is_known(by_bytes: dict[str, Any]) -> None:
    long = row("a" * 10, "b" * 200)
    near = [
        row("one two three four five six seven eight", "nine ten eleven twelve" + end) for end in ("", " more")
    ]
    rows = [
        *numbered(20),
        row("\u0434\u0430", "\u043d\u0435\u0442"),  # five letters
        row("Hi", "Hello!", "And?", "Bye!", system="Be brief."),
        *[row("What do bees make?", "Honey.")] * 3,
        *near,
        long,
        row("c" * 120, "never seen"),
        row("no answer", ""),
        {"messages": "no list"},
        row("look\x1b[2J", "here"),
    ]
    result = inspect_data(write(rows), overrides=by_bytes)
    assert (result.dataset, result.format, result.context, result.limit) == ("rows.jsonl", "messages", 100, 100)
    figures = (result.rows, result.kept, result.cut, result.dropped, result.unusable)
    assert figures == (32, 29, 1, 1, 2)
    assert result.unusable_rows == [
        "rows.jsonl:30: message 2 (assistant) is empty",
        "rows.jsonl:31: messages is text, not a list",
    ]
    used = [r for number, r in enumerate(rows) if number not in (28, 29, 30)]
    lengths = [tokens_of(r) for r in used]
    assert result.train.dialogs + result.held_out.dialogs == 29
    assert result.train.tokens + result.held_out.tokens == sum(min(n, 100) for n in lengths)
    answers = [
        sum(len(t["content"].encode()) + 1 for t in r["messages"] if t["role"] == "assistant") for r in used
    ]
    # Of the answer that is cut, what lies within 100 tokens: no end of turn.
    learned = sum(answers) - 201 + 100 - (10 + 2 + 1)
    assert result.train.supervised_tokens + result.held_out.supervised_tokens == learned
    assert result.supervised_share == learned / sum(min(n, 100) for n in lengths)
    assert result.cut_share == 1 / 29
    assert (result.turns, result.system_prompts) == ({2: 28, 4: 1}, 1)
    letters = "".join(t["content"] for r in used for t in r["messages"])
    count = sum(character.isalpha() for character in letters)
    assert result.scripts == pytest.approx({"Latin": (count - 5) / count, "Cyrillic": 5 / count})
    assert result.lengths.longest == tokens_of(long) == 214
    assert (result.lengths.median, result.lengths.percentile_95) == tuple(np.percentile(lengths, [50, 95]))
    assert [(b.high, b.cut) for b in result.lengths.histogram] == [
        (16, False), (32, False), (64, False), (100, False), (128, True), (214, True)
    ]  # fmt: skip
    assert sum(b.dialogs for b in result.lengths.histogram) == 29
    assert (result.copies.exact, result.copies.near, result.copies.near_groups) == (2, 2, 1)
    assert [(e.value, e.place, e.beginning) for e in result.most_copied] == [
        (3, "rows.jsonl:23", "What do bees make?\nHoney.")
    ]
    (pair,) = result.near_pairs
    assert (pair.similarity, pair.places) == (10 / 11, ("rows.jsonl:26", "rows.jsonl:27"))
    assert (result.broken, result.broken_places) == (1, ["rows.jsonl:32"])
    assert (result.longest[0].value, result.longest[0].place) == (214, "rows.jsonl:28")
    assert result.most_repetitive == []
    # All tokens but the special ones are bytes; that of the end that was cut away counts as one of text.
    text = sum(len(t["content"].encode()) for r in used for t in r["messages"])
    assert result.bytes_per_token == text / (text + 1)


def test_what_is_oddest_and_what_repeats_itself_most_is_found(by_bytes: dict[str, Any]) -> None:
    odd = row("Which letters are these?", "\u0416\u0416\u042f\u042f \u03a9\u03a9\u03a8 \u05d0\u05d1 \u4f60\u597d")
    loop = row("Count", "and one and " * 40)
    others = [
        row(
            "Tell me something long",
            " ".join(
                f"{n}{word}" for word in ("lorem", "ipsum", "dolor", "sit", "amet") for n in range(k, k + 12)
            ),
        )
        for k in range(20)
    ]
    result = inspect_data(write([*others, odd, loop]), overrides=by_bytes)
    assert result.oddest[0].place == "rows.jsonl:21"
    assert result.most_repetitive[0].place == "rows.jsonl:22"
    assert 0 < result.most_repetitive[0].value < 0.1
    assert result.oddest[0].value > result.oddest[1].value > 0


def test_overlap_is_counted_between_the_sets_of_a_run(by_bytes: dict[str, Any]) -> None:
    prompts = [row("the very same prompt", f"reply{n} k{n} l{n}") for n in range(10)]
    answers = [row(f"ask{n} x{n} y{n} z{n}", "the very same answer") for n in range(10)]
    words = " ".join(f"w{n}" for n in range(40))
    near = [row(f"{number}", words) for number in range(10)]
    rows = [*numbered(30), *prompts, *answers, *near]
    settings = {**by_bytes, "data.eval_fraction": 0.4, "model.context": 512}
    result = inspect_data(write(rows), overrides=settings)
    hashes = np.array([hash_dialog(dialog_of(r)) for r in rows], dtype=np.uint64)
    train, held_out = split_by_hash(hashes, 0.4, 8, 1000)
    groups = [range(30, 40), range(40, 50), range(50, 60)]
    in_train = [set(train.tolist()) & set(group) for group in groups]
    expected = [len(set(held_out.tolist()) & set(group)) for group in groups]
    assert all(in_train)
    assert min(expected) > 0
    overlap = result.overlap
    assert (overlap.prompt, overlap.near) == (expected[0], expected[2])
    assert overlap.answer == expected[1] + expected[2]
    assert (result.train.dialogs, result.held_out.dialogs) == (len(train), len(held_out))
    none = inspect_data(write(numbered(60)), overrides=settings).overlap
    assert (none.prompt, none.answer, none.near) == (0, 0, 0)


def test_samples_are_those_of_a_run(by_bytes: dict[str, Any]) -> None:
    path = write(numbered(60))
    result = inspect_data(path, samples=7, show=50, overrides=by_bytes)
    data = prepared(path, **by_bytes, **{"data.samples": 7})
    assert (result.train.dialogs, result.held_out.dialogs, result.rows, result.kept) == (7, 8, 60, 60)
    assert result.train.tokens == int(data.train.lengths.sum())
    assert len(result.shown) == 7
    assert sum(result.turns.values()) == 15


def shown_and_trained(result: InspectResult, data: PreparedData) -> None:
    assert len(result.shown) == len(data.train)
    for number, shown in enumerate(result.shown):
        trained = data.train[number]
        assert [token.id for token in shown.tokens] == trained["input_ids"].tolist()
        assert [token.supervised for token in shown.tokens] == trained["supervised"].tolist()


def test_what_is_shown_is_what_is_trained(by_bytes: dict[str, Any]) -> None:
    long = row("first", "short", "then", "d" * 300)
    rows = [*numbered(12), row("say <|end_of_turn|>", "no"), long, row("Hi", "Ho", system="You are brief.")]
    path = write(rows)
    result = inspect_data(path, show=100, overrides=by_bytes)
    shown_and_trained(result, prepared(path, **by_bytes))
    for shown in result.shown:
        number = int(shown.place.rpartition(":")[2])
        turns = [turn["content"] for turn in rows[number - 1]["messages"]][: 2 if number == 14 else None]
        assert "".join("" if token.special else token.text for token in shown.tokens) == "".join(turns)
        answers = [token.text for token in shown.tokens if token.supervised]
        assert "".join(answers).split("<|end_of_turn|>")[:-1] == turns[(number == 15) + 1 :: 2]
    shipped = inspect_data(show=1000)
    shown_and_trained(shipped, prepared("starter"))


def test_a_model_gives_its_own_tokenizer_and_context(trained: Trained) -> None:
    folder = trained.result.published_dir
    result = inspect_data(model=folder, show=1)
    assert (result.context, result.limit) == (256, 256)
    assert inspect_data(model=folder, show=1, overrides={"data.max_tokens": 64}).limit == 64
    record = json.loads((Path(trained.result.run_dir) / "run.json").read_text())["data"]
    names = ("rows", "kept", "cut", "dropped", "unusable", "format", "revision", "license")
    assert {name: getattr(result, name) for name in names} == {name: record[name] for name in names}
    few = inspect_data(model=folder, samples=record["train_dialogs"])
    assert few.train.supervised_tokens == record["train_supervised_tokens"]
    assert few.held_out.supervised_tokens == record["eval_supervised_tokens"]


LONG = " ".join(ascii_lowercase)
TWO = ("few", "few of which many are held out", "near templates", "very few")
"""Those with two remarks."""
DEFECTS: dict[str, tuple[list[Row], str]] = {
    "nothing": (numbered(100), "^$"),
    "unusable": ([*numbered(100), row("a", "")], "without a usable dialog, left out"),
    "dropped": ([*numbered(100), row("c" * 150, "never seen")], "without supervision, left out"),
    "cut": ([*numbered(100), *(row(f"ask{n}", f"{n} " * 100) for n in range(5))], "are cut at 100 tokens"),
    "copies": ([*numbered(100), *numbered(9)], "^9 exact duplicates"),
    "near": (
        [*numbered(100), *(row(f"ask{n}", " ".join(f"w{i}" for i in range(15))) for n in range(3))],
        "^3 dialogs are near duplicates, in 1 group: keeping one of each group removes 2 ",
    ),
    "prompts": (
        [*numbered(100), *(row("same prompt", f"a{n} b{n} c{n}") for n in range(40))],
        r"^of \d+ held-out dialogs, training knows \d+ by the prompt: ",
    ),
    "few learned": ([row("a", f"{n}", system=f"{n}" + "s" * 70) for n in range(100, 200)], "tokens are learned"),
    "templates": (
        [*numbered(100), *(row(f"How much is {n} and {n}?", f"c{n} d{n} e{n}") for n in range(100))],
        "differ from a training prompt only in names or numbers: ",
    ),
    "columns": ([{**r, "lang": "en"} for r in numbered(100)], "^columns not used: lang$"),
    "repaired": (
        [*numbered(100), {"messages": [*row("a", "b")["messages"], *row("c")["messages"]]}],
        "^1 dialog: messages after the last answer left out$",
    ),
    "few steps": (numbered(100), "^one pass is only 12 steps, too few to learn from: 25 passes make 300$"),
    "broken": ([*numbered(100), row("a\x07b", "c")], "the first at rows.jsonl:101: "),
    "few": (
        numbered(20),
        "^only 20 dialogs: enough to try everything out|^10 of only 20 dialogs are held out",
    ),
    "few of which many are held out": (
        numbered(12),
        "^only 12 dialogs: enough to try|^6 of only 12 dialogs are held out .* But metrics on so few",
    ),
    "marked": (
        [*numbered(100), *({**r, "label": False} for r in numbered(5, 100))],
        r"^5 rows \(4.8%\) without a usable dialog, left out; the first: rows.jsonl:101: marked as bad by ",
    ),
    "near templates": (
        [*numbered(100), *(row(f"{LONG} What is {n}?", "This.") for n in range(100))],
        r"^\d+ dialogs are near duplicates|knows \d+ as near duplicates and \d+ but for names or numbers: ",
    ),
    "very few": (numbered(3), "^only 3 dialogs: enough to try everything out|^only 1 dialog held out: "),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_reported_and_nothing_else(defect: str, by_bytes: dict[str, Any]) -> None:
    rows, reported = DEFECTS[defect]
    steps = {"train.batch_size": 8} if defect == "few steps" else {"train.max_steps": 1000}
    remarks = inspect_data(write(rows), overrides={**by_bytes, **steps, "data.eval_min_dialogs": 10}).remarks
    of_bytes = [remark for remark in remarks if remark.startswith("a token covers only 1.0 bytes")]
    others = [remark for remark in remarks if remark not in of_bytes]
    assert len(of_bytes) == 1
    number = {"nothing": 0, **dict.fromkeys(TWO, 2)}.get(defect, 1)
    assert [bool(re.search(reported, remark)) for remark in others] == [True] * number


def test_checks_are_counted_and_those_that_say_little_are_reported(by_bytes: dict[str, Any]) -> None:
    rows = [{**numbered(1, n)[0], "check": f"say{n}"} for n in range(120)]
    rows[3]["check"] = [{"pattern": "^no$"}]
    rows[5]["check"] = rows[6]["check"] = {"pattern": r"\w"}
    del rows[9]["check"]
    result = inspect_data(write(rows), overrides=by_bytes)
    checked = result.checked
    assert (checked.answers, checked.tried, checked.echoed, checked.failed) == (119, 119, 2, 1)
    assert checked.failed_places == ["rows.jsonl:4"]
    assert [remark for remark in result.remarks if "check" in remark] == [
        "1 of 119 checked answers without what their own check asks for, the first at rows.jsonl:4: a reply like "
        "that counts as wrong",
        "2 of 119 checks hold for the question too: a reply that only repeats it counts as right. Where that is "
        "wrong, check a pattern",
    ]


def test_sound_dialogs_have_no_remarks() -> None:
    assert inspect_data().remarks == []


def test_letters_that_the_tokenizer_does_not_know_are_reported_with_what_to_do() -> None:
    bees = "\u041f\u0447\u0451\u043b\u044b", "\u0434\u0435\u043b\u0430\u044e\u0442", "\u043c\u0451\u0434"
    text = " ".join(bees)
    path = write([row(f"{text} {n}?", f"{n}{n} {text}.") for n in range(40)])
    result = inspect_data(path)
    (remark,) = [remark for remark in result.remarks if "bytes of this text" in remark]
    assert "train a tokenizer on this file and set model.tokenizer" in remark
    train_tokenizer([text] * 9, vocabulary=400, output=Path("my-tokenizer"))
    better = inspect_data(path, overrides={"model.tokenizer": "my-tokenizer"})
    assert better.bytes_per_token > 2 * result.bytes_per_token
    assert not any("bytes of this text" in remark for remark in better.remarks)


@pytest.mark.parametrize("settings", [{}, {"data.max_tokens": 50, "model.context": 4096}])
def test_what_is_advised_against_cutting_helps(settings: dict[str, Any], by_bytes: dict[str, Any]) -> None:
    path = write([*numbered(50), *(row(f"ask{n}", f"{n} " * 100) for n in range(9))])
    overrides = {**by_bytes, **settings}
    (remark,) = [r for r in inspect_data(path, overrides=overrides).remarks if "are cut at" in r]
    advised = parse_sets([remark.partition(": set ")[2].split()[0]])
    assert not any("are cut at" in r for r in inspect_data(path, overrides={**overrides, **advised}).remarks)


GOOD = {"a.jsonl": '{"prompt": "a", "response": "b"}\n' * 2, "b.csv": "prompt,response\na,b\nc,d\n"}


@pytest.mark.parametrize(
    ("of_training", "of_inspection"),
    [
        (Change({"data.dataset": "starter"}), "dialogkit data inspect starter"),
        (
            Either("fix the rows", Change({"data.dataset": "starter"})),
            "fix the rows, or: dialogkit data inspect starter",
        ),
        (Change({"data.max_bad_rows": 3}), "--max-bad-rows 3"),
        (
            Change({"data.dataset": "a.csv", "data.max_bad_rows": 3}),
            "dialogkit data inspect a.csv --max-bad-rows 3",
        ),
        (Change({"data.dataset": "nothing", "data.streaming": True}), "inspect one of its files"),
        (
            Change({"data.dataset": "folder", "data.streaming": True}),
            "dialogkit data inspect folder/a.jsonl, or: dialogkit data inspect folder/b.csv",
        ),
        (Call("train", settings={"data.dataset": "a.csv"}), "dialogkit data inspect a.csv"),
        (Call("train", "mine.json"), "dialogkit data inspect rows.jsonl --model mine.json"),
        (Call("data list"), "dialogkit data list"),
    ],
)
def test_the_hint_of_a_run_becomes_one_of_an_inspection(
    of_training: Hint, of_inspection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise DataError("it cannot be read", hint=of_training)

    Path("folder").mkdir()
    for name, text in {**GOOD, "c.jsonl": "{}\n"}.items():
        Path("folder", name).write_text(text)
    monkeypatch.setattr("dialogkit.services.inspect.load_run_config", refuse)
    with pytest.raises(DataError) as refused:
        inspect_data("rows.jsonl")
    assert typed(refused.value, "data", "inspect") == of_inspection


BAD: dict[str, str] = {
    "columns.jsonl": '{"question": "Why?", "reply": "So."}\n',
    "one.jsonl": '{"prompt": "a", "response": "b"}\n',
    "syntax.jsonl": '{"prompt": "a", "response": "b"}\n{"prompt"\n',
    "nowhere.jsonl": "",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_as_training_refuses_it(name: str, small_config: Callable[..., Any]) -> None:
    from dialogkit.services.train import train

    if name != "nowhere.jsonl":
        Path(name).write_text(BAD[name])
    with pytest.raises(DialogKitError) as of_train:
        train(small_config({"data.dataset": name}))
    with pytest.raises(DialogKitError) as of_inspect:
        inspect_data(name)
    assert type(of_inspect.value) is type(of_train.value)
    assert of_inspect.value.message == of_train.value.message
    assert not re.search(r"--dataset|data\.dataset", typed(of_inspect.value, "data", "inspect") or "")


def test_malformed_rows_are_passed_over_as_in_a_training() -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in numbered(30)) + "{\n")
    result = inspect_data("rows.jsonl", max_bad_rows=1)
    assert (result.rows, result.kept, result.unusable) == (31, 30, 1)
    assert result.unusable_rows[0].startswith("rows.jsonl:31: not valid JSON")


def test_a_result_can_be_kept_as_json() -> None:
    result = inspect_data(samples=20, show=2)
    assert InspectResult.model_validate_json(result.model_dump_json()) == result
