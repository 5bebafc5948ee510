"""Dialogs of worlds: the same everywhere, right by their own checks, and with something new held out."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import TEST_PROMPTS
from dialogkit.data.checks import checks_of, is_right
from dialogkit.data.sources import NAMED, SMALLTALK
from dialogkit.data.worlds.dialogs import every_exchange, held_out_phrasings, make_dialogs
from dialogkit.data.worlds.folder import license_of, read_world
from dialogkit.data.worlds.templates import Template
from dialogkit.data.worlds.topics import World
from dialogkit.data.worlds.variation import Dice, normal_form, vary
from dialogkit.dialog import Message, check_dialog
from tests.conftest import REPOSITORY
from tests.test_readme import files

SHOP = REPOSITORY / "dialogkit/examples/shop"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def smalltalk() -> World:
    return read_world(SMALLTALK, check_answers=True)


@pytest.fixture(scope="module")
def rows(smalltalk: World) -> list[Row]:
    return list(make_dialogs(smalltalk, 6000, seed=3))


def texts(row: Row, role: str) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == role]


def digest(rows: list[Row]) -> str:
    return hashlib.sha256("\n".join(json.dumps(row) for row in rows).encode()).hexdigest()


@pytest.mark.faults
def test_the_bytes_are_the_same_in_another_process_and_fewer_dialogs_are_the_first(smalltalk: World) -> None:
    made = list(make_dialogs(smalltalk, 400, seed=5))
    assert list(make_dialogs(smalltalk, 100, seed=5)) == made[:100]
    assert list(make_dialogs(smalltalk, 100, seed=6)) != made[:100]
    words = [sys.executable, "-m", "dialogkit", "data", "make", "smalltalk", "-n", "400", "--seed", "5", "-o", "-"]
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == made


def test_the_dialogs_of_a_seed_stay_what_they_are() -> None:
    """Data that was prepared of a world is kept: if this fails, increase `worlds.dialogs.VERSION`."""
    found = digest(list(make_dialogs(read_world(SHOP), 300, seed=1)))
    assert found == "1b6f83c5d29d34737c8a41ec9242b62f2293b1939bf32377eef0bcfb361b2a71"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("What is the capital of {country}?", "do u know what the capital of france is"),
        ("And of {country}?", "Thanks! And of France?"),
        ("Tell me about {country}.", "Hi, tell me about France."),
    ],
)
def test_a_phrasing_is_known_by_its_normal_form_however_it_is_varied(asked: str, shown: str) -> None:
    template, dice = Template.parse(asked), Dice(1)
    texts = [vary(template, {"country": "France"}, None, dice) for _ in range(4000)]
    assert shown in texts
    forms = Counter(normal_form(text) for text in texts)
    assert forms[normal_form(asked.replace("{country}", "France"))] > 0.9 * len(texts)  # the others have a typo


def test_every_row_is_a_dialog_of_one_to_five_exchanges(rows: list[Row]) -> None:
    for row in rows:
        assert check_dialog([Message(each["role"], each["content"]) for each in row["messages"]]) is None
        assert 1 <= len(texts(row, "assistant")) <= 5
    counts = Counter(len(texts(row, "assistant")) for row in rows)
    assert min(counts.values()) > 0.02 * len(rows)
    assert len({json.dumps(row["messages"]) for row in rows}) > 0.9 * len(rows)


def test_every_answer_is_right_by_its_own_check(rows: list[Row]) -> None:
    checked = 0
    for row in rows:
        answers = texts(row, "assistant")
        for answer, check in zip(answers, checks_of(row["check"], len(answers)), strict=True):
            if check is not None:
                assert is_right(answer, check), (answer, check)
                checked += 1
    assert checked > len(rows)


def test_no_slot_is_left_and_answers_are_clean(rows: list[Row]) -> None:
    for row in rows:
        for message in row["messages"]:
            assert not re.search(r"[{}]|\s{2}|^\s|\s$", message["content"]), message
        for answer in texts(row, "assistant"):
            assert answer[0].isupper() or answer[0].isdigit(), answer
            assert answer[-1] in ".!?" or answer[-1].isdigit(), answer


def test_what_is_held_out_is_never_trained(smalltalk: World) -> None:
    rows = list(make_dialogs(smalltalk, 6000))
    held_out = [row for row in rows if row["split"] == "held-out"]
    assert {"phrasing", "pair", "fact"} == {row["new"] for row in held_out}
    assert 0.03 < len(held_out) / len(rows) < 0.07
    assert all("new" not in row for row in rows if row["split"] == "train")
    trained = {normal_form(text) for row in rows if row["split"] == "train" for text in texts(row, "user")}
    first = [normal_form(texts(row, "user")[0]) for row in held_out]
    assert [form for form in first if form in trained] == []


def test_what_is_held_out_does_not_depend_on_the_seed(smalltalk: World) -> None:
    trained = {
        normal_form(text)
        for row in make_dialogs(smalltalk, 3000, seed=1)
        if row["split"] == "train"
        for text in texts(row, "user")
    }
    other = [row for row in make_dialogs(smalltalk, 3000, seed=2) if row["split"] == "held-out"]
    assert [row for row in other if normal_form(texts(row, "user")[0]) in trained] == []


def test_held_out_phrasings_are_few_and_their_questions_have_others(smalltalk: World) -> None:
    held_out = held_out_phrasings(smalltalk)
    for exchange in every_exchange(smalltalk):
        forms = {normal_form(template.source) for template in exchange.ask}
        assert normal_form(exchange.ask[0].source) not in held_out
        assert len(forms & held_out) <= len(forms) / 2
    assert 0.05 < len(held_out) / len({t.source for e in every_exchange(smalltalk) for t in e.ask}) < 0.25


def test_a_question_that_follows_means_the_row_that_was_named(rows: list[Row]) -> None:
    capitals = {
        f["capital"]: f for t in read_world(SMALLTALK).topics if t.name == "capitals" for f in t.table.rows
    }
    found = 0
    for row in rows:
        asked, answers = texts(row, "user"), texts(row, "assistant")
        for at, question in enumerate(asked[1:], 1):
            named = [capital for capital in capitals if row["check"][at - 1] == capital]
            if named and normal_form(question) in ("where is it", "which continent is that on"):
                assert str(capitals[named[0]]["continent"]) in answers[at]
                found += 1
    assert found


def test_places_are_kept_and_manners_answer_in_their_way(rows: list[Row], smalltalk: World) -> None:
    manners = {text: manner for manner, prompts in smalltalk.systems.items() for text in prompts}
    assert {manners[text] for row in rows for text in texts(row, "system")} == set(smalltalk.systems)
    for row in rows:
        if (first := row["messages"][0])["role"] == "system" and manners[first["content"]] == "one word":
            assert all(len(answer.split()) <= 4 for answer in texts(row, "assistant"))
        for answer in texts(row, "assistant")[:-1]:
            assert "oodbye" not in answer or "\n" in answer  # a poem may say it


def test_the_test_prompts_that_the_world_knows_have_an_answer(smalltalk: World) -> None:
    forms = {normal_form(template.source) for exchange in every_exchange(smalltalk) for template in exchange.ask}
    filled = {normal_form(prompt) for prompt in TEST_PROMPTS}
    assert {"how are you", "thank you goodbye"} <= filled & forms


def test_the_licence_that_is_reported_is_that_of_the_files() -> None:
    assert NAMED["smalltalk"].license == license_of(SMALLTALK)
    assert str(NAMED["smalltalk"].license) in (SMALLTALK / "LICENSE").read_text(encoding="utf-8")


def test_the_page_shows_the_example_that_ships() -> None:
    shown = {Path(name).name: text for name, text in files().items() if name.startswith("my-shop/")}
    assert len(shown) == 3
    assert shown == {name: (SHOP / name).read_text(encoding="utf-8") for name in shown}
