"""Statistics of texts: characters, scripts, lengths, repetition and unusual characters."""

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CODES = 0x110000

_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffd]")

_SCRIPT = re.compile(r"(.+?) (?:CAPITAL|SMALL|LETTER|SYLLAB|UNIFIED|COMPATIBILITY|IDEOGRAPH|VOWEL|LIGATURE)")

_OTHER_NAMES = {"Cjk": "Han", "Modifier": "Other", "unnamed": "Other"}

CHUNK_CHARACTERS = 2**22
"""Characters that are counted at once."""


def _codes(texts: Sequence[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)


def count_characters(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return how often each character occurs in the texts, by code point [0x110000]."""
    counts = np.zeros(_CODES, dtype=np.int64)
    for _, chunk in chunks(texts):
        counts += np.bincount(_codes(chunk), minlength=_CODES)
    return counts


def script_fractions(counts: NDArray[np.int64]) -> dict[str, float]:
    """Return the fraction of letters in each script, the most frequent first.

    The script is taken from the Unicode name of a letter, after compatibility forms (full width, superscript,
    mathematical) are replaced by the plain letter. `counts` are those of characters, by code point.
    """
    found: dict[str, int] = {}
    for code in np.flatnonzero(counts).tolist():
        character = unicodedata.normalize("NFKC", chr(code))[:1]
        if character.isalpha():
            script = _script(character)
            found[script] = found.get(script, 0) + int(counts[code])
    letters = sum(found.values())
    return {name: found[name] / letters for name in sorted(found, key=lambda name: (-found[name], name))}


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "unnamed")
    match = _SCRIPT.match(name)
    script = (match[1] if match else name.split(" ")[0]).title()
    return _OTHER_NAMES.get(script, script)


def surprise(texts: Sequence[str], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean bits per character of texts [N], none empty, under the frequencies of all texts.

    Shannon's self-information of order 0: it measures how unusual the characters are, not their order.
    `counts` are those of the characters of all texts, by code point.
    """
    bits = -np.log2(np.maximum(counts, 1) / max(1, int(counts.sum())))
    means = np.zeros(len(texts))
    for start, chunk in chunks(texts):
        lengths = np.array([len(text) for text in chunk])
        sums = np.add.reduceat(bits[_codes(chunk)], np.cumsum(lengths) - lengths)
        means[start : start + len(chunk)] = sums / lengths
    return means


def compression_ratios(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the compression ratio of each text under zlib [N]: near 0 for a repetitive text."""
    encoded = (text.encode() for text in texts)
    return np.array([len(zlib.compress(data, 1)) / max(1, len(data)) for data in encoded], dtype=np.float64)


def find_broken(texts: Sequence[str]) -> list[int]:
    """Return the indices of texts with control characters, bidirectional controls or U+FFFD."""
    return [index for index, text in enumerate(texts) if _BROKEN.search(text)]


class Bin(NamedTuple):
    """The number of dialogs with `low` to `high` tokens, both included."""

    low: int
    high: int
    dialogs: int


def length_bins(lengths: NDArray[np.int64], limit: int) -> list[Bin]:
    """Return a histogram of lengths: bins up to each power of two, and one that ends at `limit`."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    edges = {2**power + 1 for power in range(high.bit_length())} | {limit + 1}
    inner = sorted(edge for edge in edges if low < edge <= high)
    bounds = [low, *inner, high + 1]
    counts, _ = np.histogram(lengths, bins=np.array(bounds))
    return [Bin(a, b - 1, int(n)) for a, b, n in zip(bounds[:-1], bounds[1:], counts, strict=True)]


def chunks(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield consecutive chunks of texts, each with its start index, to bound memory beside the texts."""
    start = held = 0
    for index, text in enumerate(texts):
        held += len(text)
        if held >= CHUNK_CHARACTERS:
            yield start, texts[start : index + 1]
            start, held = index + 1, 0
    if start < len(texts):
        yield start, texts[start:]
