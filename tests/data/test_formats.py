"""The shapes of dataset rows."""

import json
import shlex
from typing import Any, get_args

import pytest

from dialogkit.config.data import COLUMN_ROLES, DataConfig
from dialogkit.data.formats import FORMATS, Format, recognise_format
from dialogkit.data.row_parser import (
    GREETING,
    JOINED,
    MARKED_BAD,
    PREFERENCES,
    TOOLS,
    UNANSWERED,
    RowParser,
)
from dialogkit.data.turns import REASONING, UNWEIGHTED, RowError
from dialogkit.dialog import Dialog, Message
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
    assert RowParser(kind).parse(row) == dialog


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


def parsed(row: Any, kind: str = "") -> tuple[Dialog, dict[str, int], list[str]]:
    """Return the dialog of a row, the notes about it and the columns that are not used."""
    parser = RowParser(kind)
    return parser.parse(row), dict(parser.notes), parser.unused


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_example_of_every_shape_is_recognised_as_it_and_read(form: Format) -> None:
    assert recognise_format(form.example.keys(), source="data.jsonl") == form.name
    if form.name != "oasst":  # one row is no dialog there
        assert RowParser(form.name).parse(form.example)[-1].role == "assistant"


def test_the_settings_know_every_shape() -> None:
    assert {*FORMATS, "auto"} == set(get_args(DataConfig.model_fields["format"].annotation))


