"""95% intervals of metrics that are a sum over dialogs divided by another.

`benchmarks/intervals.py` measures how often they contain the true value.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_Z = 1.959964


class Quotient(NamedTuple):
    """A metric of N dialogs: the sum of `over` [N] divided by the sum of `under` [N]; a mean has ones there."""

    over: Floats
    under: Floats
    most: float = math.inf
    """The highest value that is possible."""

    @property
    def value(self) -> float:
        """The metric; not a number if nothing was counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.over.sum() / self.under.sum())

    @property
    def is_fraction(self) -> bool:
        """Whether it is the fraction of the dialogs that have a property."""
        return self.most == 1 and bool((self.under == 1).all() and np.isin(self.over, (0, 1)).all())


def mean(values: object, most: float = math.inf) -> Quotient:
    """Return the mean of values as a quotient."""
    over = np.asarray(values, dtype=np.float64)
    return Quotient(over, np.ones_like(over), most)


def intervals(quotients: Mapping[str, Quotient]) -> dict[str, Interval]:
    """Return the 95% interval of each metric that has at least two dialogs.

    It is Student's, with the standard error of the jackknife and Satterthwaite's degrees of freedom (1946),
    estimated from the fourth moment: few long dialogs decide a quotient, and the percentiles of a bootstrap do not
    make up for it. Where values are bounded it has Wilson's form (1927), with as many dialogs as the error is
    worth (Korn and Graubard 1998); of a fraction it is Wilson's interval.
    """
    found = {}
    for name, quotient in quotients.items():
        count, value = len(quotient.over), quotient.value
        if count < 2 or not math.isfinite(value):
            continue
        error, quantile = _error_of(quotient)
        if math.isfinite(quotient.most):
            fraction = value / quotient.most
            if quotient.is_fraction or fraction in (0, 1) or not error > 0:
                low, high = wilson(fraction, count)
            else:
                low, high = wilson(fraction, fraction * (1 - fraction) * (quotient.most / error) ** 2, quantile)
            found[name] = (low * quotient.most, high * quotient.most)
        elif math.isfinite(error):
            least = 0.0 if (quotient.over >= 0).all() else -math.inf
            found[name] = (max(least, value - quantile * error), value + quantile * error)
    return found


def wilson(fraction: float, count: float, quantile: float = _Z) -> Interval:
    """Return the interval of a fraction of `count` dialogs."""
    square = quantile**2 / count
    middle = (fraction + square / 2) / (1 + square)
    half = math.sqrt(fraction * (1 - fraction) * square + square**2 / 4) / (1 + square)
    # Rounding must not exclude the fraction itself.
    return min(fraction, max(0.0, middle - half)), max(fraction, min(1.0, middle + half))


def _error_of(quotient: Quotient) -> tuple[float, float]:
    """Return the standard error of a metric, and the 97.5% quantile of its distribution in such errors."""
    over, under = quotient.over, quotient.under
    count = len(over)
    with np.errstate(invalid="ignore", divide="ignore"):
        # How much the metric changes without each dialog.
        changes_N = (over - quotient.value * under) / (under.sum() - under)
        squares, fourth = float((changes_N**2).sum()), float((changes_N**4).sum())
    if not (math.isfinite(squares) and squares > 0 and fourth > 0):
        return 0.0 if squares == 0 else math.nan, _Z
    kurtosis = count * fourth / squares**2
    freedom = min(count - 1.0, 2 * count / max(kurtosis - 1, 1e-9))
    return math.sqrt(squares * (count - 1) / count), _student(freedom)


def _student(freedom: float) -> float:
    """Return about the 97.5% quantile of Student's distribution (Abramowitz and Stegun 1964, 26.7.5)."""
    z, v = _Z, max(freedom, 1.0)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
