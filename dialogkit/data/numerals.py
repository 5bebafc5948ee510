"""Numbers as words."""

import re

_SMALL: list[str] = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

MOST = 100
"""The highest number that is known as words."""


def in_words(number: int) -> str:
    """Return a number from 0 to 100 as words."""
    if number < len(_SMALL):
        return _SMALL[number]
    if number == MOST:
        return "one hundred"
    tens, one = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[one]}" if one else "")
