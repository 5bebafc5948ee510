"""From dialogs to token arrays: the split, the cut, the ledger and the cache."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.config.data import DataConfig
from dialogkit.data.prepare import PreparedData, prepare_data
from dialogkit.data.shards import find_stream
from dialogkit.data.split import hash_dialog, held_out_by_rows, split_by_hash
from dialogkit.data.tokens import DialogTokens, cut_dialog
from dialogkit.data.worlds.dialogs import make_dialogs
from dialogkit.data.worlds.folder import read_world
from dialogkit.dialog import Dialog, Encoded, Message, plain_format, turns_format
from dialogkit.errors import DataError
from dialogkit.models.tokenizer import ChatTokenizer
from tests.conftest import REPOSITORY, typed
from tests.models.foreign import CHATS, chatml, gpt2_like

few = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def row(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]}


def numbered(count: int) -> list[dict[str, Any]]:
    return [row(f"question {number}", f"answer {number}") for number in range(count)]


def write(rows: list[dict[str, Any]], path: str = "rows.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def prepare(
    rows: list[dict[str, Any]], tokenizer: ChatTokenizer, *, context: int = 256, **options: Any
) -> PreparedData:
    config = DataConfig(dataset=write(rows), **options)
    return prepare_data(config, tokenizer, context=context, cache=Path("cache"))


def said(tokens: DialogTokens, tokenizer: ChatTokenizer) -> list[str]:
    """Return the text of each dialog."""
    return [tokenizer.hf.decode(tokens[i]["input_ids"]) for i in range(len(tokens))]


def answers(tokens: DialogTokens, tokenizer: ChatTokenizer) -> list[str]:
    return [tokenizer.decode(tokens[i]["input_ids"][tokens[i]["supervised"]]) for i in range(len(tokens))]


def same(one: DialogTokens, two: DialogTokens) -> bool:
    names = ("ids", "supervised", "offsets", "answer_bytes", "hashes", "whole_tokens")
    pairs = [(getattr(one, name), getattr(two, name)) for name in names]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_the_arrays_hold_the_dialogs_of_the_file(tokenizer: ChatTokenizer) -> None:
    rows = [row("Hi", "Hello!"), row("a", "b", "c", "\u00fc\U0001f600"), *numbered(20)]
    data = prepare(rows, tokenizer)
    dialogs = [tuple(Message(**turn) for turn in r["messages"]) for r in rows]
    expected = {tuple(e.input_ids): e.supervised for e in tokenizer.encode_dialogs(dialogs)}
    found = [part[i] for part in (data.train, data.evaluation) for i in range(len(part))]
    assert {tuple(d["input_ids"]): d["supervised"].tolist() for d in found} == expected
    assert len(found) == len(rows)
    assert data.train.ids.dtype == np.int32


@few
@given(
    hashes=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), min_size=2, max_size=60),
    fraction=st.floats(0.001, 0.5),
    at_least=st.integers(1, 40),
    more=st.integers(0, 20),
)
def test_a_split_is_decided_by_the_hash_alone(
    hashes: list[int], fraction: float, at_least: int, more: int
) -> None:
    at_most = at_least + more
    distinct = sorted(set(hashes))
    array = np.array(hashes, dtype=np.uint64)
    train, evaluation = split_by_hash(array, fraction, at_least, at_most)
    assert sorted([*train, *evaluation]) == list(range(len(hashes)))
    if len(distinct) < 2:
        return
    held_out = {hashes[i] for i in evaluation}
    assert held_out.isdisjoint(hashes[i] for i in train)
    assert held_out == set(distinct[: len(held_out)])
    by_share = sum(h < fraction * (2**64 - 1) for h in distinct)
    assert len(held_out) == max(1, min(max(by_share, at_least), at_most, len(distinct) // 2))
    # Neither order nor repetition matters.
    again = np.array(hashes[::-1] * 2, dtype=np.uint64)
    assert {int(again[i]) for i in split_by_hash(again, fraction, at_least, at_most)[1]} == held_out


def test_equal_dialogs_are_on_the_same_side_and_the_set_survives_a_new_order(tokenizer: ChatTokenizer) -> None:
    rows = numbered(60)
    once = prepare(rows, tokenizer, eval_fraction=0.2)
    held_out = set(said(once.evaluation, tokenizer))
    assert len(held_out) >= 8
    twice = prepare(rows[::-1] + rows, tokenizer, eval_fraction=0.2)
    assert set(said(twice.evaluation, tokenizer)) == held_out
    assert held_out.isdisjoint(said(twice.train, tokenizer))
    assert len(twice.evaluation) == 2 * len(once.evaluation)


def test_more_dialogs_take_none_out_of_the_evaluation_set(tokenizer: ChatTokenizer) -> None:
    options: dict[str, Any] = {"eval_fraction": 0.2, "eval_min_dialogs": 1}
    few_rows, many_rows = (
        set(said(prepare(numbered(n), tokenizer, **options).evaluation, tokenizer)) for n in (60, 90)
    )
    assert few_rows < many_rows


@pytest.mark.parametrize(
    ("rows", "limits", "held_out"),
    [
        (200, {"eval_min_dialogs": 8}, None),
        (200, {"eval_min_dialogs": 60}, 60),
        (200, {"eval_max_dialogs": 9}, 9),
        (200, {"eval_min_dialogs": 60, "eval_max_dialogs": 5}, 60),
        (20, {"eval_min_dialogs": 8}, 8),
        (10, {"eval_min_dialogs": 8}, 5),
        (3, {"eval_min_dialogs": 8}, 1),
        (2, {"eval_min_dialogs": 1}, 1),
    ],
)
def test_at_least_some_and_at_most_half_are_held_out(
    rows: int, limits: dict[str, int], held_out: int | None, tokenizer: ChatTokenizer
) -> None:
    data = prepare(numbered(rows), tokenizer, eval_fraction=0.1, **limits)
    assert len(data.train) + len(data.evaluation) == rows
    if held_out is None:
        assert 8 <= len(data.evaluation) <= 40
    else:
        assert len(data.evaluation) == held_out


def test_each_dialog_is_known_by_its_hash_and_its_length_before_it_was_cut(tokenizer: ChatTokenizer) -> None:
    rows = [*numbered(30), row("a", "b", "c", "d" * 300), row("e", "f" * 300)]
    dialogs = [tuple(Message(**turn) for turn in r["messages"]) for r in rows]
    whole = {
        hash_dialog(dialog): len(encoded.input_ids)
        for dialog, encoded in zip(dialogs, tokenizer.encode_dialogs(dialogs), strict=True)
    }
    for data in (prepare(rows, tokenizer, samples=20), prepare(rows, tokenizer, samples=20)):
        for part in (data.train, data.evaluation):
            assert [whole[number] for number in part.hashes.tolist()] == part.whole_tokens.tolist()
            pairs = list(zip(part.lengths.tolist(), part.whole_tokens.tolist(), strict=True))
            assert all(length == whole_one or length <= 256 < whole_one for length, whole_one in pairs)


def test_samples_take_training_dialogs_only_and_fewer_are_among_more(tokenizer: ChatTokenizer) -> None:
    rows = numbered(50)
    everything = prepare(rows, tokenizer)
    chosen: list[set[str]] = [set()]
    for samples in (1, 7, 20, 1000):
        data = prepare(rows, tokenizer, samples=samples)
        assert same(data.evaluation, everything.evaluation)
        texts = said(data.train, tokenizer)
        assert len(texts) == min(samples, len(everything.train))
        # In the order of the file.
        assert texts == [text for text in said(everything.train, tokenizer) if text in set(texts)]
        assert chosen[-1] < set(texts)
        chosen.append(set(texts))
    assert same(data.train, everything.train)
    # Which dialogs these are does not depend on the order of the file.
    assert set(said(prepare(rows[::-1], tokenizer, samples=7).train, tokenizer)) == chosen[2]


SUPERVISED = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5).map(
    lambda turns: [flag for asked, answered in turns for flag in [False] * asked + [True] * answered]
)


@few
@given(supervised=SUPERVISED, tail=st.integers(0, 2))
def test_a_dialog_is_cut_after_an_answer_or_else_inside_the_first(supervised: list[bool], tail: int) -> None:
    supervised = supervised + [False] * tail
    whole = Encoded(list(range(len(supervised))), supervised)
    ends = [i + 1 for i, flag in enumerate(supervised) if flag and not any(supervised[i + 1 : i + 2])]
    for longest in range(1, len(supervised)):
        cut = cut_dialog(whole, longest)
        kept = max((end for end in ends if end <= longest), default=longest)
        assert cut == Encoded(whole.input_ids[:kept], supervised[:kept])


def test_dialogs_longer_than_the_context_are_cut_dropped_and_counted(tokenizer: ChatTokenizer) -> None:
    # With a token for each byte: 1 + 8 + 1 for "question", 1 + 6 + 1 for "answer".
    rows = [
        row("question", "answer", "question", "answer"),
        row("question", "a" * 30),
        row("q" * 18, "answer"),
        row("q" * 19, "answer"),
        row("question", "answer", "q", "a"),
        row("question", "answer"),
    ]
    bad = [row("question", ""), row("question")]
    data = prepare([*rows, *bad], tokenizer, context=22, eval_min_dialogs=1)
    ledger = data.ledger
    assert (ledger.rows, ledger.unusable, ledger.cut, ledger.dropped, ledger.kept) == (8, 2, 4, 1, 5)
    assert ledger.first_bad_row == "rows.jsonl:7: message 2 (assistant) is empty"
    assert len(data.train) + len(data.evaluation) == ledger.kept
    short = "<|user|>question<|end_of_turn|><|assistant|>answer<|end_of_turn|>"
    assert sorted(said(data.train, tokenizer) + said(data.evaluation, tokenizer)) == [
        f"<|user|>{'q' * 18}<|end_of_turn|><|assistant|>a",
        "<|user|>question<|end_of_turn|><|assistant|>aaaaaaaaaaa",
        short, short, short,
    ]  # fmt: skip


@pytest.mark.parametrize(("context", "max_tokens", "longest"), [(50, None, 50), (50, 30, 30), (30, 50, 30)])
def test_the_limit_is_the_shorter_of_context_and_setting(
    context: int, max_tokens: int | None, longest: int, tokenizer: ChatTokenizer
) -> None:
    data = prepare([row(f"{n}", "a" * 100) for n in range(4)], tokenizer, context=context, max_tokens=max_tokens)
    assert set(data.train.lengths) == set(data.evaluation.lengths) == {longest}


MULTI = ("a", "Gr\u00fc\u00dfe an die \u4f60\u597d", "b", "yes, \U0001f600", "c", "and on")


@pytest.mark.parametrize("kind", ["native", "plain", "turns"])
@pytest.mark.parametrize("turns", [MULTI, MULTI[:2]], ids=["three answers", "one answer"])
@pytest.mark.parametrize("context", [12, 16, 20, 28, 40, 64, 512])
def test_answer_bytes_are_those_of_the_answers_that_are_learned(
    kind: str, turns: tuple[str, ...], context: int, tokenizer: ChatTokenizer
) -> None:
    chat = tokenizer if kind == "native" else CHATS[kind]()
    said = turns[1::2]
    data = prepare([row(*turns), row("d", *turns[1:])], chat, context=context, eval_min_dialogs=1)
    for part in (data.train, data.evaluation):
        dialog = part[0]
        learned = np.flatnonzero(dialog["supervised"])
        runs = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1)
        texts = [chat.decode(dialog["input_ids"][run]) for run in runs]
        assert dialog["answer_bytes"] == sum(len(text.encode()) for text in texts)
        ended = dialog["input_ids"][-1] == chat.end_of_turn_id
        assert tuple(texts) == said[: len(texts)] if ended else said[0].startswith(texts[0].rstrip("\ufffd"))
        if context == 512:
            assert ended
            assert len(texts) == len(said)


def test_answers_that_a_template_leaves_out_are_not_counted_in_bytes() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{{ m['content'] if m['role'] == 'user' or loop.last else m['content'].split('>')[-1] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    chat = ChatTokenizer(chatml(template), None)
    rows = [row(question, "long thoughts>short", "more?", "the end") for question in ("a", "b")]
    data = prepare(rows, chat, eval_min_dialogs=1)
    assert answers(data.train, chat) == ["the end"]
    assert data.train.answer_bytes.tolist() == [len("the end")]


def test_the_second_preparation_comes_from_the_cache_and_is_the_same(tokenizer: ChatTokenizer) -> None:
    rows = [*numbered(30), row("x", "")]
    first = prepare(rows, tokenizer)
    os.utime("rows.jsonl", (1, 1))
    second = prepare(rows, tokenizer)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert same(first.train, second.train)
    assert same(first.evaluation, second.evaluation)
    assert asdict(first.ledger) == asdict(second.ledger)
    # What only chooses among prepared dialogs needs no new preparation.
    assert prepare(rows, tokenizer, samples=3, eval_fraction=0.4, eval_min_dialogs=2).from_cache


def test_the_cache_knows_all_that_changes_the_tokens(tokenizer: ChatTokenizer) -> None:
    both = [r | {"prompt": "other", "response": f"answer {n}"} for n, r in enumerate(numbered(30))]
    assert not prepare(both, tokenizer).from_cache
    assert not prepare(both[1:], tokenizer).from_cache
    assert not prepare(both, tokenizer, max_tokens=40).from_cache
    assert not prepare(both, tokenizer, context=41).from_cache
    assert not prepare(both, tokenizer, format="prompt-response").from_cache
    other = ChatTokenizer(gpt2_like(), plain_format("<|endoftext|>"))
    assert not prepare(both, other).from_cache
    assert not prepare(both, ChatTokenizer(gpt2_like(), turns_format("<|endoftext|>"))).from_cache
    # The same limit, given in another way, and all of the above again.
    assert prepare(both, tokenizer, context=40).from_cache
    assert prepare(both, tokenizer).from_cache
    assert prepare(both, other).from_cache


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"no archive",
        lambda data: b"PK\x03\x04" + bytes(200),
        lambda data: data[:400] + bytes([data[400] ^ 255]) + data[401:],
        lambda data: data.replace(b'"rows"', b'"mows"').replace(
            "rows".encode("utf-32-le"), "mows".encode("utf-32-le")
        ),
    ],
    ids=["half", "one byte short", "empty", "text", "zip head", "flipped byte", "other ledger"],
)
def test_a_damaged_cache_is_made_again(damage: Any, tokenizer: ChatTokenizer) -> None:
    rows = numbered(30)
    first = prepare(rows, tokenizer)
    (file,) = Path("cache").rglob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    again = prepare(rows, tokenizer)
    assert not again.from_cache
    assert same(again.train, first.train)
    assert prepare(rows, tokenizer).from_cache


def test_a_cache_that_cannot_be_written_is_no_error(tokenizer: ChatTokenizer) -> None:
    Path("cache").write_text("in the way")
    first, second = (prepare(numbered(30), tokenizer) for _ in range(2))
    assert not first.from_cache
    assert not second.from_cache
    assert same(first.train, second.train)


def test_a_cache_on_a_full_disk_leaves_nothing_behind(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert not prepare(numbered(30), tokenizer).from_cache
    assert [path for path in Path("cache").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("rows", "reported"),
    [
        (
            [row("a", "b")],
            "rows.jsonl leaves 1 usable dialog; at least 2 distinct ones are needed",
        ),
        ([row("a", "b")] * 5, r"leaves 5 usable dialogs \(all identical\); "),
        ([row("a", "b"), row("a", "")], r"first unusable row is rows\.jsonl:2: message 2 \(assistant\) is empty"),
        (
            [row("a" * 100, "b"), row("c" * 100, "d")],
            r"leaves 0 usable dialogs \(2 more without an answer in their first 64 tokens\)",
        ),
    ],
    ids=["one", "equal ones", "one of two", "all too long"],
)
def test_too_few_dialogs_are_refused_and_may_be_kept(
    rows: list[dict[str, Any]], reported: str, tokenizer: ChatTokenizer
) -> None:
    long = len(rows[0]["messages"][0]["content"]) > 64
    keeps = (
        "shorten the prompts, or give" if long else "add dialogs to rows.jsonl, for example with /save in a chat"
    )
    for _ in range(2):
        with pytest.raises(DataError, match=reported) as refused:
            prepare(rows, tokenizer, context=64)
        assert (typed(refused.value) or "").startswith(keeps)


def test_hashes_distinguish_dialogs_by_what_they_say_and_who_says_it() -> None:
    dialogs: list[Dialog] = [
        (Message("user", "a"), Message("assistant", "b")),
        (Message("user", "ab"), Message("assistant", "")),
        (Message("system", "a"), Message("assistant", "b")),
        (Message("user", 'a"],["assistant","b'),),
    ]
    assert len({hash_dialog(dialog) for dialog in dialogs}) == 4
    unlearned = (dialogs[0][0], dialogs[0][1]._replace(learned=False))
    assert hash_dialog(unlearned) != hash_dialog(dialogs[0])
    # Pinned: a change would move dialogs between training and evaluation of everyone's data.
    assert hash_dialog(dialogs[0]) == 0xE9090A957D1421F5


def test_a_selection_is_a_copy_in_its_own_order(tokenizer: ChatTokenizer) -> None:
    tokens = prepare(numbered(20), tokenizer).train
    chosen = tokens.select([3, 1])
    assert said(chosen, tokenizer) == [said(tokens, tokenizer)[i] for i in (3, 1)]
    assert chosen.lengths.tolist() == tokens.lengths[[3, 1]].tolist()
    assert chosen.answer_bytes.tolist() == tokens.answer_bytes[[3, 1]].tolist()
    assert chosen.supervised_tokens == sum(int(tokens[i]["supervised"].sum()) for i in (3, 1))
    assert not np.shares_memory(chosen.ids, tokens.ids)
    assert len(tokens.select([])) == 0


@pytest.mark.parametrize(
    ("splits", "held_out"),
    [
        (["train", "test"], [False, True]),
        (["Held_Out", " training "], [True, False]),
        (["train", "validation", "dev"], [False, True, True]),
        (["train", "train"], None),
        (["test", "test"], None),
        (["train", "test", None], None),
        (["train", "test", "shard-1"], None),
        ([1, 0], None),
        ([], None),
    ],
)
def test_rows_say_which_set_they_are_of_only_if_all_do(splits: list[Any], held_out: list[bool] | None) -> None:
    assert held_out_by_rows(splits) == held_out


def test_the_split_of_the_rows_is_followed_and_said(tokenizer: ChatTokenizer) -> None:
    rows = [{**r, "split": "test" if number % 4 == 0 else "train"} for number, r in enumerate(numbered(40))]
    rows.append({**rows[0], "split": "train"})  # known to be held out by another row
    for from_cache in (False, True):
        data = prepare(rows, tokenizer, eval_max_dialogs=6)
        assert data.from_cache is from_cache
        assert (data.ledger.split_by, data.ledger.spare) == ("rows", 5)
        assert len(data.train) == 30
        held_out = {f"answer {number}" for number in range(0, 40, 4)}
        assert set(answers(data.evaluation, tokenizer)) < held_out
        assert not held_out & set(answers(data.train, tokenizer))
        assert data.ledger.unused_columns == []
        assert any("5 more dialogs held out by the rows" in line for line in data.ledger.remarks())


def test_rows_that_do_not_all_say_their_set_are_split_by_hash(tokenizer: ChatTokenizer) -> None:
    data = prepare([{**r, "split": "train"} for r in numbered(40)], tokenizer)
    assert (data.ledger.split_by, data.ledger.spare, len(data.evaluation)) == ("hash", 0, 8)
    assert data.ledger.unused_columns == ["split"]


def test_a_world_is_a_dataset_that_holds_out_what_its_dialogs_say(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.data.worlds.dialogs.DIALOGS", 300)
    config = DataConfig(dataset=str(REPOSITORY / "dialogkit/examples/shop"))
    made = list(make_dialogs(read_world(Path(config.dataset))))
    for from_cache in (False, True):
        data = prepare_data(config, tokenizer, context=1024, cache=Path("cache"))
        assert data.from_cache is from_cache
        assert (data.ledger.dataset, data.ledger.license, data.ledger.split_by) == ("shop", "CC0-1.0", "rows")
        assert len(data.evaluation) == sum(r["split"] == "held-out" for r in made)
        assert len(data.train) + len(data.evaluation) == data.ledger.rows == 300
    with pytest.raises(DataError, match="made in memory") as error:
        find_stream(config)
    assert typed(error.value) == "--set data.streaming=false"
