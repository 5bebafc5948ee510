"""What rows say about the answers of their dialogs, and which of them is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.data import DataConfig
from dialogkit.data.prepare import PreparedData, prepare_data
from dialogkit.data.questions import Checked, checked_of
from dialogkit.dialog import ChatTokenizer, Message
from dialogkit.errors import DataError

GREETED = (Message("assistant", "Hello!", learned=False), Message("user", "2 + 2?"), Message("assistant", "4"))
TWICE = (*GREETED[1:], Message("user", "3 + 3?"), Message("assistant", "6", learned=False))


@pytest.mark.parametrize(
    ("values", "dialog", "checks"),
    [
        ({}, TWICE, None),
        ({"check": [None, None]}, TWICE, None),
        ({"check": ""}, GREETED, None),
        ({"check": 4}, GREETED, [4]),
        ({"check": [4]}, GREETED, [4]),
        ({"check": [4, 6]}, TWICE, [4]),  # an answer that is not learned is not asked for
        ({"check": ["four", "4"]}, GREETED, [["four", "4"]]),  # of one answer, a list of what is right
    ],
)
def test_checks_are_those_of_the_answers_to_learn(values: dict[str, Any], dialog: Any, checks: Any) -> None:
    found = checked_of({**values, "topic": "sums", "new": 3}, dialog)
    assert found == (None if checks is None else Checked(checks, "sums", ""))


def prepare(rows: list[dict[str, Any]], tokenizer: ChatTokenizer, **options: Any) -> PreparedData:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig(dataset="rows.jsonl", **options)
    return prepare_data(config, tokenizer, context=64, cache=Path("cache"))


def sums(count: int) -> list[dict[str, Any]]:
    """Return rows of which every fourth is held out."""
    return [
        {"prompt": f"{n} + 1?", "response": str(n + 1), "check": n + 1, "topic": f"topic {n % 3}"}
        | {"split": "train" if n % 4 else "test", "new": "fact"}
        for n in range(count)
    ]


def test_checks_of_held_out_dialogs_come_with_them_also_from_the_cache(tokenizer: ChatTokenizer) -> None:
    for from_cache in (False, True):
        data = prepare(sums(20), tokenizer)
        assert data.from_cache is from_cache
        assert data.checked.keys() == set(data.evaluation.hashes.tolist())
        assert {str(one.checks) for one in data.checked.values()} == {f"[{n}]" for n in (1, 5, 9, 13, 17)}
        assert (data.ledger.checked, data.ledger.unused_columns) == (20, [])
    by_hash = prepare([{**row, "split": "?"} for row in sums(20)], tokenizer)
    assert set(by_hash.evaluation.hashes.tolist()) <= by_hash.checked.keys()
    assert by_hash.ledger.unused_columns == ["split"]


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (True, "check: true is not a check; a text needs quotes"),
        ([1, 2], None),
        ({"pattern": "("}, "check: the pattern '(' is not a regular expression: missing ) at position 1"),
        (
            {"is": 4},
            "check: {'is': 4} is not a check; it must be a text, a number, a list or {pattern: ...}",
        ),
        (["", 4], "check: an empty text cannot be checked"),
    ],
)
def test_a_wrong_check_is_a_malformed_row(tokenizer: ChatTokenizer, check: Any, problem: str | None) -> None:
    rows = sums(20)
    rows[6]["check"] = check
    if problem is None:
        assert prepare(rows, tokenizer).ledger.checked == 20
        return
    with pytest.raises(DataError) as error:
        prepare(rows, tokenizer)
    assert error.value.message == f"rows.jsonl:7: {problem}"
    assert prepare(rows, tokenizer, max_bad_rows=1).ledger.rows == 20


def test_checks_that_do_not_suit_the_number_of_answers_are_named(tokenizer: ChatTokenizer) -> None:
    turns = [message.turn() for message in TWICE]
    rows = [{"messages": turns, "check": ["4", "6", "8"]}]
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: check has 3 values for 2 answers$"):
        prepare(rows, tokenizer)


def test_checks_and_split_count_beside_mapped_columns(tokenizer: ChatTokenizer) -> None:
    by_name = [{**row, "frage": row["prompt"], "prompt": "none"} for row in sums(20)]
    ledger = prepare(by_name, tokenizer, columns=["prompt=frage", "response=response"]).ledger
    assert (ledger.checked, ledger.split_by, ledger.unused_columns) == (20, "rows", ["prompt"])
    other = {"prompt": "frage", "check": "soll", "split": "teil"}
    renamed = [{other.get(name, name): value for name, value in row.items()} for row in sums(20)]
    columns = ["prompt=frage", "response=response"]
    mapped = prepare(renamed, tokenizer, columns=[*columns, "check=soll", "split=teil"]).ledger
    assert (mapped.checked, mapped.split_by, mapped.unused_columns) == (20, "rows", [])
    unmapped = prepare(renamed, tokenizer, columns=columns).ledger
    assert (unmapped.checked, unmapped.split_by) == (0, "hash")
    assert {"soll", "teil"} <= {*unmapped.unused_columns}
