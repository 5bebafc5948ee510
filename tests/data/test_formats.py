"""The shapes of dataset rows."""

from typing import Any

import pytest

from dialogkit.data.formats import SHAPES, RowError, parse_row, recognise_format
from dialogkit.dialog import Message
from dialogkit.errors import DataError
from tests.conftest import typed

U, A, S = Message("user", "Hi"), Message("assistant", "Hello."), Message("system", "Be kind.")


def turn(role: str, content: Any, keys: tuple[str, str] = ("role", "content")) -> dict[str, Any]:
    return dict(zip(keys, (role, content), strict=True))


def said(role: str, content: str) -> dict[str, Any]:
    return turn(role, content, ("from", "value"))


SYSTEM = turn("system", "Be kind.")


@pytest.mark.parametrize(
    ("row", "kind", "dialog"),
    [
        ({"instruction": "Hi", "output": "Hello."}, "alpaca", (U, A)),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, "alpaca", (U, A)),
        ({"instruction": "Hi", "input": None, "output": "Hello.", "system": None}, "alpaca", (U, A)),
        ({"instruction": "Add", "input": "1 2", "output": "Hello."}, "alpaca", (Message("user", "Add\n\n1 2"), A)),
        ({"instruction": "Hi", "output": "Hello.", "system": "Be kind."}, "alpaca", (S, U, A)),
        ({"instruction": "Hi", "input": " ", "output": "Hello.", "text": "### no"}, "alpaca", (U, A)),
        ({"messages": [turn("user", "Hi"), turn("assistant", "Hello.")]}, "messages", (U, A)),
        ({"messages": [SYSTEM, turn("human", "Hi"), turn("bot", "Hello.")]}, "messages", (S, U, A)),
        (
            {"messages": [turn("user", " Hi\n"), turn("model", "Hello. "), turn("user", "more")]},
            "messages",
            (U, A),
        ),
        ({"messages": [turn("user", "Hi"), turn("assistant", "Hello.")] * 2}, "messages", (U, A, U, A)),
        (
            {"conversations": [said("system", "Be kind."), said("human", "Hi"), said("gpt", "Hello.")]},
            "sharegpt",
            (S, U, A),
        ),
        ({"prompt": "Hi", "response": "Hello."}, "prompt-response", (U, A)),
        ({"prompt": "Hi", "completion": "Hello."}, "prompt-response", (U, A)),
        ({"prompt": "Hi", "completion": "Hello.", "response": None}, "prompt-response", (U, A)),
        (
            {"prompt": [SYSTEM, turn("user", "Hi")], "completion": [turn("assistant", "Hello.")]},
            "prompt-response",
            (S, U, A),
        ),
    ],
)
def test_a_row_of_each_shape_is_recognised_and_read(row: Any, kind: str, dialog: Any) -> None:
    assert recognise_format(row.keys(), source="data.jsonl") == kind
    assert parse_row(row, kind) == dialog


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"messages", "instruction", "output", "prompt", "response"}, "messages"),
        ({"conversations", "prompt", "response"}, "sharegpt"),
        ({"instruction", "output", "prompt", "response"}, "alpaca"),
        ({"id", "source", "prompt", "completion", "score"}, "prompt-response"),
    ],
)
def test_the_richest_shape_wins_and_other_columns_do_not_matter(columns: set[str], kind: str) -> None:
    assert recognise_format(columns, source="data.jsonl") == kind


@pytest.mark.parametrize(
    "columns", [{"question", "answer"}, {"instruction"}, {"prompt"}, {"output"}, {"Messages"}, set()]
)
def test_unknown_columns_are_listed_with_the_shapes_that_are_understood(columns: set[str]) -> None:
    with pytest.raises(DataError) as refused:
        recognise_format(columns, source="data.csv")
    assert f"data.csv has the columns {', '.join(sorted(columns)) or 'none'}, " in refused.value.message
    for shape in SHAPES:
        assert shape in refused.value.message
    assert typed(refused.value) == "rename the columns, or: --dataset starter"


def test_of_very_many_columns_twelve_are_listed() -> None:
    with pytest.raises(DataError) as refused:
        recognise_format([f"column{number:04}" for number in range(5000)], source="data.csv")
    assert "column0011, which match none" in refused.value.message


@pytest.mark.parametrize(
    ("row", "kind", "problem"),
    [
        ({"instruction": "Hi"}, "alpaca", "output is missing, not text"),
        ({"instruction": "Hi", "output": None}, "alpaca", "output is null, not text"),
        ({"instruction": "Hi", "output": 5}, "alpaca", "output is a number, not text"),
        ({"instruction": "Hi", "output": " \n"}, "alpaca", r"message 2 \(assistant\) is empty"),
        ({"instruction": "", "input": "", "output": "x"}, "alpaca", r"message 1 \(user\) is empty"),
        ({"instruction": "Hi", "input": ["x"], "output": "x"}, "alpaca", "input is a list, not text"),
        ({"prompt": "Hi", "response": "a\ud800"}, "prompt-response", "response contains half of a surrogate pair"),
        ({"prompt": "Hi", "response": {}}, "prompt-response", "response is an object"),
        ({"prompt": "Hi", "response": None}, "prompt-response", "response is null, not text"),
        (
            {"prompt": [turn("user", "Hi")], "response": "x"},
            "prompt-response",
            "response is text, not a list",
        ),
        ({"messages": None}, "messages", "messages is null, not a list"),
        ({"messages": "Hi"}, "messages", "messages is text, not a list"),
        ({"messages": {"role": "user"}}, "messages", "messages is an object, not a list"),
        ({"messages": []}, "messages", "no message from the assistant"),
        ({"messages": ["Hi"]}, "messages", r"messages\[1\] is text, not an object"),
        ({"messages": [turn("user", "Hi"), turn("tool", "x")]}, "messages", r"messages\[2\] has the role 'tool'"),
        ({"messages": [{"content": "x"}]}, "messages", r"messages\[1\] has the role None"),
        ({"messages": [turn("user", "Hi"), turn("assistant", None)]}, "messages", "content is null, not text"),
        ({"messages": [turn("assistant", "x")]}, "messages", "message 1 is from 'assistant' instead of 'user'"),
        ({"conversations": [turn("human", "Hi")]}, "sharegpt", "conversations.1. has the from None"),
    ],
)
def test_a_row_that_is_no_dialog_says_why(row: Any, kind: str, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        parse_row(row, kind)
