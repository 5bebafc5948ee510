"""How often do the 95% intervals of an evaluation contain the true value?

Draws samples of dialogs from made-up populations whose lengths and values are as skewed as those of real dialogs.

python benchmarks/intervals.py --samples 2000
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dialogkit.inference.intervals import Quotient, intervals

Floats = NDArray[np.float64]
Random = np.random.Generator
POPULATION = 500_000
SIZES = (10, 20, 64, 200)


def lengths(random: Random, count: int, *, middle: float, spread: float) -> Floats:
    """Return lengths of answers: log-normal, at least 2."""
    return np.maximum(2.0, random.lognormal(math.log(middle), spread, count).round())


def bits_per_byte(random: Random, count: int) -> Quotient:
    """Return bits of answers, of which short ones cost more per byte."""
    size = lengths(random, count, middle=75, spread=1.1)
    return Quotient(size * random.lognormal(0, 0.35, count) * (1 + 3 / np.sqrt(size)), size)


def prompt_gain(random: Random, count: int) -> Quotient:
    """Return bits that the prompts save, of either sign."""
    size = lengths(random, count, middle=75, spread=1.0)
    return Quotient(size * random.normal(0.05, 0.2, count) / np.sqrt(size / 20), size)


def length_ratio(random: Random, count: int) -> Quotient:
    """Return lengths of replies, which do not depend on those of the answers."""
    return Quotient(lengths(random, count, middle=80, spread=0.8), lengths(random, count, middle=90, spread=1.0))


def accuracy(random: Random, count: int, *, high: bool = False) -> Quotient:
    """Return tokens that are ranked first, in dialogs of different difficulty."""
    size = lengths(random, count, middle=27, spread=1.0)
    of_dialog = random.beta(14, 1, count) if high else random.beta(3, 5, count)
    return Quotient(random.binomial(size.astype(int), of_dialog).astype(np.float64), size, 1.0)


def chrf(random: Random, count: int) -> Quotient:
    """Return skewed similarities from 0 to 100."""
    return Quotient(100 * random.beta(1.5, 6, count), np.ones(count), 100.0)


def share(random: Random, count: int, *, of: float) -> Quotient:
    """Return which dialogs have a property."""
    return Quotient((random.random(count) < of).astype(np.float64), np.ones(count), 1.0)


POPULATIONS: dict[str, Callable[[Random, int], Quotient]] = {
    "bits/byte": bits_per_byte,
    "prompt gain": prompt_gain,
    "length ratio": length_ratio,
    "token accuracy 37%": accuracy,
    "token accuracy 93%": lambda random, count: accuracy(random, count, high=True),
    "chrF": chrf,
    "share 10%": lambda random, count: share(random, count, of=0.1),
    "share 50%": lambda random, count: share(random, count, of=0.5),
    "share 98%": lambda random, count: share(random, count, of=0.98),
}


def coverage(name: str, size: int, *, samples: int, seed: int = 0) -> float:
    """Return the fraction of samples of `size` dialogs whose interval contains the value of the population."""
    random = np.random.default_rng(seed)
    draw = POPULATIONS[name]
    truth = draw(random, POPULATION).value
    drawn = draw(random, samples * size)
    covered = 0
    for start in range(0, samples * size, size):
        part = slice(start, start + size)
        sample = Quotient(drawn.over[part], drawn.under[part], drawn.most)
        low, high = intervals({name: sample})[name]
        covered += low <= truth <= high
    return covered / samples


def main() -> None:
    """Print a table of the coverage by metric and number of dialogs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    words = parser.parse_args()
    print(f"| metric | {' | '.join(f'{size} dialogs' for size in SIZES)} |")
    print(f"|---|{'---|' * len(SIZES)}")
    for name in POPULATIONS:
        shares = [coverage(name, size, samples=words.samples) for size in SIZES]
        print(f"| {name} | {' | '.join(f'{one:.1%}' for one in shares)} |", flush=True)


if __name__ == "__main__":
    main()
