"""What a right reply contains."""

from typing import Any

import pytest

from dialogkit.data.checks import check_problem, checks_of, is_right
from dialogkit.errors import DataError


@pytest.mark.parametrize(
    ("reply", "check", "right"),
    [
        ("It is Paris.", "Paris", True),
        ("it is PARIS, of course", "paris", True),
        ("It is Parisian.", "Paris", False),
        ("No.", "Paris", False),
        ("The capital is Bogotá.", "Bogota", True),
        ("Straße", "STRASSE", True),
        ("I don\u2019t know", "don't", True),
        ("from 8   to\n18", "from 8 to 18", True),
        ("In C++ it is easy", "c++", True),
        ("7 plus 5 is 12.", 12, True),
        ("It is twelve.", 12, True),
        ("It costs 12.50 euros.", 12, False),
        ("It costs 2.50 euros.", 2.5, True),
        ("112", 12, False),
        ("1,200 people", 1200, True),
        ("It is -3.", -3, True),
        ("10-3", 3, True),
        ("5 - 3 = 2", -3, False),
        ("That is twenty-one.", 21, True),
        ("That is twenty one.", 21, True),
        ("That is twenty-one.", 20, False),
        ("That is one hundred.", 100, True),
        ("A hundred!", 100, True),
        ("Someone came.", 1, False),
        ("Yes, it is.", {"pattern": r"^(yes|sure)\b"}, True),
        ("Oh yes.", {"pattern": r"^(yes|sure)\b"}, False),
        ("Hello!", ["hi", "hello"], True),
        ("Good day!", ["hi", "hello"], False),
        ("It is 12", ["eleven", {"pattern": "dozen"}, 12], True),
    ],
)
def test_a_reply_is_right_if_it_contains_what_the_check_asks_for(reply: str, check: Any, right: bool) -> None:
    assert check_problem(check) is None
    assert is_right(reply, check) is right


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ("", "an empty text"),
        (" \t", "an empty text"),
        ([], "an empty list"),
        (["a", []], "an empty list"),
        (True, "true is not a check"),
        (None, "None is not a check"),
        ({"pattern": "("}, "'(' is not a regular expression"),
        ({"pattern": "x" * 501}, "501 characters"),
        ({"pattern": 1}, "is not a check"),
        ({"text": "a"}, "is not a check"),
    ],
)
def test_what_is_no_check_is_said(check: Any, problem: str) -> None:
    assert problem in str(check_problem(check))


def test_a_pattern_that_would_search_for_years_ends_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialogkit.data.checks.PATTERN_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"a\+\)\+"):
        is_right("a" * 5000 + "b", {"pattern": r"^(?:(?:a+)+b?)+c$"})


@pytest.mark.parametrize(
    ("check", "answers", "each"),
    [
        (None, 2, [None, None]),
        ("Paris", 1, ["Paris"]),
        (["Paris", None, 12], 3, ["Paris", None, 12]),
        (["Hi", "Hello"], 1, [["Hi", "Hello"]]),
        ([["Hi", "Hello"]], 1, [["Hi", "Hello"]]),
    ],
)
def test_the_checks_of_a_row_stand_beside_its_answers(check: Any, answers: int, each: list[Any]) -> None:
    assert checks_of(check, answers) == each


@pytest.mark.parametrize(
    ("check", "problem"), [("a", "one value for 2"), (["a"], "1 values for 2"), (["a", ""], "an empty text")]
)
def test_checks_that_do_not_suit_the_answers_are_refused(check: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        checks_of(check, 2)