@pytest.mark.parametrize(
    ("row", "dialog"),
    [
        ({"question": "Hi", "answer": "Hello."}, (U, A)),
        ({"question": "Hi", "answer": "Hello.", "choices": ["Hello.", "Go."]}, (U, A)),
        ({"Human": "Hi", "assistant": "Hello."}, (U, A)),
        ({"Q": "Hi", "A": "Hello."}, (U, A)),
        ({"user": "u1", "prompt": "Hi", "response": "Hello."}, (U, A)),
        ({"messages": json.dumps([turn("user", "Hi"), turn("assistant", "Hello.")])}, (U, A)),
        (
            {"contents": [{"role": r, "parts": [{"text": t}]} for r, t in (("user", "Hi"), ("model", "Hello."))]},
            (U, A),
        ),
        (
            {"chat_messages": [{"sender": s, "text": t} for s, t in (("human", "Hi"), ("assistant", "Hello."))]},
            (U, A),
        ),
        (
            {"system": [{"text": "Be kind."}], "messages": [turn("user", "Hi"), turn("assistant", "Hello.")]},
            (S, U, A),
        ),
        ({"input": "Hi", "output": "Hello."}, (U, A)),
        ({" Prompt ": "Hi", "RESPONSE": "Hello."}, (U, A)),
        ({"prompt": "Hi", "response": 5}, (U, Message("assistant", "5"))),
        ({"instruction": "Hi", "context": "", "response": "Hello."}, (U, A)),
        ({"instruction": "Hi", "context": "At sea.", "response": "Hello."}, (Message("user", "Hi\n\nAt sea."), A)),
        ({"query": "Hi", "response": "Hello.", "history": [["Hi", "Hello."]]}, (U, A, U, A)),
        ({"instruction": "Hi", "output": "Hello.", "history": []}, (U, A)),
        ({"system": "Be kind.", "messages": [turn("user", "Hi"), turn("assistant", "Hello.")]}, (S, U, A)),
        ({"system": "Be kind.", "messages": [SYSTEM, turn("user", "Hi"), turn("assistant", "Hello.")]}, (S, U, A)),
        ({"conversations": [turn("user", "Hi"), turn("assistant", "Hello.")]}, (U, A)),
        ({"conversations": [said("Human", "Hi"), said("ChatGPT", "Hello.")]}, (U, A)),
        ({"messages": [turn("<|user|>", "Hi"), turn("Assistant:", "Hello.")]}, (U, A)),
        ({"messages": [turn("developer", "Be kind."), turn("user", "Hi"), turn("ai", "Hello.")]}, (S, U, A)),
        ({"messages": [turn("user", [{"type": "text", "text": "Hi"}]), turn("assistant", ["Hello."])]}, (U, A)),
        ({"data": ["Hi", "Hello.", "Hi", "Hello."]}, (U, A, U, A)),
        ({"dialog": ["Hi", "Hello."], "act": [1, 2]}, (U, A)),
        (
            {
                "text": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\nHello.<|im_end|>"
            },
            (S, U, A),
        ),
        ({"text": "### Human: Hi\n### Assistant: Hello."}, (U, A)),
        ({"text": "\n\nHuman: Hi\n\nAssistant: Hello."}, (U, A)),
        ({"text": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>"}, (S, U, A)),
        ({"text": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello. </s>"}, (S, U, A)),
        ({"text": "<|user|>\nHi</s>\n<|assistant|>\nHello.</s>"}, (U, A)),
        (
            {
                "text": "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant"
                "<|end_header_id|>\n\nHello.<|eot_id|>"
            },
            (U, A),
        ),
        ({"text": "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>"}, (U, A)),
    ],
)
def test_the_shapes_that_other_tools_write_are_read(row: Any, dialog: Any) -> None:
    assert parsed(row)[0] == dialog


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
        {"prompt": [turn("user", "Hi")], "chosen": [turn("assistant", "Hello.")], "rejected": []},
        {
            "prompt": "Hi",
            "chosen": [turn("user", "Hi"), turn("assistant", "Hello.")],
            "rejected": [turn("user", "")],
        },
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."},
        {"conversations": [said("human", "Hi")], "chosen": said("gpt", "Hello."), "rejected": said("gpt", "Go.")},
        {"messages": [turn("user", "Hi"), turn("assistant", "Hello.")], "rejected_response": "Go."},
    ],
)
def test_of_preferences_the_chosen_answer_is_learned(row: Any) -> None:
    dialog, notes, _ = parsed(row)
    assert dialog == (U, A)
    assert notes == ({PREFERENCES: 1} if row["rejected" if "rejected" in row else "rejected_response"] else {})


@pytest.mark.parametrize(
    ("messages", "dialog", "note"),
    [
        (["assistant:Hello.", "user:Hi", "assistant:Hello."], (A._replace(learned=False), U, A), GREETING),
        (["user:Hi", "user:there", "assistant:Hello."], (Message("user", "Hi\n\nthere"), A), JOINED),
        (["user:Hi", "assistant:Hello.", "user:more"], (U, A), UNANSWERED),
        (["user:Hi", "assistant:Hello.", "assistant:"], (U, A), "cut where a message (assistant) is empty"),
        (["user:Hi", "assistant:Hello.", "system:Be rude."], (U, A), "cut where a message is from 'system'"),
        (["user:Hi", "assistant:Hello.", "narrator:Rain."], (U, A), "cut where a message has the role 'narrator'"),
        (
            ["user:Hi", "assistant:Hello.", "tool:12", "assistant:It is 12."],
            (U, A),
            "cut where a message is a tool call or its result, which cannot be learned",
        ),
    ],
)
def test_a_turn_that_cannot_be_used_costs_itself_and_not_its_dialog(
    messages: list[str], dialog: Dialog, note: str
) -> None:
    turns = [message.partition(":") for message in messages]
    row = {"messages": [turn(role, content) for role, _, content in turns]}
    assert parsed(row)[:2] == (dialog, {note: 1})


def test_what_is_said_of_an_answer_is_heeded() -> None:
    marked = {**turn("assistant", "Hello."), "weight": 0}
    row = {"messages": [turn("user", "Hi"), marked, turn("user", "Hi"), turn("assistant", "Hello.")]}
    dialog, notes, _ = parsed(row)
    assert [message.learned for message in dialog] == [True, False, True, True]
    assert notes == {UNWEIGHTED: 1}
    with pytest.raises(RowError, match="no answer to learn"):
        parsed({"messages": [turn("user", "Hi"), marked]})
    reasoned = {**turn("assistant", "Hello."), "reasoning_content": "Hm."}
    assert parsed({"messages": [turn("user", "Hi"), reasoned], "tools": [{}]})[1] == {REASONING: 1, TOOLS: 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "Which?", "choices": ["a", "b"], "answer": 1}, "answer is the number of one of its choices"),
        ({"prompt": "Hi", "response": float("nan")}, "response is NaN, not text"),
        ({"messages": "[not JSON]"}, "messages is text, not a list"),
    ],
)
def test_a_value_that_is_no_text_is_named_for_what_it_is(row: Any, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        parsed(row)


@pytest.mark.parametrize("label", [False, "False", 0])
def test_rows_marked_as_bad_are_left_out_and_counted(label: Any) -> None:
    parser = RowParser()
    row = {"prompt": "Hi", "completion": "Hello."}
    assert parser.parse({**row, "label": True}) == (U, A)
    with pytest.raises(RowError, match=MARKED_BAD):
        parser.parse({**row, "label": label})
    assert parser.notes == {MARKED_BAD: 1}


def test_all_other_columns_are_listed_once() -> None:
    row = {"": 0, "prompt": "Hi", "response": "Hello.", "category": "x", "lang": "en", "system": ""}
    assert parsed(row)[2] == ["category", "lang"]


def test_columns_of_any_name_can_be_mapped() -> None:
    parser = RowParser(columns={"prompt": "Frage", "response": "antwort"})
    row = {"frage": "Hi", "Antwort": "Hello.", "messages": "none"}
    assert (parser.parse(row), parser.format, parser.unused) == ((U, A), "prompt-response", ["messages"])
    row |= {"System": "Be brief.", "text": "none"}
    assert parser.parse(row) == (("system", "Be brief.", True), U, A)
    parser = RowParser(columns={"prompt": "frage", "response": "antwort", "system": "rolle", "text": "text"})
    row["rolle"] = "Be kind."
    assert parser.parse(row)[0].content == "Be kind."
    assert parser.unused == ["messages", "system", "text"]
    with pytest.raises(RowError, match=MARKED_BAD):
        parser.parse({**row, "label": False})
    parser = RowParser(columns={"prompt": "frage", "response": "antwort"}, source="data.csv")
    with pytest.raises(RowError, match=r"its columns \(fragen, antwort\) match no known format"):
        parser.parse({"fragen": 1, "antwort": 2})
    assert parser.unknown is not None
    message = "data.csv has no column 'frage' (did you mean 'fragen'?); it has fragen, antwort"
    assert parser.unknown.message == message


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["prompt"], "'prompt' is not of the form ROLE=COLUMN"),
        (["promt=a"], r"'promt' is not a column role \(did you mean 'prompt'\?\)"),
        (["prompt=a", "prompt=b"], "a role has two columns"),
    ],
)
def test_a_wrong_mapping_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        DataConfig(columns=tuple(words))
    assert DataConfig(columns=tuple(f"{role}=x" for role in COLUMN_ROLES)).column_of["label"] == "x"


