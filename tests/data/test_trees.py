"""Of message trees the best-ranked path is a dialog, and every message outside of it is accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.data import DataConfig
from dialogkit.data.row_parser import RowParser
from dialogkit.data.sources import find_source, read_dialogs
from dialogkit.data.trees import LOST, read_trees
from dialogkit.data.turns import RowError


def message(name: str, parent: str | None, rank: int | None = None) -> dict[str, Any]:
    role = "assistant" if name.isupper() else "prompter"
    return {"message_id": name, "parent_id": parent, "role": role, "text": name, "rank": rank}


def test_what_is_not_on_a_best_path_is_counted(in_temporary_folder: Path) -> None:
    rows = [
        message("a", None),
        message("X", "a", 1),
        message("B", "a", 0),
        message("x", "X"),
        message("c", "B"),
        message("D", "c"),
        message("e", None),
        message("F", "e"),
        message("loop", "loop"),
        message("G", "gone"),
        message("g", "G"),
    ]
    Path("trees.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = DataConfig(dataset="trees.jsonl")
    raw = read_dialogs(find_source(config), config)
    assert [[turn.content for turn in dialog] for dialog in raw.dialogs] == [["a", "B", "c", "D"], ["e", "F"]]
    assert raw.places == ["trees.jsonl:1", "trees.jsonl:7"]
    assert raw.notes == {"2 messages beside the best-ranked path left out": 1}
    assert (raw.rows, raw.unusable) == (5, 3)
    assert raw.bad_rows == [f"trees.jsonl:{line}: {LOST}" for line in (9, 10, 11)]


def test_trees_of_any_content_are_read_or_refused_row_by_row() -> None:
    rows: list[Any] = [
        {"message_id": ["a"], "parent_id": None, "role": "prompter", "text": "one"},
        {"message_id": {"b": 1}, "parent_id": ["a"], "role": "assistant", "text": "two"},
        {"message_id": "c", "parent_id": {"b": 1}, "role": "prompter", "text": "three"},
        {"message_id": ["a"], "parent_id": "c", "role": "assistant", "text": "in a circle"},
        {"message_id": "d", "parent_id": None, "role": "prompter", "text": "x", "Text": "y"},
    ]
    trees = read_trees((f"line {number}", row) for number, row in enumerate(rows, 1))
    (twice, unclear), (place, row) = trees.rows
    assert (twice, place) == ("line 5", "line 1")
    with pytest.raises(RowError, match="two columns are called 'text'"):
        RowParser("oasst").parse(unclear)
    assert [message["text"] for message in row["messages"]] == ["one", "two", "three"]
    assert (trees.beside, trees.branched, trees.lost) == (1, 1, [])
