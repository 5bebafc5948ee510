"""Replies grow by whole words, and turns may have several lines."""

import io
import sys

import pytest

from dialogkit.cli.terminal import WordWrap, between_words, read_turns

ONE = "\N{CJK UNIFIED IDEOGRAPH-4E00}"  # two columns wide


@pytest.mark.parametrize("pieces", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the top_p of it", "the top_p\nof it"),
        ("exactly ten", "exactly\nten"),
        ("a\n\n  b c\n", "a\n\n  b c\n"),
        ("a  long-long-long word", "a\nlong-long-long word"),
        (ONE * 7, ONE * 5 + "\n" + ONE * 2),
        ("", ""),
    ],
)
def test_no_word_is_broken_at_the_edge(text: str, shown: str, pieces: int) -> None:
    written: list[str] = []
    wrap = WordWrap(written.append, 10)
    for start in range(0, len(text), pieces):
        wrap.add(text[start : start + pieces])
    wrap.end()
    assert "".join(written) == shown


def test_a_command_in_a_text_is_not_broken() -> None:
    text = "a perplexity of 874; `dialogkit plan` names a model that talks"
    assert between_words(text, 20, column=6) == (
        "a perplexity\nof 874;\n`dialogkit plan`\nnames a model that\ntalks"
    )


def test_a_backslash_continues_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\\\n  b\\\nc\n\nnext\nlast\\\n"))
    assert list(read_turns(print, on_interrupt="", on_unreadable=print)) == ["a\n  b\nc", "next", "last"]


def test_a_line_in_another_encoding_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = io.BytesIO(b"one\rtwo\n" + b"caf\xe9 more\nlast\n\xe9")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    refused: list[str] = []
    assert list(read_turns(print, on_interrupt="", on_unreadable=refused.append)) == ["one\rtwo", "last"]
    assert refused == ["UTF-8", "UTF-8"]
