"""Finds near duplicates among texts by MinHash and exact Jaccard similarity of word shingles."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dialogkit.data.statistics import chunks
from dialogkit.data.views import View

SHINGLE_WORDS = 3
"""Words per shingle."""
NEAR = 0.8
"""Lowest Jaccard similarity of near duplicates."""

_BANDS, _ROWS = 20, 5
_NEIGHBOURS = 8
_BLOCK_SHINGLES = 2**19
"""Shingles whose keys are computed at once."""
_SEED = 0
PAIRED_SHINGLES = 2**21
"""Shingles of candidate pairs that are compared at once."""

# Scripts that put no spaces between words: Thai to Tibetan, Burmese, Khmer, kana and Han.
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class Shingles(NamedTuple):
    """The distinct shingles of texts: 64-bit hashes, sorted within each text, and the start of each text."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of shingles of each text."""
        return np.diff(self.offsets)


class Pairs(NamedTuple):
    """Indices of two texts and the similarity of their shingles; three arrays [P]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]


def words_of(text: str) -> list[str]:
    """Return the case-folded words of a text; in scripts without spaces, each character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def near_pairs(texts: Sequence[str]) -> Pairs:
    """Return pairs of texts whose sets of shingles have a Jaccard similarity of at least `NEAR`.

    A shingle is `SHINGLE_WORDS` consecutive words; a shorter text is one shingle, one without words has none.
    Candidates agree in all rows of at least one band of their MinHash signatures, and the similarity of each pair
    is computed exactly. No returned pair is wrong, and a pair at the threshold is found with
    probability 99.96% (1 - (1 - 0.8^5)^20). Among many texts with an equal band, each is compared with its
    neighbours only, so that time is not quadratic.

    Source: Broder 1997, On the resemblance and containment of documents; bands: Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, section 3.4.
    """
    # In the order of the texts, runs of equal texts would be compared only among themselves.
    order = np.random.default_rng(_SEED).permutation(len(texts))
    shingles = _all_shingles(View(len(texts), lambda number: texts[order[number]]))
    first, second = _candidates(shingles)
    sizes = shingles.sizes
    smaller, larger = np.minimum(sizes[first], sizes[second]), np.maximum(sizes[first], sizes[second])
    possible = smaller >= NEAR * larger
    first, second = first[possible], second[possible]
    similarity = jaccard(shingles, first, second)
    near = similarity >= NEAR
    ends = np.sort(np.stack([order[first[near]], order[second[near]]]), axis=0)
    return Pairs(ends[0], ends[1], similarity[near])


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        self[word] = value = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        return value


def _all_shingles(texts: Sequence[str]) -> Shingles:
    known = _WordHashes()
    hashes, sizes = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)]
    for _, chunk in chunks(texts):
        made = _shingles([words_of(text) for text in chunk], known)
        hashes.append(made.hashes)
        sizes.append(made.sizes)
    return Shingles(np.concatenate(hashes), np.cumsum(np.concatenate(sizes)))


def _bands(shingles: Shingles) -> Iterator[NDArray[np.uint64]]:
    """Yield the keys of the texts in each band [N]; a text without shingles has keys 0."""
    random = np.random.default_rng(_SEED)
    factors = random.integers(2**64, size=(_BANDS, _ROWS), dtype=np.uint64) | np.uint64(1)
    terms = random.integers(2**64, size=(_BANDS, _ROWS), dtype=np.uint64)
    filled = np.flatnonzero(shingles.sizes)
    ends = np.flatnonzero(np.diff(shingles.offsets[filled] // _BLOCK_SHINGLES)) + 1
    blocks = [block for block in np.split(filled, ends) if len(block)]
    for band in range(_BANDS):
        keys = np.zeros(len(shingles.sizes), dtype=np.uint64)
        for block in blocks:
            begin, starts = shingles.offsets[block[0]], shingles.offsets[block]
            hashes = shingles.hashes[begin : shingles.offsets[block[-1] + 1]]
            for factor, term in zip(factors[band], terms[band], strict=True):
                smallest = np.minimum.reduceat(hashes * factor + term, starts - begin)
                keys[block] = _mixed(keys[block] + smallest)
        yield keys


def _shingles(words: Sequence[Sequence[str]], known: Mapping[str, int]) -> Shingles:
    lengths = np.array([len(found) for found in words], dtype=np.int64)
    total = int(lengths.sum())
    flat = np.fromiter((known[word] for found in words for word in found), dtype=np.uint64, count=total)
    text = np.repeat(np.arange(len(words)), lengths)
    position = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    left = np.repeat(lengths, lengths) - position
    made = np.zeros(total, dtype=np.uint64)
    for shift in range(SHINGLE_WORDS):
        following = np.where(left > shift, np.roll(flat, -shift), np.uint64(0))
        made = _mixed(made + following)
    begins = (left >= SHINGLE_WORDS) | (position == 0)
    text, made = text[begins], made[begins]
    order = np.lexsort((made, text))
    text, made = text[order], made[order]
    different = np.ones(len(made), dtype=bool)
    different[1:] = (text[1:] != text[:-1]) | (made[1:] != made[:-1])
    sizes = np.bincount(text[different], minlength=len(words))
    return Shingles(made[different], np.concatenate([[0], np.cumsum(sizes)]))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits that depend on all bits of each value (the last step of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _candidates(shingles: Shingles) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct pairs of texts that share a key in one of the bands."""
    count = len(shingles.sizes)
    found = [np.zeros(0, np.int64)]
    for keys in _bands(shingles):
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for shift in range(1, min(_NEIGHBOURS, count - 1) + 1):
            shared = (ordered[shift:] == ordered[:-shift]) & (ordered[shift:] != 0)
            if not shared.any():
                break
            found.append(order[:-shift][shared] * count + order[shift:][shared])
    codes = np.unique(np.concatenate(found))
    return codes // max(1, count), codes % max(1, count)


def jaccard(shingles: Shingles, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the exact Jaccard similarity of pairs of texts that have shingles [P]."""
    sizes = shingles.sizes
    both = sizes[first] + sizes[second]
    shared = np.zeros(len(first), dtype=np.int64)
    # Chunks of pairs bound the number of shingles in memory.
    part = np.cumsum(both) // PAIRED_SHINGLES
    for pairs in np.split(np.arange(len(first)), np.flatnonzero(np.diff(part)) + 1):
        if not len(pairs):
            continue
        ends = np.concatenate([first[pairs], second[pairs]])
        number = np.repeat(np.tile(np.arange(len(pairs)), 2), sizes[ends])
        at = np.arange(len(number)) + np.repeat(
            shingles.offsets[ends] - (np.cumsum(sizes[ends]) - sizes[ends]), sizes[ends]
        )
        # Equal shingles of a pair stay equal, those of different pairs become different.
        marked = shingles.hashes[at] + _mixed(number.astype(np.uint64) + np.uint64(1))
        order = np.argsort(marked)
        same = marked[order][1:] == marked[order][:-1]
        shared[pairs] = np.bincount(number[order][1:][same], minlength=len(pairs))
    similarity: NDArray[np.float64] = shared / np.maximum(both - shared, 1)
    return similarity


def group_labels(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """Return the first text of the group of each of `count` texts [N]; pairs connect groups."""
    label = list(range(count))

    def first_of(index: int) -> int:
        while label[index] != index:
            label[index] = label[label[index]]
            index = label[index]
        return index

    for one, other in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        a, b = sorted((first_of(one), first_of(other)))
        label[b] = a
    return np.array([first_of(index) for index in range(count)], dtype=np.int64)
