"""How worlds are read, and what is said about wrong ones."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli.data import render_made
from dialogkit.cli.output import Output
from dialogkit.data.worlds.dialogs import make_dialogs
from dialogkit.data.worlds.folder import read_world
from dialogkit.data.worlds.location import holds_world
from dialogkit.data.worlds.tables import TABLES
from dialogkit.data.worlds.templates import Template
from dialogkit.errors import DataError
from dialogkit.services.data import MadeDialogs
from tests.conftest import Finished, typed

TOPIC = """\
topic: prices
facts:
  columns: [product, price]
  rows:
    - [bread, 2.50]
    - [milk, 1.20]
exchanges:
  - ask: "How much is the {product}?"
    answer: "{price} euros."
    right: "{price}"
"""


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_values_are_what_was_written(tmp_path: Path) -> None:
    text = TOPIC.replace("2.50]", "2.50]\n    - [no, 8:30]\n    - ['5', 007]")
    (topic,) = read_world(write(tmp_path, prices=text)).topics
    (answer,) = topic.exchanges[0].answer
    assert [answer.fill(row) for row in topic.table.rows] == [
        "2.50 euros.", "8:30 euros.", "007 euros.", "1.20 euros.",
    ]  # fmt: skip
    assert [row["product"] for row in topic.table.rows] == ["bread", "no", "5", "milk"]


def test_json_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"topic": "a", "exchanges": [{"ask": "Hi", "answer": ["Hello"]}]}')
    assert [topic.name for topic in read_world(tmp_path).topics] == ["a"]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{a} and {a}.", "Bread and bread."),
        ("Yes. {a}!", "Yes. Bread!"),
        ("{{x}} {a}", "{x} bread"),
        ("{other.a}, not {a}", "Milk, not bread"),
    ],
)
def test_slots_are_filled_and_begin_a_sentence_with_a_capital(text: str, filled: str) -> None:
    assert Template.parse(text).fill({"a": "bread"}, {"a": "milk"}) == filled


def test_a_pattern_takes_values_as_they_are(tmp_path: Path) -> None:
    right = "right: {pattern: '^{price}\\b.{{3,9}}$'}"
    write(tmp_path, prices=TOPIC.replace('right: "{price}"', right))
    read_world(tmp_path)
    write(tmp_path, prices=TOPIC.replace('right: "{price}"', right).replace('"{price} euros."', "2x50 euros."))
    with pytest.raises(DataError, match="wrong by its own check"):
        read_world(tmp_path)


FACTS = TOPIC[TOPIC.index("facts:") : TOPIC.index("exchanges:")]
WRONG = [
    (
        "{price} euros",
        "{prize} euros",
        "a.yaml:9: exchange 1, answer: unknown slot 'prize' (did you mean",
    ),
    ('"How much is the {product}?"', "[]", "a.yaml:8: exchange 1, ask: the list is empty"),
    ('"How much is the {product}?"', '["a", ""]', "a.yaml:8: exchange 1, ask, text 2: an empty text"),
    ("[milk, 1.20]", "[milk]", "a.yaml:6: row 2 of the facts: 1 value for the 2 columns product, price"),
    ("[milk, 1.20]", "[milk, null]", "row 2 of the facts: price is nothing"),
    ("[milk, 1.20]", "[milk, true]", "price is true (a text needs quotes)"),
    ("[milk, 1.20]", "[bread, 1.20]", "a.yaml:6: row 2 of the facts: product 'bread' is in row 1 already"),
    ("[product, price]", "[price, price]", "the column 'price' stands here twice"),
    ("[product, price]", "[product, 'a.b']", "the column 'a.b' has other characters"),
    (FACTS, "facts: {table: sum}\n", "a.yaml:2: facts, table: no such table: 'sum' (did you mean 'sums'?)"),
    (FACTS, "facts: {table: sums, to: 5000}\n", "facts, to: 5000 is not a whole number from 1 to 1000"),
    ("    right:", "    rihgt:", "a.yaml:10: exchange 1: unknown key 'rihgt' (did you mean 'right'?)"),
    ('    answer: "{price} euros."\n', "", "a.yaml:8: exchange 1: 'answer' is missing"),
    ("topic: prices", "topic: [prices", "a.yaml:2: not valid YAML"),
    ("topic: prices", "topic: a\ntopic: b", "a.yaml:2: 'topic' stands here twice"),
    (
        '"{price} euros."',
        "It is cheap.",
        "a.yaml:10: exchange 1, right: the answer 'It is cheap.' is wrong by its own",
    ),
    ('right: "{price}"', "right: []", "exchange 1, right: the list is empty"),
    ('right: "{price}"', "right: {pattern: '('}", "is not a regular expression"),
    ("{product}?", "{other.product}?", "the slot 'other.product' is for a question that follows another one"),
    ("facts:", "weight: 0\nfacts:", "a.yaml:2: weight: 0 is not a number above 0"),
    ("    right:", "    manners: {rude: 'No.'}\n    right:", "unknown manner 'rude'; world.yaml gives none"),
    ("    right:", "    place: middle\n    right:", "place: 'middle' is neither start nor end"),
    ("    right:", "    vary: never\n    right:", "vary: 'never' is neither true nor false"),
    ("    right:", "    later: true\n    right:", "only what follows another exchange can come later"),
    ('"{price} euros."', '&a "{price} euros."\n    then: [{ask: Oh?, answer: *a}]', "an alias"),
    ("topic: prices", "topic: [1]", "a.yaml:1: topic: a list where a text is expected"),
    (TOPIC, "[1]", "a.yaml:1: a list where topic, weight, facts, exchanges are expected"),
    (TOPIC, "# nothing", "a.yaml is empty"),
]


@pytest.mark.parametrize(("before", "after", "message"), WRONG)
def test_a_wrong_topic_is_named_by_file_line_and_value(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    assert before in TOPIC
    with pytest.raises(DataError) as error:
        read_world(write(tmp_path, a=TOPIC.replace(before, after)))
    assert message in error.value.message
    line = re.match(r"a\.yaml:(\d+): ", error.value.message)
    place = f"edit line {line[1]} of" if line else "write a topic into"
    assert str(typed(error.value, "data", "make", "my-shop")).startswith(f"{place} {tmp_path / 'a.yaml'}")


def test_a_folder_of_data_with_a_note_in_yaml_is_no_world(tmp_path: Path) -> None:
    assert not holds_world(tmp_path)
    assert holds_world(write(tmp_path, prices=TOPIC))
    (tmp_path / "0.jsonl.gz").touch()
    assert not holds_world(tmp_path)
    assert not holds_world(tmp_path / "nowhere")


def test_a_topic_stands_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two\.yaml:1: the topic 'prices' is in prices\.yaml already"):
        read_world(write(tmp_path, prices=TOPIC, two=TOPIC))


def test_a_nest_of_lists_is_refused_without_a_traceback(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "[" * 1000 + "]" * 1000, "topic: \x07", "a: !!python/object:os.system {}"):
        with pytest.raises(DataError, match=r"a\.yaml"):
            read_world(write(tmp_path, a=text))


def test_built_in_tables_say_what_is_true() -> None:
    made: dict[str, list[dict[str, Any]]] = {}
    for name, table in TABLES.items():
        columns, rows = table.make()
        made[name] = [dict(zip(columns, row, strict=True)) for row in rows]
    assert len(made["sums"]) == len(made["differences"]) == 5151
    assert all(row["a"] + row["b"] == row["sum"] <= 100 for row in made["sums"])
    assert all(row["a"] - row["b"] == row["difference"] >= 0 for row in made["differences"])
    assert all(row["a"] * row["b"] == row["product"] for row in made["products"])
    assert all(row["smaller"] < row["greater"] for row in made["comparisons"])
    assert all({row["a"], row["b"]} == {row["greater"], row["smaller"]} for row in made["comparisons"])
    assert made["numbers"][20] == {"number": 21, "words": "twenty-one", "before": 20, "after": 22}
    (cat,) = (row for row in made["letters"] if row["word"] == "cat")
    assert list(cat.values()) == ["cat", "c-a-t", 3, "c", "t", "tac"]
    assert made["days"][6] == {"day": "Sunday", "before": "Saturday", "after": "Monday", "position": "seventh"}
    assert sum(row["days"] for row in made["months"]) == 365
    assert made["months"][0]["before"] == "December"


def test_the_command_line_names_what_is_no_world(dialogkit: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "my-shop").mkdir()
    write(tmp_path / "my-shop", prices=TOPIC)
    for name, message, hint in (
        ("smalltlk", "there is no world 'smalltlk' (did you mean 'smalltalk'?)", "dialogkit data make smalltalk"),
        ("./my-shp", "there is no world './my-shp' (did you mean 'my-shop'?)", "dialogkit data make my-shop"),
        ("starter", "'starter' is not a world", "dialogkit data make smalltalk"),
        ("empty", "the folder 'empty' holds no topics", "write a topic into it, such as empty/prices.yaml"),
    ):
        done = dialogkit("data", "make", name)
        assert done.code == 2
        assert message in done.err
        assert done.err.splitlines()[-1] == f"try: {hint}"


def test_a_file_that_exists_is_replaced_only_on_demand(dialogkit: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    write(tmp_path / "shop", prices=TOPIC)
    words = ("data", "make", "./shop", "-n", "20", "--json")
    made = dialogkit(*words).json["data"]
    assert (made["file"], made["dialogs"], made["topics"]) == ("shop.jsonl", 20, {"prices": 20})
    before = Path("shop.jsonl").read_bytes()
    again = dialogkit(*words)
    assert again.code == 2
    assert again.json["error"]["hint"] == "--output shop-2.jsonl, or: --force"
    assert dialogkit(*words, "--force", "--seed", "9").code == 0
    assert Path("shop.jsonl").read_bytes() != before
    assert dialogkit("data", "make", "shop", "-o", "a.csv").code == 2


def test_a_row_with_a_larger_weight_comes_up_more_often(tmp_path: Path) -> None:
    text = TOPIC.replace("price]", "price, weight]").replace("2.50]", "2.50, 9]").replace("1.20]", "1.20, 1]")
    world = read_world(write(tmp_path, prices=text))
    asked = [row["messages"][0]["content"] for row in make_dialogs(world, 400)]
    assert 320 < sum("bread" in question.lower() for question in asked) < 390
    with pytest.raises(DataError, match=r"prices.yaml:5: 0 is not a number above 0 and up to"):
        read_world(write(tmp_path, prices=text.replace("2.50, 9]", "2.50, 0]")))
    with pytest.raises(DataError, match="unknown slot 'weight'"):
        read_world(write(tmp_path, prices=text.replace("{price} euros", "{weight} euros")))


INCLUDE = "include: {world: smalltalk, topics: {capitals: 3, greetings: 1}}"


def test_a_world_includes_the_commonest_rows_of_another(tmp_path: Path) -> None:
    world = read_world(write(tmp_path, prices=TOPIC, world=INCLUDE))
    assert {topic.name: len(topic.table.rows) for topic in world.topics} == {
        "capitals": 3,
        "greetings": 1,
        "prices": 2,
    }
    capitals = world.topics[0].table
    assert [row["country"] for row in capitals.rows] == ["Argentina", "Australia", "Austria"]
    assert set(capitals.weights) == {10.0}
    starts = Counter(row["topic"] == "prices" for row in make_dialogs(world, 600))
    assert 0.55 < starts[True] / 600 < 0.8  # a quarter is included, and some begin with a greeting
    assert not world.systems
    assert "pirate" in read_world(write(tmp_path / "other", world="include: {world: smalltalk}")).systems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (INCLUDE.replace("smalltalk", "smaltalk"), "'smaltalk' is no world (did you mean 'smalltalk'"),
        (
            INCLUDE.replace("capitals: 3", "capital: 3"),
            "smalltalk has no topic 'capital' (did you mean 'capitals'",
        ),
        (INCLUDE.replace("3", "0"), "capitals: 0 is no number of rows; it must be a whole number from 1"),
        (INCLUDE.replace("smalltalk", "smalltalk-core"), "'smalltalk-core' includes a world itself"),
        ("include: {world: ., topics: 5}", "'.' includes a world itself"),
        ("include: {world: smalltalk, topics: [capitals]}", "a list where topics with their numbers of rows"),
        (INCLUDE.replace("topics", "share: 1.5, topics"), "share: 1.5 is not a number above 0 and below 1"),
        ("include: smalltalk", "'smalltalk' where world, topics, share are expected"),
    ],
)
def test_what_cannot_be_included_is_named(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_world(write(tmp_path, prices=TOPIC, world=text))
    assert "world.yaml:1: " in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(("topics", "shown"), [(2, "2: t0 50.0% and t1 50.0%"), (14, ", t11 7.1% and 2 more")])
def test_the_largest_topics_are_named(topics: int, shown: str, capfd: pytest.CaptureFixture[str]) -> None:
    numbers = {f"t{n}": 1 for n in range(topics)}
    made = MadeDialogs(
        file="a", world="w", seed=1, dialogs=topics, held_out={}, topics=numbers, answers=9, checked=0
    )
    render_made(Output(), made)
    assert shown in " ".join(capfd.readouterr().out.split())
