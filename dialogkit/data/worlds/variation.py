"""Varies questions as people do: politeness, contractions, case, missing marks and typos. Answers never vary."""

import random
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from dialogkit.data.worlds.templates import Facts, Template

T = TypeVar("T")

CONTRACTED, TYPO, INDIRECT, POLITE, LOWER, UNMARKED, HASTY = 0.3, 0.05, 0.12, 0.18, 0.2, 0.2, 0.3
"""How often each variation is applied, where it can be; `HASTY` to what is in lower case."""

_BEFORE = (
    "Please tell me: ",
    "Can you tell me: ",
    "Could you tell me: ",
    "Do you know: ",
    "Tell me, ",
    "Quick question: ",
    "I have a question: ",
    "Just curious: ",
)
_HELLO = ("Hi! ", "Hello! ", "Hey, ", "Hi, ", "Hello, ", "Okay, ", "So, ")
_BEHIND = (" Do you know?", " Can you tell me?", " I forgot.", " Thanks!")
_BETWEEN = ("Thanks! ", "Thank you. ", "Okay. ", "Okay, thanks. ", "Great. ", "Good. ", "I see. ", "Ah, okay. ")
"""Said of the answer before, in front of what follows."""
_KNOWING = (
    "Do you know",
    "Can you tell me",
    "Could you tell me",
    "Tell me",
    "I want to know",
    "I would like to know",
)
_FOLLOWS = re.compile(r"(?:and|what about|how about|now|then|another|one more)\b", re.IGNORECASE)
_ASKS = re.compile(r"(?:what|which|who|where|when|why|how)\b[^?]*\?$", re.IGNORECASE)
_ORDERS = re.compile(
    r"(?:give|tell|name|write|explain|say|spell|count|list|show|describe|suggest|compute|add|find|compare|rewrite"
    r"|translate|sing|make)\b",
    re.IGNORECASE,
)

_DIRECT = re.compile(
    r"(What|Who|Where) (is|are) ((?:the|its|your|my|their|it|[A-Z]\w+)\b"
    r"(?: (?!called|for|like|made|left|used|doing|now|today|then|there|again|at|if|when|usually|kept|who|that)"
    r"[\w']+)*)\?"
)
"""A question that can be put indirectly: `Do you know what the capital of France is?`."""

_CONTRACTIONS = (
    (r"^(What|Who|Where|How|That|It) is(?= \w| ?$)(?! (?:it|that)\b)", r"\1's"),
    (r"\bI am\b", "I'm"),
    (r"\bI would\b", "I'd"),
    (r"\b([Dd])o not\b", r"\1on't"),
    (r"\b([Dd])oes not\b", r"\1oesn't"),
    (r"\b([Ii])s not\b", r"\1sn't"),
    (r"\b([Cc])annot\b", r"\1an't"),
)
_HASTE = ((r"(?<=\w)'(?=(?:s|m|t|re)\b)", ""), (r"\byou\b", "u"), (r"\bplease\b", "pls"))
_EXPANDED = (
    (r"\bu\b", "you"),
    (r"\bpls\b", "please"),
    (r"\b(what|who|where|how|that)s\b", r"\1 is"),
    (r"\bim\b", "i am"),
    (r"\bcant\b", "cannot"),
    (r"\b(do|does|is)nt\b", r"\1 not"),
    (r"\b(what|who|where|how|that|it)'s\b", r"\1 is"),
    (r"\bi'm\b", "i am"),
    (r"\bi'd\b", "i would"),
    (r"\bcan't\b", "cannot"),
    (r"\b(do|does|is)n't\b", r"\1 not"),
)
_WRAPS = "|".join(
    re.escape(text.strip().lower())
    for text in sorted((*_BEFORE, *_HELLO, *_BETWEEN, "Please", "Could you please"), key=len, reverse=True)
)
_BEHINDS = "|".join(re.escape(text.lower().rstrip("?.!")) for text in _BEHIND)
_WRAPPED = re.compile(rf"^(?:{_WRAPS})\s+|(?<=\?)(?:{_BEHINDS})(?=\W*$)|,? please(?=\W*$)")
_KNOWN = re.compile(
    rf"^(?:{'|'.join(text.lower() for text in _KNOWING)}) (what|who|where) (.+) (is|are)$", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z]{4,}")


