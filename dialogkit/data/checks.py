"""Checks: what a right reply contains, and whether a reply is right.

A check is one of these values, which JSON and YAML hold alike:

- a text: the reply contains it, regardless of case, accents and blanks, and not as a part of a longer word;
- a number: the reply contains it, in digits or, up to a hundred, in words;
- `{"pattern": ...}`: the regular expression is found in the reply, regardless of case;
- a list of checks: one of them holds.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from dialogkit.data.numerals import MOST, in_words
from dialogkit.errors import DataError, shortened

Check = str | int | float | dict[str, str] | list[Any]
"""What a right reply contains."""

PATTERN = "pattern"
_LONGEST_PATTERN = 500
_LONGEST_REPLY = 20_000
"""Characters of a reply that are looked at."""
PATTERN_SECONDS = 2.0
"""The longest search of a pattern: some patterns would search for years."""


def is_right(reply: str, check: Check) -> bool:
    """Return whether a reply is right by a check.

    Raises: DataError if a pattern takes too long.
    """
    return _holds(reply[:_LONGEST_REPLY], check)


def check_problem(check: Any) -> str | None:
    """Return what is wrong with a check, or None."""
    match check:
        case str():
            return None if _plain(check) else "an empty text cannot be checked"
        case bool():
            return f"{str(check).lower()} is not a check; a text needs quotes"
        case int() | float():
            return None
        case list():
            problems = (check_problem(each) for each in check)
            return next(filter(None, problems), None) if check else "an empty list cannot be checked"
        case {"pattern": str(pattern)} if len(check) == 1:
            return _pattern_problem(pattern)
        case _:
            kinds = "a text, a number, a list or {pattern: ...}"
            return f"{shortened(repr(check), 60)} is not a check; it must be {kinds}"


def checks_of(check: Any, answers: int) -> list[Check | None]:
    """Return the check of each answer of a row: None for an answer without one.

    Args:
        check: the `check` of the row: a list with a value for each answer, or the check of its only answer.
        answers: the number of answers of the row.

    Raises: DataError if it is not a check, or does not suit the number of answers.
    """
    if check is None:
        return [None] * answers
    each = check if isinstance(check, list) and len(check) == answers else [check]
    if len(each) != answers:
        found = f"{len(check)} values" if isinstance(check, list) else "one value"
        raise DataError(f"check has {found} for {answers} answers")
    for value in each:
        if value is not None and (problem := check_problem(value)):
            raise DataError(f"check: {problem}")
    return each


def _holds(reply: str, check: Check) -> bool:
    match check:
        case str():
            return _contains(reply, check)
        case int() | float():
            return any(number == check for number in _numbers(reply))
        case list():
            return any(_holds(reply, each) for each in check)
        case _:
            return _matches(reply, check[PATTERN])


def _contains(reply: str, text: str) -> bool:
    wanted = re.escape(_plain(text))
    return re.search(rf"(?<!\w){wanted}(?!\w)", _plain(reply)) is not None


@lru_cache(maxsize=1024)
def _plain(text: str) -> str:
    """Return text without case and accents, with straight quotes and single blanks."""
    letters = unicodedata.normalize("NFKD", text.replace("\u2019", "'").replace("\u2018", "'")).casefold()
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).split())


@cache
def _number_words() -> dict[str, int]:
    words = {in_words(number).replace("-", " "): number for number in range(MOST + 1)}
    return words | {"a hundred": 100, "hundred": 100}


@cache
def _in_words() -> re.Pattern[str]:
    longest_first = sorted(_number_words(), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(longest_first)})\b")


def _numbers(reply: str) -> Iterator[float]:
    """Yield the numbers of a reply: those in digits, then those in words."""
    text = _plain(reply).replace("\u2212", "-")
    for found in re.finditer(r"(?:(?<![\w.)])-)?(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)", text):
        yield float(found[0].replace(",", ""))
    for found in _in_words().finditer(text.replace("-", " ")):
        yield float(_number_words()[found[0]])


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    import regex

    return regex.compile(pattern, regex.IGNORECASE)


def _pattern_problem(pattern: str) -> str | None:
    if len(pattern) > _LONGEST_PATTERN:
        return f"the pattern has {len(pattern):,} characters; {_LONGEST_PATTERN} are the most"
    import regex

    try:
        _compiled(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        return f"the pattern {shortened(repr(pattern), 60)} is not a regular expression: {error}"
    return None


def _matches(reply: str, pattern: str) -> bool:
    try:
        return _compiled(pattern).search(reply, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise DataError(
            f"the pattern {shortened(repr(pattern), 60)} of a check takes longer than {PATTERN_SECONDS:g} s",
            hint="write a simpler pattern",
        ) from None
