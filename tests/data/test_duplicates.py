"""Measures of texts, each against what can be counted by hand or by brute force."""

import math
import random
import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.data import duplicates, statistics

WORDS = [f"word{number}" for number in range(60)]


def changed_texts(number: int, *, seed: int) -> list[str]:
    """Return texts of 1 to 60 words, each four times with up to five words changed."""
    chance = random.Random(seed)
    texts = []
    for _ in range(number):
        words = chance.choices(WORDS, k=chance.randrange(1, 60))
        for _ in range(5):
            texts.append(" ".join(words))
            words = list(words)
            words[chance.randrange(len(words))] = chance.choice(WORDS)
    return list(dict.fromkeys(texts))


def shingles_of(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    """Return the similarity of every pair that is near."""
    sets = [shingles_of(text) for text in texts]
    similarities = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in range(len(texts)) for i in range(j)
    }
    return {pair: value for pair, value in similarities.items() if value >= duplicates.NEAR}


def found(texts: list[str]) -> dict[tuple[int, int], float]:
    pairs = duplicates.near_pairs(texts)
    return {(int(a), int(b)): value for a, b, value in zip(*pairs, strict=True)}


def test_the_near_pairs_are_those_of_a_comparison_of_all_with_all() -> None:
    texts = changed_texts(120, seed=1)
    expected = brute_force(texts)
    assert (len(texts) > 400, len(expected) > 150) == (True, True)
    assert found(texts) == pytest.approx(expected)


def test_neither_order_nor_the_size_of_chunks_changes_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = changed_texts(40, seed=2)
    expected = {frozenset((texts[a], texts[b])) for a, b in found(texts)}
    monkeypatch.setattr(statistics, "CHUNK_CHARACTERS", 500)
    monkeypatch.setattr(duplicates, "PAIRED_SHINGLES", 100)
    turned = texts[::-1]
    assert {frozenset((turned[a], turned[b])) for a, b in found(turned)} == expected
    assert expected


def test_of_many_texts_alike_each_is_found_with_few_comparisons() -> None:
    words = " ".join(WORDS)
    texts = [f"{number} {words} {number + 1}" for number in range(2000)]
    pairs = duplicates.near_pairs(texts)
    assert len(pairs.first) < 100 * len(texts)
    assert set(pairs.first.tolist()) | set(pairs.second.tolist()) == set(range(2000))
    assert set(duplicates.group_labels(2000, pairs).tolist()) == {0}


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Hello, World! How are you?", "hello world how ARE you", True),
        ("\uff28\uff45llo there, my friend", "Hello there my friend", True),  # full width
        ("Stra\u00dfe und Weg", "STRASSE UND WEG", True),
        ("Hi", "hi!", True),
        ("a b", "a c", False),
        ("a b c d e", "a b c x y", False),
        ("!!!", "???", False),  # no words, nothing to compare
        # Without spaces, a character is a word: one of twenty changed leaves 15 of 21 shingles.
        ("\u8702\u871c\u662f\u871c\u8702\u505a\u7684", "\u8702\u871c\u662f\u871c\u8702\u505a\u7684\u3002", True),
        ("".join(map(chr, range(0x4E00, 0x4E28))), "".join(map(chr, range(0x4E00, 0x4E27))) + "\u9999", True),
        ("".join(map(chr, range(0x4E00, 0x4E14))), "".join(map(chr, range(0x4E14, 0x4E28))), False),
    ],
)
def test_words_are_compared_without_case_and_marks(one: str, other: str, near: bool) -> None:
    assert bool(found([one, "something else altogether, long enough", other])) == near


def test_nothing_is_near_to_nothing() -> None:
    for texts in ([], [""], ["one text"], ["", "", " "]):
        assert found(texts) == {}


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_groups_are_what_pairs_connect(count: int, edges: list[tuple[int, int]]) -> None:
    edges = [(a % count, b % count) for a, b in edges]
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    labels = duplicates.group_labels(count, duplicates.Pairs(ends[:, 0], ends[:, 1], np.ones(len(edges)))).tolist()
    reached = {index: {index} for index in range(count)}
    for _ in range(count):
        for a, b in edges:
            reached[a] |= reached[b]
            reached[b] |= reached[a]
    assert labels == [min(reached[index]) for index in range(count)]


