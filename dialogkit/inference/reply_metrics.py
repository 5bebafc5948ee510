"""Metrics of replies, and bootstrap intervals of metrics."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_WEIGHTS_AT_ONCE = 4_000_000
"""Resampling weights that are in memory at once."""

Metrics = dict[str, NDArray[np.float64]]


def intervals(
    of_resamples: Callable[[NDArray[np.float64]], Metrics], count: int, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95% bootstrap interval of each metric (Efron 1979, percentiles of the resampled metrics).

    `of_resamples` takes weights [R, N], how often each of N = `count` observations counts in a resample, and
    returns metrics [R]. The same metrics have the same intervals.
    """
    if count < 2:
        return {}
    random, made = np.random.default_rng(seed), []
    at_once = max(1, min(RESAMPLES, _WEIGHTS_AT_ONCE // count))
    for start in range(0, RESAMPLES, at_once):
        rounds = min(at_once, RESAMPLES - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=rounds)
        made.append(of_resamples(weights.astype(np.float64)))
    bounds = {}
    for name in made[0]:
        low, high = np.nanpercentile(np.concatenate([part[name] for part in made]), [2.5, 97.5])
        bounds[name] = (float(low), float(high))
    return bounds


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
        self._count = len(answered)
        self._words = [reply.text.split() for reply in answered]
        similarity = [similarities(reply.text, reply.reference) for reply in answered]
        self._means: Metrics = {
            name: np.array(values, dtype=np.float64)
            for name, values in {
                "stop_rate": [reply.stopped for reply in answered],
                "empty_rate": [not reply.text.strip() for reply in answered],
                "cut_rate": [not reply.stopped for reply in answered],
                "repetition": [repeated_share(words, 4) for words in self._words],
                "echo": [echoed_share(reply.text, reply.prompt) for reply in answered],
                "chrf": [chrf for chrf, _ in similarity],
                "rouge_l": [rouge for _, rouge in similarity],
            }.items()
        }
        self._bytes = np.array([len(reply.text.encode()) for reply in answered], dtype=np.float64)
        self._reference_bytes = np.array([len(reply.reference.encode()) for reply in answered], dtype=np.float64)

    def resampled(self, weights_RN: NDArray[np.float64]) -> Metrics:
        """Return each mean, and the length ratio, in R resamples of the replies."""
        means = {name: weights_RN @ values / weights_RN.sum(1) for name, values in self._means.items()}
        lengths = (weights_RN @ self._bytes) / np.maximum(weights_RN @ self._reference_bytes, 1)
        return {**means, "length_ratio": lengths}

    def figures(self) -> dict[str, float]:
        """Return the metrics by name: fractions from 0 to 1, chrF from 0 to 100."""
        means = {name: float(value[0]) for name, value in self.resampled(np.ones((1, self._count))).items()}
        return {**means, "distinct_1": distinct(self._words, 1), "distinct_2": distinct(self._words, 2)}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the intervals of the means."""
        return intervals(self.resampled, self._count)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the sequences of n words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repeated_share(words: Sequence[str], n: int) -> float:
    """Return the fraction of the sequences of n words that occurred before: towards 1 for a loop."""
    found = ngrams(words, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return the fraction of distinct sequences of n words in all texts (Li et al. 2016, distinct-n)."""
    found = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(found)) / len(found) if found else 0.0


def echoed_share(text: str, prompt: str) -> float:
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
