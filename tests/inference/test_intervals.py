"""Intervals contain the true value as often as they say; `benchmarks/intervals.py` has more of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from dialogkit.inference.intervals import Quotient, intervals, mean, wilson

Draw = Callable[[np.random.Generator, int], Quotient]


def skewed(random: np.random.Generator, count: int) -> Quotient:
    """Return bits and bytes of answers: a few long ones decide the quotient, and short ones cost more."""
    size = np.maximum(2, random.lognormal(4.3, 1.1, count).round())
    return Quotient(size * random.lognormal(0, 0.35, count) * (1 + 3 / np.sqrt(size)), size)


def tokens_ranked_first(random: np.random.Generator, count: int) -> Quotient:
    size = np.maximum(2, random.lognormal(3.3, 1.0, count).round())
    return Quotient(random.binomial(size.astype(int), random.beta(14, 1, count)).astype(float), size, 1.0)


def ended(random: np.random.Generator, count: int) -> Quotient:
    return mean(random.random(count) < 0.9, 1.0)


@pytest.mark.parametrize("draw", [skewed, tokens_ranked_first, ended])
@pytest.mark.parametrize("size", [20, 64, 200])
def test_an_interval_contains_the_value_of_the_population(draw: Draw, size: int) -> None:
    random = np.random.default_rng(0)
    truth, samples = draw(random, 300_000).value, 1000
    found = [intervals({"it": draw(random, size)})["it"] for _ in range(samples)]
    # Two standard errors of this simulation are 1.4%.
    assert sum(low <= truth <= high for low, high in found) / samples >= 0.93 - 0.014


def test_a_share_has_the_interval_of_wilson() -> None:
    # From Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits / count, count) == pytest.approx((low, high), abs=5e-5)
        of_values = intervals({"it": mean([1.0] * hits + [0.0] * (count - hits), 1.0)})["it"]
        assert of_values == wilson(hits / count, count)


def test_what_all_dialogs_agree_on_is_not_certain() -> None:
    low, high = intervals({"it": Quotient(np.full(8, 5.0), np.full(8, 5.0), 1.0)})["it"]
    assert (round(low, 2), high) == (0.68, 1.0)


def test_one_dialog_or_nothing_that_was_counted_has_no_interval() -> None:
    nothing = Quotient(np.zeros(3), np.zeros(3))
    assert intervals({"one": mean([1.0]), "nothing": nothing}) == {}
    assert math.isnan(nothing.value)
