"""Metrics of replies."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dialogkit.inference.intervals import Interval, Quotient, intervals, mean


@dataclass(frozen=True)
class Answered:
    """A prompt with its reply, or with a reference in place of one."""

    prompt: str
    text: str
    reference: str
    stopped: bool
    """Whether it ended with an end of turn."""


class ReplyMetrics:
    """Metrics of replies to prompts whose true answers are known."""

    def __init__(self, answered: Sequence[Answered]) -> None:
        self._words = [reply.text.split() for reply in answered]
        similarity = [similarities(reply.text, reply.reference) for reply in answered]
        size, true_size = (
            np.array([len(text.encode()) for text in texts], dtype=np.float64)
            for texts in ([reply.text for reply in answered], [reply.reference for reply in answered])
        )
        self._quotients = {
            "stop_rate": mean([reply.stopped for reply in answered], 1.0),
            "empty_rate": mean([not reply.text.strip() for reply in answered], 1.0),
            "cut_rate": mean([not reply.stopped for reply in answered], 1.0),
            "repetition": mean([repeated_fraction(words, 4) for words in self._words], 1.0),
            "echo": mean([echoed_fraction(reply.text, reply.prompt) for reply in answered], 1.0),
            "chrf": mean([chrf for chrf, _ in similarity], 100.0),
            "rouge_l": mean([rouge for _, rouge in similarity], 1.0),
            "length_ratio": Quotient(size, true_size),
        }

    def figures(self) -> dict[str, float]:
        """Return the metrics by name: fractions from 0 to 1, chrF from 0 to 100."""
        values = {name: quotient.value for name, quotient in self._quotients.items()}
        return {**values, "distinct_1": distinct(self._words, 1), "distinct_2": distinct(self._words, 2)}

    def intervals(self) -> dict[str, Interval]:
        """Return the intervals of the means and of the length ratio."""
        return intervals(self._quotients)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the sequences of n words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repeated_fraction(words: Sequence[str], n: int) -> float:
    """Return the fraction of the sequences of n words that occurred before: towards 1 for a loop."""
    found = ngrams(words, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return the fraction of distinct sequences of n words in all texts (Li et al. 2016, distinct-n)."""
    found = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(found)) / len(found) if found else 0.0


def echoed_fraction(text: str, prompt: str) -> float:
    """Return the fraction of a reply's sequences of three words that occur in its prompt."""
    found = ngrams(text.lower().split(), 3)
    asked = set(ngrams(prompt.lower().split(), 3))
    return sum(gram in asked for gram in found) / len(found) if found else 0.0


def similarities(text: str, reference: str) -> tuple[float, float]:
    """Return chrF, 0 to 100 (Popović 2015), and ROUGE-L, 0 to 1."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(text, [reference]).score), rouge_l(text, reference)


def rouge_l(text: str, reference: str) -> float:
    """Return ROUGE-L (F1), 0 to 1 (Lin 2004), of the lower-case words of letters a-z and digits, unstemmed."""
    words, true_words = (re.findall("[a-z0-9]+", written.lower()) for written in (text, reference))
    common = _common_subsequence(words, true_words)
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(true_words)
    return 2 * precision * recall / (precision + recall)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, not necessarily contiguous."""
    longest = [0] * (len(second) + 1)  # of the words of `first` so far and of the first i of `second`
    for word in first:
        before = 0
        for i, other in enumerate(second, 1):
            before, longest[i] = longest[i], before + 1 if word == other else max(longest[i], longest[i - 1])
    return longest[-1]
