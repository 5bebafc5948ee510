"""Prints runs side by side."""

import json
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from dialogkit.cli.metrics_table import letters_of, print_tasks
from dialogkit.cli.output import Output, replies_table, table, untrusted
from dialogkit.text import counted, listed
from dialogkit.tracking.metric_specs import HELD_OUT, STOP_RATE

if TYPE_CHECKING:
    from dialogkit.services.runs.compare import Comparison

_LOSS = HELD_OUT["nats_per_token"][1]
_FORMS = dict(HELD_OUT.values()) | {
    "loss before": _LOSS,
    "loss": _LOSS,
    STOP_RATE: ".1%",
    "training seconds": ",.1f",
}
"""Number formats of figures by their names."""


def render_comparison(output: Output, compared: "Comparison") -> None:
    """Print runs side by side."""
    letters = letters_of(len(compared.runs))
    for letter, name in zip(letters, compared.runs, strict=True):
        output.print(untrusted(f"{letter}  {name}"))
    if compared.conclusion:
        output.print("", untrusted(compared.conclusion))
    _warn_of_different_dialogs(output, compared, letters)
    for title, rows in (
        ("figure", compared.figures),
        ("setting", compared.settings),
        ("version", compared.versions),
    ):
        if rows:
            drawn = table(title, *letters, right=letters if title == "figure" else ())
            for row in rows:
                drawn.add_row(untrusted(row.name), *(untrusted(_value(row.name, value)) for value in row.values))
            output.print("", drawn)
    _render_evaluations(output, compared, letters)
    _render_replies(output, compared, letters)


def _warn_of_different_dialogs(output: Output, compared: "Comparison", letters: Sequence[str]) -> None:
    """Report runs that were evaluated on different dialogs, and on how many."""
    evaluated_apart = compared.evaluate and any(compared.evaluated_on)
    hidden = ", so their evaluations are not shown side by side"
    hidden = hidden if evaluated_apart and not compared.evaluations else ""
    if not compared.same_data:
        own = [
            f"{letter}'s are {part.dialogs:,} of {part.dataset}"
            for letter, part in zip(letters, compared.held_out, strict=True)
            if part is not None
        ]
        numbers = f" ({', '.join(own)})" if own else ""
        said = f"their held-out dialogs differ{numbers}: results on different dialogs cannot be compared"
        output.note(f"{said}{hidden}")
    elif evaluated_apart and len({tuple(map(str, parts)) for parts in compared.evaluated_on if parts}) == 1:
        missing = [letter for letter, parts in zip(letters, compared.evaluated_on, strict=True) if not parts]
        output.note(f"{listed(missing)} {'was' if len(missing) == 1 else 'were'} not evaluated{hidden}")
    elif evaluated_apart:
        each = [
            f"{letter} on {' and '.join(f'{part.dialogs:,} of {part.dataset}' for part in parts) or 'none'}"
            for letter, parts in zip(letters, compared.evaluated_on, strict=True)
        ]
        output.note(f"their stored evaluations are on different dialogs ({', '.join(each)}){hidden}")


def _render_evaluations(output: Output, compared: "Comparison", letters: Sequence[str]) -> None:
    """Print the stored evaluations with their intervals, and the task results."""
    from dialogkit.cli.evaluation_view import render_figures
    from dialogkit.services.evaluate import EvaluateResult

    for evaluation in compared.evaluations:
        title = f"evaluated on {evaluation.dataset}, {counted(evaluation.dialogs, 'dialog')}"
        output.print("", untrusted(title, "bold"))
        pairs = zip(letters, evaluation.rows, strict=True)
        rows = [row.model_copy(update={"model": letter}) for letter, row in pairs if row is not None]
        verdict = evaluation.verdict.with_best_as(dict(zip(compared.runs, letters, strict=True)))
        # Perplexity restates the loss, and is the widest column.
        render_figures(output, EvaluateResult(rows=rows, verdict=verdict), without="perplexity")
    if any(compared.tasks):
        output.print("")
        print_tasks(output, dict(zip(letters, compared.tasks, strict=True)))


def _render_replies(output: Output, compared: "Comparison", letters: Sequence[str]) -> None:
    true = [None if one.reference is None else f"true answer: {one.reference}" for one in compared.replies]
    rows = [
        (answered.prompt if answer is None else f"{answered.prompt}\n({answer})", answered.replies)
        for answered, answer in zip(compared.replies, true, strict=True)
    ]
    if rows and (drawn := replies_table(output.out, letters, rows)) is not None:
        output.print("", drawn)
        return
    for answered, answer in zip(compared.replies, true, strict=True):
        output.print("", untrusted(f"> {answered.prompt}", "bold"))
        if answer is not None:
            output.print(untrusted(f"   {answer}", "dim"))
        for letter, reply in zip(letters, answered.replies, strict=True):
            output.print(untrusted(f"{letter}  {reply or '(empty)'}"))


def _value(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and (form := _FORMS.get(name)) is not None:
        return format(value, form)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shorten(shown, 60, placeholder=" ...") if isinstance(value, list) else shown
