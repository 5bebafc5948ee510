"""The built-in tables of facts: those that are computed, so that nobody writes them down.

Each is a function whose parameters a topic may give: `facts: {table: sums, to: 20}`. It returns the columns and
the rows.
"""

import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from dialogkit.data.numerals import in_words

Value = str | int | float
Rows = tuple[list[str], list[list[Value]]]


WEIGHT = "weight"
"""The column that is no slot: how often dialogs ask about a row, 1 where it is missing."""


class BuiltIn(NamedTuple):
    """A built-in table.

    Attributes:
        make: returns the columns and the rows.
        known_by: if its facts follow from each other, so that a part of them can be held out of training: the
            columns by which a fact is known. Rows with the same values in them are held out together.
    """

    make: Callable[..., Rows]
    known_by: tuple[str, ...] = ()


_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31,
    "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
_WORDS = re.findall(
    r"\w+",
    """
    apple ball bird boat book bread cake cat chair cloud corn dog door duck fish flag frog game garden gold hand
    hat horse house ice jam key kite lamp leaf lemon lion milk moon mouse nest ocean orange owl paper pen pig rain
    ring river road rose salt sea ship snow star stone sun table tree water wind wolf zebra
    """,
)
_ORDINALS = re.findall(r"\w+", "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")


def _rarer(number: int) -> float:
    """Return how often a calculation with a number as its largest comes up: people ask for small ones."""
    share = 10 / (10 + number)
    return share * share * share * share * share  # not `**`, whose last bit differs between machines


def sums(to: int = 100) -> Rows:
    """Return a, b and sum, for all sums up to `to`; four of five are of numbers up to 10."""
    pairs = [(a, b) for a in range(to + 1) for b in range(to + 1 - a)]
    return ["a", "b", "sum", WEIGHT], [[a, b, a + b, _rarer(max(a, b))] for a, b in pairs]


def differences(to: int = 100) -> Rows:
    """Return a, b and difference, for all a up to `to` that are not less than b; most are of small numbers."""
    pairs = [(a, b) for a in range(to + 1) for b in range(a + 1)]
    return ["a", "b", "difference", WEIGHT], [[a, b, a - b, _rarer(a)] for a, b in pairs]


def products(to: int = 10) -> Rows:
    """Return a, b and product, for factors up to `to`."""
    numbers = range(to + 1)
    return ["a", "b", "product"], [[a, b, a * b] for a, b in product(numbers, numbers)]


def comparisons(to: int = 100) -> Rows:
    """Return a, b, greater and smaller, for all different numbers up to `to`; most are small."""
    numbers = range(to + 1)
    pairs = [(a, b) for a, b in product(numbers, numbers) if a != b]
    rows: list[list[Value]] = [[a, b, max(a, b), min(a, b), _rarer(max(a, b))] for a, b in pairs]
    return ["a", "b", "greater", "smaller", WEIGHT], rows


def numbers(to: int = 100) -> Rows:
    """Return number, words, before and after, for 1 to `to`, which is at most 99."""
    rows: list[list[Value]] = [[n, in_words(n), n - 1, n + 1] for n in range(1, min(to, 99) + 1)]
    return ["number", "words", "before", "after"], rows


def letters(words: Sequence[str] = _WORDS) -> Rows:
    """Return word, spelled (as `c-a-t`), letters (their number), first, last and backwards."""
    columns = ["word", "spelled", "letters", "first", "last", "backwards"]
    return columns, [[word, "-".join(word), len(word), word[0], word[-1], word[::-1]] for word in words]


def days() -> Rows:
    """Return day, before, after and position (as `first`), of the days of the week."""
    return ["day", "before", "after", "position"], _circle(_DAYS)


def months() -> Rows:
    """Return month, before, after, position, number and days (of a year that is no leap year)."""
    rows = [[*row, at, _MONTHS[str(row[0])]] for at, row in enumerate(_circle(list(_MONTHS)), 1)]
    return ["month", "before", "after", "position", "number", "days"], rows


def _circle(names: Sequence[str]) -> list[list[Value]]:
    return [[name, names[at - 1], names[(at + 1) % len(names)], _ORDINALS[at]] for at, name in enumerate(names)]


TABLES: dict[str, BuiltIn] = {
    "sums": BuiltIn(sums, ("a", "b", "sum")),
    "differences": BuiltIn(differences, ("a", "b", "difference")),
    "products": BuiltIn(products),
    "comparisons": BuiltIn(comparisons, ("greater", "smaller")),
    "numbers": BuiltIn(numbers),
    "letters": BuiltIn(letters),
    "days": BuiltIn(days),
    "months": BuiltIn(months),
}
"""The built-in tables by their names."""
