"""A loss curve shows where the loss was, in any width and any encoding, and is steered by no number."""

import math

import pytest

from dialogkit.cli.chart import HEIGHT, loss_curve

FALLING = [(step, 10 * math.exp(-step / 20)) for step in range(101)]


def rows(lines: list[str]) -> list[str]:
    """Return what is drawn between the axes."""
    return [line.split("\u2502")[-1].split("\u2524")[-1] for line in lines[1 : 1 + HEIGHT]]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("blocks", [True, False])
def test_the_curve_is_as_wide_as_it_may_be(width: int, blocks: bool) -> None:
    lines = loss_curve(FALLING, [(0, 10.0), (100, 0.5)], width=width, blocks=blocks)
    assert len(lines) == HEIGHT + 3
    assert max(map(len, lines)) in (width - 1, width)
    assert all(line.isascii() for line in lines) != blocks


def test_the_axes_name_what_is_drawn() -> None:
    lines = loss_curve(FALLING, [(0, 10.0)], width=80)
    assert lines[0].startswith("nats/token")
    assert lines[1].split()[0] == "10.00"
    assert lines[HEIGHT].split()[0] == f"{FALLING[-1][1]:.2f}"
    assert lines[-1].split() == ["0", "50", "100", "steps"]


def test_a_falling_loss_falls_on_the_screen() -> None:
    drawn = rows(loss_curve(FALLING, [], width=80))
    first = [min(row for row in range(HEIGHT) if drawn[row][x : x + 1].strip()) for x in range(60)]
    assert first == sorted(first)
    assert (first[0], first[-1]) == (0, HEIGHT - 1)


def test_an_evaluation_stands_at_its_step_and_loss() -> None:
    drawn = rows(loss_curve([], [(0, 2.0), (50, 1.0), (100, 2.0)], width=80))
    places = [(row, place) for row, line in enumerate(drawn) for place, sign in enumerate(line) if sign == "o"]
    assert [row for row, _ in places] == [0, 0, HEIGHT - 1]
    left, right, middle = (place for _, place in places)
    assert left == 0
    assert abs(middle - right / 2) <= 1


def test_points_that_share_a_column_are_averaged() -> None:
    steps = range(10_000)
    noisy = loss_curve([(step, 1.0 + step % 2) for step in steps], [(0, 1.0), (9_999, 2.0)], width=60)
    assert {row for row, line in enumerate(rows(noisy)) if line.replace("o", "").strip()} <= {5, 6}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e308])
def test_what_is_no_number_is_left_out(value: float) -> None:
    assert loss_curve([*FALLING, (101, value), (value, 1.0)], [(50, value)], width=80) == loss_curve(
        FALLING, [], width=80
    )


@pytest.mark.parametrize("points", [[], [(0, math.nan)]])
def test_without_points_there_is_no_curve(points: list[tuple[float, float]]) -> None:
    assert loss_curve(points, [], width=80) == []


@pytest.mark.parametrize("points", [[(3, 2.5)], [(1, 2.5), (9, 2.5)]])
def test_a_loss_that_never_changes_is_a_level_line(points: list[tuple[float, float]]) -> None:
    drawn = loss_curve(points, [], width=60)
    assert [row for row, line in enumerate(rows(drawn)) if line.strip()] == [HEIGHT // 2]
    assert "2.500" in drawn[1 + HEIGHT // 2]
