"""A loss curve as text."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]

HEIGHT = 12
BLOCKS = "\u2588\u2580\u2584\u2502\u2514\u2500\u2524"
"""A full block, its upper and lower half, and the lines of the axes."""
_MOST = 1e15
"""Points with larger values, or NaN, are not drawn."""
_LEAST = 20
"""Minimum width of a curve, in columns."""


def loss_curve(train: Points, held_out: Points, *, width: int, blocks: bool = True) -> list[str]:
    """Return the lines of a loss curve with its axes; none if there are no points.

    Args:
        train: (step, training loss) in nats per token, by step.
        held_out: the same on held-out dialogs.
        width: total width, in columns.
        blocks: draw with half blocks and lines; otherwise in ASCII.
    """
    train, held_out = (
        [point for point in points if all(abs(value) < _MOST for value in point)] for points in (train, held_out)
    )
    everything = [*train, *held_out]
    if not everything:
        return []
    low, high = min(y for _, y in everything), max(y for _, y in everything)
    labels = _labels(low, high)
    margin = max(map(len, labels.values()))
    columns = max(_LEAST, width - margin - 3)
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    halves = [[False] * columns for _ in range(2 * HEIGHT)]

    def column(x: float) -> int:
        return round((x - first) / (last - first) * (columns - 1)) if last > first else 0

    def half(y: float) -> int:
        """Return the half row of a loss, counted from the top."""
        return round((high - y) / (high - low) * (2 * HEIGHT - 1)) if high > low else HEIGHT

    before: int | None = None
    for place, y in _averages(train, column):
        now = half(y)
        # A vertical line joins two columns, so that a steep fall leaves no gap.
        start = now if before is None else before
        for row in range(min(now, start), max(now, start) + 1):
            halves[row][place] = True
        before = now
    marks = {(half(y) // 2, column(x)) for x, y in held_out}
    full, upper, lower, upright, corner, level, tick = tuple(BLOCKS if blocks else "|'.|+-|")
    signs = {(True, True): full, (True, False): upper, (False, True): lower}
    lines = [f"nats/token   {lower} training   o held-out"]
    for row in range(HEIGHT):
        pairs = zip(halves[2 * row], halves[2 * row + 1], strict=True)
        drawn = ["o" if (row, place) in marks else signs.get(pair, " ") for place, pair in enumerate(pairs)]
        edge = tick if row in labels else upright
        lines.append(f"{labels.get(row, ''):>{margin}} {edge}{''.join(drawn)}".rstrip())
    lines.append(f"{'':>{margin}} {corner}{level * columns}")
    lines.append(f"{'':>{margin}}  {_steps(first, last, columns)}".rstrip())
    return lines


def _averages(points: Points, column: Callable[[float], int]) -> list[tuple[int, float]]:
    """Return each column with the mean of its points; empty columns are interpolated."""
    sums: dict[int, list[float]] = {}
    for x, y in points:
        sums.setdefault(column(x), []).append(y)
    known = sorted((place, sum(values) / len(values)) for place, values in sums.items())
    drawn = known[:1]
    for (left, start), (right, end) in pairwise(known):
        drawn += [(x, start + (end - start) * (x - left) / (right - left)) for x in range(left + 1, right + 1)]
    return drawn


def _labels(low: float, high: float) -> dict[int, str]:
    """Return the labels of the top, middle and bottom row."""
    if high <= low:
        return {HEIGHT // 2: f"{high:,.3f}"}
    digits = max(2, min(6, 2 - math.floor(math.log10(high - low))))
    middle = high - (high - low) * (HEIGHT + 0.5) / (2 * HEIGHT - 1)  # the mean of its two half rows
    at = {0: high, HEIGHT // 2: middle, HEIGHT - 1: low}
    return {row: f"{value:,.{digits}f}" for row, value in at.items()}


def _steps(first: float, last: float, columns: int) -> str:
    """Return the labels of the step axis."""
    left, right = f"{first:,.0f}", f"{last:,.0f} steps"
    middle = f"{(first + last) / 2:,.0f}"
    if last <= first:
        return f"{left} steps"
    line = f"{left:<{columns}}"
    if columns >= len(left) + len(middle) + len(right) + 8:
        start = columns // 2 - len(middle) // 2
        line = line[:start] + middle + line[start + len(middle) :]
    return line[: columns - len(right)] + right
