"""Curves keep their peaks and gaps, whatever their length and values."""

import math
import re

from dialogkit.tracking.plots import Curve, draw, smoothed, thinned


def drawn(*curves: Curve, title: str = "Loss") -> str:
    return draw(curves, title=title, width=400, height=200)


def points(svg: str, colour: str) -> list[tuple[float, float]]:
    """The places of a curve's points; x from the left, y from above."""
    (path,) = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\({colour}\)', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def test_a_curve_of_many_points_keeps_its_lowest_and_highest() -> None:
    values = [1.0] * 100_000
    values[3_333], values[77_777] = 9.0, -9.0
    steps, kept = thinned(range(100_000), values, 400)
    assert len(kept) <= 400
    assert (kept[steps.index(3_333)], kept[steps.index(77_777)]) == (9.0, -9.0)
    assert steps == sorted(steps)
    assert (steps[0], steps[-1] > 99_000) == (0, True)


def test_a_short_curve_stays_as_it_is() -> None:
    assert thinned([1, 2, 3], [4.0, math.nan, 6.0])[0] == [1, 2, 3]


def test_means_of_neighbours_leave_out_what_is_no_number() -> None:
    means = smoothed([0.0, 3.0, 6.0, math.nan, 2.0], 3)
    assert means[:3] == [1.5, 3.0, 4.5]
    assert math.isnan(means[3])
    assert means[4] == 2.0


def test_a_larger_value_stands_higher_and_a_later_step_further_right() -> None:
    (x0, y0), (x1, y1), (x2, y2) = points(drawn(Curve([0, 10, 20], [1.0, 3.0, 2.0], "--s1")), "--s1")
    assert x0 < x1 < x2
    assert y1 < y2 < y0


def test_what_is_no_number_leaves_a_gap() -> None:
    svg = drawn(Curve([0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 1e300, 2.0], "--s1", "marks"))
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--s1\)', svg)
    assert [part.count("\nL") for part in path.split("M ")[1:]] == [1, 0]
    assert len(re.findall(r"<use ", svg)) == 3
    assert not Curve([1], [math.inf], "--s1").drawable


def test_a_single_point_is_to_be_seen() -> None:
    assert "<use " in drawn(Curve([5], [1.0], "--s1"))


def test_the_style_of_a_notebook_does_not_matter() -> None:
    import matplotlib

    curve = Curve([0, 1], [0.0, 0.0015], "--s1")
    usual = drawn(curve)
    with matplotlib.rc_context({"axes.facecolor": "red", "lines.linewidth": 9, "font.size": 30, "savefig.dpi": 7}):
        assert drawn(curve) == usual
    assert re.findall(r">([\d.]+)</text>", usual) == ["0", "1", "0", "0.0005", "0.001", "0.0015"]
