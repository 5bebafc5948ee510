"""Tables of metrics for several models: which is best, how many fit side by side, and task results."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.text import Text

from dialogkit.cli.output import Output, fits, table, untrusted
from dialogkit.text import counted
from dialogkit.tracking.metric_specs import best_of

if TYPE_CHECKING:
    from rich.table import Table

    from dialogkit.services.evaluation.results import TaskFigure, TaskRow

Column = TypeVar("Column")


def letters_of(number: int) -> list[str]:
    """Return short titles for columns: A, B, C; numbers after Z."""
    return [chr(ord("A") + index) if index < 26 else str(index) for index in range(number)]


def print_side_by_side(
    output: Output, columns: Sequence[Column], draw: "Callable[[Sequence[Column]], Table]"
) -> None:
    """Print as many columns side by side as fit, and the rest below."""
    while columns:
        for number in range(len(columns), 0, -1):
            drawn = draw(columns[:number])
            if fits(output.out, drawn) or number == 1:
                break
        output.print(drawn)
        columns = columns[number:]
        if columns:
            output.print("")


def print_tasks(output: Output, answered: "Mapping[str, Sequence[TaskRow]]") -> None:
    """Print the task results of models, which are given by their titles."""
    by_title = {
        title: {(t.name, f.name, f.filter): f for t in tasks for f in t.figures}
        for title, tasks in answered.items()
    }
    rows = dict.fromkeys(row for found in by_title.values() for row in found)  # in order, each once
    numbers = {task.name: _questions(task) for tasks in answered.values() for task in tasks}

    def draw(titles: Sequence[str]) -> "Table":
        drawn = table("task", "", *titles, right=titles)
        before = ""
        for row in rows:
            task, *names = row
            figures = {title: found[row] for title, found in by_title.items() if row in found}
            best = _best(figures) if len(figures) == len(answered) else None
            cells = [_cell(figures.get(title), bold=title == best) for title in titles]
            title = f"{task}{numbers[task]}" if task != before else ""
            drawn.add_row(untrusted(title), untrusted(" ".join(filter(None, names))), *cells)
            before = task
        return drawn

    print_side_by_side(output, list(answered), draw)
    for title, tasks in answered.items():
        for task in tasks:
            if task.cut:
                lost = f"{counted(task.cut, 'question')} of {task.name} lost the beginning"
                output.note(f"{title}: {lost}: too long for the context")


def _questions(task: "TaskRow") -> str:
    before = f" after {counted(task.examples, 'example')}" if task.examples else ""
    return f" ({counted(task.questions, 'question')}{before})" if task.questions else ""


def _best(figures: "Mapping[str, TaskFigure]") -> str | None:
    bounds = {title: figure.interval for title, figure in figures.items() if figure.interval}
    better = next(iter(figures.values())).better
    return best_of(bounds, better) if len(bounds) == len(figures) else None


def _cell(figure: "TaskFigure | None", *, bold: bool) -> Text:
    if figure is None:
        return Text()
    text = f"{figure.value:.4f}"
    if figure.interval:
        text += f" [{figure.interval[0]:.4f}, {figure.interval[1]:.4f}]"
    return untrusted(text, "bold" if bold else "")
