"""Figures of several models side by side."""

import pytest
from rich.console import Console

from dialogkit.cli.metrics_table import print_side_by_side, print_tasks
from dialogkit.cli.output import Output, table
from dialogkit.services.evaluation.results import TaskFigure, TaskRow
from dialogkit.tracking.metric_specs import best_of


@pytest.mark.parametrize(
    ("bounds", "better", "best"),
    [
        ({"a": (1, 2), "b": (3, 4)}, 1, "b"),
        ({"a": (1, 2), "b": (3, 4)}, -1, "a"),
        ({"a": (1, 2), "b": (2, 4)}, 1, None),  # they touch
        ({"a": (1, 3.5), "b": (3, 4)}, -1, None),
        ({"a": (1, 2), "b": (3, 4), "c": (3.5, 5)}, 1, None),
        ({"a": (1, 2), "b": (3, 4), "c": (3.5, 5)}, -1, "a"),
        ({"a": (1, 2), "b": (3, 4)}, 0, None),
        ({"a": (1, 2)}, 1, None),
        ({"a": (0, 0.5), "b": (1, 1)}, 1, None),  # an interval without a width is evidence of nothing
        ({}, 1, None),
    ],
)
def test_the_best_stands_apart_from_all_others(
    bounds: dict[str, tuple[float, float]], better: int, best: str | None
) -> None:
    assert best_of(bounds, better) == best


@pytest.mark.parametrize("width", [12, 40, 200])
def test_no_column_is_lost_in_any_width(
    width: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"model-{number}" for number in range(9)]
    print_side_by_side(Output(), names, lambda columns: table("", *columns))
    out = capfd.readouterr().out
    assert out.split() == names
    assert max(map(len, out.splitlines())) <= width


def task(value: float, *, cut: int = 0, name: str = "capitals") -> TaskRow:
    figure = TaskFigure(name="acc", filter="", value=value, interval=(value - 0.1, value + 0.1), better=1)
    return TaskRow(name=name, version="1", questions=8, of_questions=20, examples=2, cut=cut, figures=[figure])


def test_tasks_are_reported_with_their_questions_and_what_was_cut(capfd: pytest.CaptureFixture[str]) -> None:
    print_tasks(Output(), {"a": [task(0.25, cut=3)], "b": [task(0.75), task(0.5, name="rivers")]})
    out, err = capfd.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["capitals", "(8", "questions", "after", "2", "examples)", "acc",
                        "0.2500", "[0.1500,", "0.3500]", "0.7500", "[0.6500,", "0.8500]"]  # fmt: skip
    assert lines[2][-3:] == ["0.5000", "[0.4000,", "0.6000]"]
    assert err == "a: 3 questions of capitals lost the beginning: too long for the context\n"


def test_the_best_in_a_task_is_bold(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.out = Console(force_terminal=True, color_system="truecolor", no_color=False, width=100)
    print_tasks(output, {"a": [task(0.25)], "b": [task(0.75)]})
    assert "\x1b[1m0.7500" in capfd.readouterr().out
    print_tasks(output, {"a": [task(0.25)], "b": [task(0.3)]})
    assert "\x1b[1m0.3000" not in capfd.readouterr().out