class Dice:
    """Random choices that are the same everywhere: only `random()` of Python's generator is used, as promised."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self._random() < probability

    def pick(self, things: Sequence[T]) -> T:
        """Return one of some things."""
        return things[int(self._random() * len(things))]

    def pick_weighted(self, cumulative: Sequence[float]) -> int:
        """Return an index with the probabilities of cumulative weights."""
        return bisect_right(cumulative, self._random() * cumulative[-1], hi=len(cumulative) - 1)


def normal_form(text: str) -> str:
    """Return text without all that is varied, typos apart: two texts with one normal form are one phrasing."""
    text = " ".join(text.replace("\u2019", "'").casefold().split())
    for short, whole in _EXPANDED:
        text = re.sub(short, whole, text)
    text = _WRAPPED.sub("", text)
    text = " ".join(re.sub(r"[^\w{}\s+*/=<>-]|(?<=\w)-(?=\w)", " ", text).split())
    return _KNOWN.sub(r"\1 \3 \2", text)


def vary(template: Template, row: Facts, other: Facts | None, dice: Dice) -> str:
    """Return a phrasing filled with the values of a row, and varied; the values themselves get no typo."""
    plain = template.parts[::2]
    if dice.chance(CONTRACTED):
        plain = _contracted(plain)
    if dice.chance(TYPO):
        plain = _with_typo(plain, dice)
    text = template.fill(row, other, plain)
    if dice.chance(INDIRECT) and (found := _DIRECT.fullmatch(text)):
        asked = f"{dice.pick(_KNOWING)} {found[1].lower()} {found[3]} {found[2]}"
        text = asked + ("?" if " you " in asked else ".")
    elif dice.chance(POLITE):
        text = _polite(text, dice)
    if dice.chance(LOWER):
        text = text.lower()
        if dice.chance(HASTY):
            for whole, short in _HASTE:
                text = re.sub(whole, short, text)
    if dice.chance(UNMARKED):
        text = text.rstrip("?.! ") or text
    return text


@lru_cache(maxsize=10_000)
def _contracted(parts: tuple[str, ...]) -> tuple[str, ...]:
    for whole, short in _CONTRACTIONS:
        parts = tuple(re.sub(whole, short, part) for part in parts)
    return parts


def _with_typo(parts: tuple[str, ...], dice: Dice) -> tuple[str, ...]:
    """Return plain parts with one letter of one word swapped with the next, left out or doubled."""
    places = [(at, word) for at, part in enumerate(parts) for word in _WORD.finditer(part)]
    if not places:
        return parts
    at, word = dice.pick(places)
    letter = dice.pick(range(word.start() + 1, word.end() - 1))
    before, one, two, after = parts[at][:letter], parts[at][letter], parts[at][letter + 1], parts[at][letter + 2 :]
    wrong = dice.pick([before + two + one + after, before + two + after, before + one + one + two + after])
    return (*parts[:at], wrong, *parts[at + 1 :])


def _polite(text: str, dice: Dice) -> str:
    if _FOLLOWS.match(text):
        return dice.pick(_BETWEEN) + text
    if _ASKS.match(text):
        kind = dice.pick(range(8))
        if kind < 4:
            return dice.pick(_BEFORE) + text[0].lower() + text[1:]
        if kind < 6:
            return _behind_hello(text, dice)
        return f"{text[:-1]}, please?" if kind == 6 else text + dice.pick(_BEHIND)
    if _ORDERS.match(text):
        kind = dice.pick(range(4))
        if kind == 3:
            return _behind_hello(text, dice)
        if kind == 0:
            return f"Please {text[0].lower()}{text[1:]}"
        if kind == 1 and text.endswith("."):
            return f"Could you please {text[0].lower()}{text[1:-1]}?"
        return f"{text[:-1]}, please." if text.endswith(".") else text
    return text


def _behind_hello(text: str, dice: Dice) -> str:
    hello = dice.pick(_HELLO)
    return hello + (text[0].lower() + text[1:] if hello.endswith(", ") else text)