def test_scripts_are_counted_by_letters_alone() -> None:
    text = "abC\u00e9 12,.! " + "\u0436\u042f" + "\u4f60" + "\u3072" + "\u0645\u0648" + "\u05d0" + "\U0001f600"
    shares = statistics.script_fractions(statistics.count_characters([text, "\u0915 \uac00"]))
    counts = {"Latin": 4, "Cyrillic": 2, "Arabic": 2, "Han": 1, "Hiragana": 1, "Hebrew": 1, "Devanagari": 1}
    assert shares == pytest.approx({name: n / 13 for name, n in {**counts, "Hangul": 1}.items()})
    assert next(iter(shares)) == "Latin"


def test_a_letter_in_another_form_is_of_its_script() -> None:
    forms = "\uff21\u00aa\U0001d400\u210c\ufb01" + "\ufe8d" + "\uff76" + "\uf900"
    shares = statistics.script_fractions(statistics.count_characters([forms]))
    assert shares == pytest.approx({"Latin": 5 / 8, "Arabic": 1 / 8, "Katakana": 1 / 8, "Han": 1 / 8})


def test_texts_without_letters_have_no_script() -> None:
    assert statistics.script_fractions(statistics.count_characters(["1 + 1 = 2", "\U0001f600"])) == {}
    assert statistics.script_fractions(statistics.count_characters([])) == {}


def test_surprise_is_the_mean_information_of_the_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["aaab", "ab", "\U0001f600"]  # four a, two b and one face
    bits = {"a": -math.log2(4 / 7), "b": -math.log2(2 / 7), "\U0001f600": -math.log2(1 / 7)}
    expected = [sum(bits[character] for character in text) / len(text) for text in texts]
    counts = statistics.count_characters(texts)
    assert statistics.surprise(texts, counts).tolist() == pytest.approx(expected)
    monkeypatch.setattr(statistics, "CHUNK_CHARACTERS", 2)
    assert statistics.count_characters(texts).tolist() == counts.tolist()
    assert statistics.surprise(texts, counts).tolist() == pytest.approx(expected)


def test_what_repeats_itself_packs_well() -> None:
    chance = random.Random(0)
    noise = "".join(chance.choices("abcdefghijklmnop", k=1000))
    loop, prose = "over and over again, " * 50, noise
    shares = statistics.compression_ratios([loop, prose, "\u00fc"])
    assert shares[0] < 0.1 < 0.4 < shares[1] < shares[2]
    assert shares[2] == len(zlib.compress("\u00fc".encode(), 1)) / 2


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("a\tb\r\nc\u00e9 \u200d \U0001f468\u200d\U0001f469", False),
        ("a\x00b", True),
        ("\x1b[31m", True),
        ("\u0085", True),
        ("\u202eabc", True),
        ("caf\ufffd", True),
    ],
)
def test_broken_texts_are_found(text: str, broken: bool) -> None:
    assert statistics.find_broken(["fine", text]) == ([1] if broken else [])


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.integers(8, 4000))
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_bins_hold_each_dialog_once_and_part_at_the_limit(lengths: list[int], limit: int) -> None:
    bins = statistics.length_bins(np.array(lengths), limit)
    assert (bins[0].low, bins[-1].high) == (min(lengths), max(lengths))
    assert all(one.high + 1 == two.low for one, two in pairwise(bins))
    assert [part.dialogs for part in bins] == [sum(p.low <= n <= p.high for n in lengths) for p in bins]
    assert not any(part.low <= limit < part.high for part in bins)
    assert len(bins) <= 15


def test_no_lengths_have_no_bins() -> None:
    empty: Any = np.zeros(0, dtype=np.int64)
    assert statistics.length_bins(empty, 10) == []