@pytest.mark.parametrize("columns", [["a", "b"], ["instruction"], ["prompt"], ["output"], []])
def test_unknown_columns_are_listed_with_the_shapes_that_are_understood(columns: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        recognise_format(columns, source="data.csv")
    assert f"data.csv has the columns {', '.join(columns) or 'none'}, " in refused.value.message
    assert ", ".join(FORMATS) in refused.value.message
    mapped = "--columns prompt=a --columns response=b, or: " if len(columns) > 1 else ""
    assert typed(refused.value) == f"{mapped}--dataset starter"


@pytest.mark.parametrize(
    ("columns", "mapped"),
    [
        (
            ["Kundenfrage", "Unsere Antwort", "system", "notiz", "weight"],
            ["prompt=Kundenfrage", "response=Unsere Antwort"],
        ),
        (["id", "Antwort", "question"], ["prompt=question", "response=Antwort"]),
        (["output", "weight", "die Frage, kurz"], []),
        (["frage", "weight", "label"], []),
        (["a=b", "c\nd", "e"], []),
    ],
)
def test_a_suggested_mapping_takes_columns_by_what_they_mean(columns: list[str], mapped: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        recognise_format(columns, source="data.csv")
    hint = typed(refused.value, "data", "inspect", "my data.csv") or ""
    first, _, other = hint.partition(", or: ")
    if not mapped:
        assert first == "dialogkit data inspect starter"
        return
    words = ["dialogkit", "data", "inspect", "my data.csv", *(w for each in mapped for w in ("--columns", each))]
    assert (shlex.split(first), other) == (words, "dialogkit data inspect starter")
    assert RowParser(columns=DataConfig(columns=tuple(mapped)).column_of).parse(dict.fromkeys(columns, "x"))


def test_a_known_shape_that_is_no_dialog_is_named() -> None:
    with pytest.raises(DataError, match="is a chat export of Telegram"):
        recognise_format(["name", "type", "id", "messages"], source="result.json")
    with pytest.raises(DataError, match="is a chat export of Discord"):
        recognise_format(["guild", "channel", "messages"], source="result.json")
    with pytest.raises(DataError, match="is a chat export of Slack"):
        recognise_format(["type", "user", "text", "ts", "team"], source="day.json")
    with pytest.raises(DataError, match="is PersonaChat data"):
        recognise_format(["personality", "utterances"], source="data.jsonl")


def test_of_very_many_columns_twelve_are_listed() -> None:
    with pytest.raises(DataError) as refused:
        recognise_format([f"column{number:04}" for number in range(5000)], source="data.csv")
    assert "column0011, which match none" in refused.value.message


@pytest.mark.parametrize(
    ("row", "kind", "problem"),
    [
        ({"instruction": "Hi"}, "alpaca", "output is missing, not text"),
        ({"instruction": "Hi", "output": None}, "alpaca", "output is null, not text"),
        ({"instruction": "Hi", "output": True}, "alpaca", "output is true or false, not text"),
        ({"instruction": "Hi", "output": float("nan")}, "alpaca", "output is NaN, not text"),
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
        ({"messages": [5]}, "messages", r"messages\[1\] is a number, not an object"),
        ({"messages": ["Hi"]}, "messages", "no message from the assistant"),
        ({"messages": [turn("user", "Hi"), turn("tool", "x")]}, "messages", r"messages\[2\] is a tool call"),
        ({"messages": [turn("user", "Hi"), turn("Ann", "x")]}, "messages", r"messages\[2\] has the role 'Ann'"),
        ({"messages": [turn("user", [{"type": "image"}])]}, "messages", "holds a part of type 'image'"),
        ({"text": "Hi"}, "text", "the text has no chat markers"),
        ({"prompt": "Hi", "Prompt": "Hi", "response": "x"}, "prompt-response", "two columns are called 'prompt'"),
        ({"messages": [{"content": "x"}]}, "messages", r"messages\[1\] has the role None"),
        ({"messages": [turn("user", "Hi"), turn("assistant", None)]}, "messages", "content is null, not text"),
        ({"messages": [turn("assistant", "x")]}, "messages", "no answer to learn"),
        ({"conversations": [{"value": "Hi"}]}, "sharegpt", "conversations.1. has the role None"),
    ],
)
def test_a_row_that_is_no_dialog_says_why(row: Any, kind: str, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        RowParser(kind).parse(row)
