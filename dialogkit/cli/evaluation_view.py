"""Prints the result of an evaluation."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from dialogkit.cli.metrics_table import letters_of, print_side_by_side, print_tasks
from dialogkit.cli.output import WANDB, Output, encodes, fits, fitting, table, untrusted, values_grid
from dialogkit.hints import Call
from dialogkit.services.evaluation.table import columns_of, figure_of, legend_of, measured
from dialogkit.text import counted, known_from_training, no_fault
from dialogkit.tracking.metric_specs import FEW, GROUPS, METRICS, Metric, best_of

if TYPE_CHECKING:
    from rich.table import Table

    from dialogkit.services.evaluate import EvaluateRequest, EvaluateResult, EvaluateRow

_LONGEST = 800
_FEW_WRONG = 3
"""Wrong answers that are shown unless more are asked for."""


def render_evaluation(
    output: Output, result: "EvaluateResult", request: "EvaluateRequest", *, slices: bool = False, worst: int = 0
) -> None:
    """Print the metrics of an evaluation, its dialogs, and the remarks on each model."""
    _render_heading(output, result.rows, request)
    if result.anchors:
        render_figures(output, _lettered(result))
        marks = _marks(output)
        legend = (
            f"{marks[1]} higher is better, {marks[-1]} lower is; dialogkit evaluate --help explains the metrics"
        )
        output.note(legend, "dim")
        output.print("")
    else:
        _render_likelihood(output, result.rows)
    if result.verdict is not None:
        output.print(untrusted(result.verdict.text), "")
    said: dict[str, list[str]] = {}
    for row in result.rows:
        for note in size_notes(row, request):
            said.setdefault(note.removeprefix(f"{row.model}: "), []).append(row.model)
    for note, names in said.items():
        output.print(untrusted(f"{', '.join(names)}: {note}"))
    for row in result.rows:
        for remark in row.remarks:
            output.print(untrusted(f"{row.model} {remark}."))
        if result.anchors and not row.remarks and row.dialogs >= FEW:
            output.print(untrusted(f"{row.model}: {no_fault(row.checks)}."))
    for row in result.rows:
        if slices:
            _render_slices(output, row)
            _render_right(output, row)
        _render_wrong(output, row, max(worst, _FEW_WRONG))
        if worst:
            _render_worst(output, row, worst)
    if any(row.tasks for row in result.rows):
        output.print("")
        print_tasks(output, {row.model: row.tasks for row in result.rows})
    _render_kept(output, result)
    for tracked in result.tracked:
        output.note(tracked.url or shlex.join(["wandb", "sync", *tracked.folders]), label=(WANDB, ""))


def _render_heading(output: Output, rows: "Sequence[EvaluateRow]", request: "EvaluateRequest") -> None:
    """Print which models were evaluated, with letters if there are several, and on which dialogs."""
    titles = []
    for row, word in zip(rows, request.models, strict=True):
        known = word is None or word == row.model or word.rstrip("/").endswith(f"/{row.model}")
        titles.append(row.model if known else f"{row.model} ({word})")
    measured = [_measured_on(row) for row in rows]
    if len(rows) == 1:
        output.print(untrusted(f"{titles[0]} on {measured[0]}", "bold"))
        return
    same = len(set(measured)) == 1
    for letter, title, dialogs in zip(letters_of(len(rows)), titles, measured, strict=True):
        output.print(untrusted(f"{letter}  {title}" if same else f"{letter}  {title} on {dialogs}", "bold"))
    if same:
        output.print(untrusted(f"on {measured[0]}", "bold"))


def _measured_on(row: "EvaluateRow") -> str:
    """Return which dialogs a model was evaluated on, and how many."""
    if row.held_out is None or row.of_dialogs is None:
        return f"{row.dataset}, {counted(row.dialogs, 'dialog')}"
    if row.dialogs == row.held_out:
        return f"{row.dataset}, {counted(row.dialogs, 'held-out dialog')}"
    if row.dialogs < row.held_out:
        return f"{row.dataset}, {row.dialogs:,} of {counted(row.held_out, 'held-out dialog')}"
    all_of = "all " if row.dialogs == row.of_dialogs else f"{row.dialogs:,} of "
    learned = ", including those it was trained on" if row.trained_on else ""
    return f"{row.dataset}, {all_of}{counted(row.of_dialogs, 'dialog')}{learned}"


def _whole_for_more(row: "EvaluateRow", request: "EvaluateRequest") -> bool | None:
    """Return whether evaluating more dialogs requires --whole; None if no more are left, or only training ones."""
    if row.held_out is None or row.of_dialogs is None:
        return None
    if request.samples is not None and row.dialogs == request.samples and row.held_out > row.dialogs:
        return request.whole
    return True if row.dialogs < row.of_dialogs and not row.own_data else None


def size_notes(row: "EvaluateRow", request: "EvaluateRequest") -> "Iterator[str]":
    """Yield notes if training contains dialogs, or if there are fewer than asked for, or too few to say much."""
    if not row.trained_on and (
        known := known_from_training(counted(row.dialogs, "dialog"), row.known_prompts, row.known_answers)
    ):
        yield f"{row.model}: {known}: the metrics say less about new questions."
    whole = f"; --whole takes all {row.of_dialogs:,}" if _whole_for_more(row, request) else ""
    if row.own_data and row.dialogs >= (row.held_out or 0):
        whole = f"; it can be tested on another file (--dataset FILE){_more_held_out(row)}"
    there, what = (row.of_dialogs, "there") if request.whole else (row.held_out, "held out")
    if request.samples is not None and row.dialogs < request.samples and there is not None:
        are = "is" if there == 1 else "are"
        yield f"{row.model}: {request.samples:,} dialogs were asked for, and {there:,} {are} {what}{whole}."
        whole = ""
    if row.dialogs < FEW:
        dialogs = counted(row.dialogs, "dialog")
        intervals = "have no intervals" if row.dialogs == 1 else "their intervals are too narrow"
        yield f"{row.model}: results on only {dialogs} say little about a model, and {intervals}{whole}."


def _more_held_out(row: "EvaluateRow") -> str:
    """Return how to hold out some twenty dialogs; empty if it already holds out half of them."""
    if row.of_dialogs is None or row.held_out is None or 2 * row.held_out >= row.of_dialogs:
        return ""
    fraction = min(0.5, math.ceil(200 / row.of_dialogs) / 10)
    return f", or trained with more held out (train --set data.eval_fraction={fraction:g})"


def next_command(result: "EvaluateResult", request: "EvaluateRequest") -> Call | None:
    """Return the next command: one that evaluates more dialogs if there were too few, or shows what was saved."""
    if result.same_dialogs is not None:
        return result.same_dialogs
    few = next((row for row in result.rows if row.dialogs < FEW), None)
    more = None if few is None else _whole_for_more(few, request)
    # A dataset that one of the models was trained on is no fair test.
    if few is not None and (whole := more) is not None and not (whole and any(r.own_data for r in result.rows)):
        models = [word or row.model for row, word in zip(result.rows, request.models, strict=True)]
        return Call("evaluate", *models, dataset=request.dataset, whole=whole, output_dir=str(request.output))
    runs = [kept.run for kept in result.kept]
    verb = "runs report" if len(runs) == 1 else "runs compare"
    return Call(verb, *runs, output_dir=str(request.output)) if runs else None


def _render_kept(output: Output, result: "EvaluateResult") -> None:
    """Print where the metrics, the replies and the worst dialogs of each model were saved."""
    measured = {row.model: row.dialogs for row in result.rows}
    for kept in result.kept:
        stem = Path(kept.figures).stem
        beside = [Path(path).name.removeprefix(stem) for path in (kept.replies, kept.worst)]
        line = f"saved: {kept.figures}, {', '.join(beside)}"
        if kept.shown_dialogs != measured.get(kept.run):
            line += f"; `runs` and the page still show that on {counted(kept.shown_dialogs, 'dialog')}"
        output.note(line)
    for row in result.rows if result.anchors else ():
        if row.model not in {kept.run for kept in result.kept}:
            output.note(f"{row.model}: not from a run folder, so nothing was saved")


def _render_likelihood(output: Output, rows: "Sequence[EvaluateRow]") -> None:
    columns: dict[str, Callable[[EvaluateRow], str]] = {
        "model": lambda row: row.model,
        "loss": lambda row: f"{row.nats_per_token:.4f}",
        "perplexity": lambda row: f"{row.perplexity:,.2f}",
        "bits/byte": lambda row: f"{row.bits_per_byte:.4f}",
        "token accuracy": lambda row: f"{row.accuracy:.1%}",
        "tokens": lambda row: f"{row.tokens:,}",
    }
    dispensable = ("perplexity", "tokens", "token accuracy")
    output.print(fitting(output.out, columns, rows, right=list(columns)[1:], dispensable=dispensable))


def render_figures(
    output: Output, result: "EvaluateResult", *, only: Sequence[str] = (), without: str | None = None
) -> None:
    """Print one metric per line, with the models and their baselines side by side as far as they fit.

    Args:
        output: where to print.
        result: the evaluation.
        only: metrics to show; empty: all.
        without: a metric to leave out.
    """
    best, marks = _best(result), _marks(output)
    wanted = [metric for metric in METRICS if metric.name != without and (not only or metric.name in only)]
    metrics = measured(wanted, result.rows)

    def draw(columns: "Sequence[tuple[str, EvaluateRow]]", *, short: bool = False) -> "Table":
        # Perplexity restates the loss, and is the widest column.
        shown = [metric for metric in metrics if not (short and metric.name == "perplexity")]
        return _side_by_side(columns, shown, best, marks, short=short)

    columns = columns_of(result.rows, result.anchors)
    if result.anchors and not fits(output.out, draw(columns)) and fits(output.out, draw(columns, short=True)):
        output.print(draw(columns, short=True))
    else:
        print_side_by_side(output, columns, draw)


def _lettered(result: "EvaluateResult") -> "EvaluateResult":
    """Return a result with letters for the names of several models: names of runs are long."""
    if len(result.rows) == 1:
        return result
    letters = letters_of(len(result.rows))
    anchors, model = [], 0
    seen: set[object] = set()
    for anchor in result.anchors:  # ordered by model, whatever their names
        if anchor.anchor in seen:
            model, seen = min(model + 1, len(letters) - 1), set()
        seen.add(anchor.anchor)
        anchors.append(anchor.model_copy(update={"model": letters[model]}))
    rows = [row.model_copy(update={"model": letter}) for letter, row in zip(letters, result.rows, strict=True)]
    verdict = result.verdict
    if verdict is not None:
        verdict = verdict.with_best_as(
            {row.model: letter for letter, row in zip(letters, result.rows, strict=True)}
        )
    return result.model_copy(update={"rows": rows, "anchors": anchors, "verdict": verdict})


def _marks(output: Output) -> dict[int, str]:
    """Return the mark of a metric for which higher (1) or lower (-1) is better."""
    more, less = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"
    return {1: more, -1: less, 0: " "} if encodes(output.out, more + less) else {1: "+", -1: "-", 0: " "}


def _side_by_side(
    columns: "Sequence[tuple[str, EvaluateRow]]",
    metrics: Sequence[Metric],
    best: dict[str, str],
    marks: dict[int, str],
    *,
    short: bool,
) -> "Table":
    titles = [title.replace("true answers", "true\nanswers") if short else title for title, _ in columns]
    drawn = table(legend_of(row for _, row in columns), *titles, right=titles)
    group = ""
    for metric in metrics:
        cells = [_cell(metric, row, bold=best.get(metric.name) == row.model, short=short) for _, row in columns]
        if not any(cell.plain for cell in cells):
            continue
        if metric.group != group:
            group = metric.group
            drawn.add_row(Text(GROUPS[metric.group][0], style="bold"))
        drawn.add_row(f"{marks[metric.better]} {metric.title}", *cells)
    return drawn


def _cell(metric: Metric, row: "EvaluateRow", *, bold: bool, short: bool) -> Text:
    return untrusted(figure_of(metric, row, short=short), "dim" if row.anchor else "bold" if bold else "")


def _best(result: "EvaluateResult") -> dict[str, str]:
    """Return the best model by metric, if its interval does not overlap any other on the same dialogs.

    Bits per byte follow the verdict, which compares dialog by dialog: that is sharper than two intervals.
    """
    best: dict[str, str] = {}
    rows = result.rows
    if len({(row.dataset, row.dialogs) for row in rows}) > 1:
        return best
    for metric in METRICS:
        bounds = {row.model: row.intervals[metric.name] for row in rows if metric.name in row.intervals}
        if len(bounds) == len(rows) and (first := best_of(bounds, metric.better)) is not None:
            best[metric.name] = first
    if result.verdict is not None:
        best["bits_per_byte"] = result.verdict.clearly_best or ""
    return best


def _render_slices(output: Output, row: "EvaluateRow") -> None:
    from dialogkit.services.evaluation.slices import LEAST

    output.print("")
    numbers = ("dialogs", "bits/byte", "95% interval")
    drawn = table(row.model, *numbers, right=numbers)
    for part in row.slices:
        bounds = f"{part.interval[0]:.4f} - {part.interval[1]:.4f}" if part.interval else ""
        drawn.add_row(untrusted(part.name), f"{part.dialogs:,}", f"{part.bits_per_byte:.4f}", bounds)
    if row.slices:
        output.print(drawn)
    scarce = [f"{kind} {number}" for kind, number in row.scarce.items()]
    kinds = ", ".join([*scarce, "and other first words of prompts"])
    output.print(untrusted(f"not shown separately, under {LEAST} dialogs each: {kinds}"))


def _render_right(output: Output, row: "EvaluateRow") -> None:
    """Print how many checked questions are answered right, by what is new in them and by topic."""
    if not (kinds := [*row.right_by_new, *row.right_by_topic]):
        return
    numbers = ("questions", "right", "95% interval")
    drawn = table(f"{row.model}, checked questions", *numbers, right=numbers)
    new = len(row.right_by_new)
    for place, kind in enumerate(kinds):
        bounds = f"{kind.interval[0]:.0%} - {kind.interval[1]:.0%}" if kind.interval else ""
        name = f"new {kind.name}" if place < new else kind.name
        drawn.add_row(untrusted(name), f"{kind.questions:,}", f"{kind.right / kind.questions:.0%}", bounds)
    output.print("", drawn)


def _render_wrong(output: Output, row: "EvaluateRow", number: int) -> None:
    """Print the first wrong answers to checked questions."""
    for place, wrong in enumerate(row.wrong[:number], 1):
        output.print("", untrusted(f"{row.model}, wrong answer {place} of {len(row.wrong):,}", "bold"))
        output.print(untrusted(f"> {_beginning(wrong.question)}"))
        texts = {"true answer": wrong.answer, "its reply": wrong.reply or "(empty)"}
        output.print(values_grid({name: _beginning(text) for name, text in texts.items()}))


def _render_worst(output: Output, row: "EvaluateRow", number: int) -> None:
    """Print the dialogs whose answers the model finds most improbable."""
    for place, worst in enumerate(row.worst[:number], 1):
        title = f"{row.model}, worst {place}: {worst.bits_per_byte:.2f} bits/byte for the true answer"
        output.print("", untrusted(title, "bold"))
        output.print(untrusted(f"> {_beginning(worst.prompt)}"))
        reply = {} if worst.reply is None else {"its reply": worst.reply or "(empty)"}
        texts = {"true answer": worst.answer, **reply}
        output.print(values_grid({name: _beginning(text) for name, text in texts.items()}))


def _beginning(text: str) -> str:
    """Return a text, shortened if it is long."""
    left_out = len(text) - _LONGEST
    return text if left_out <= 0 else f"{text[:_LONGEST]} ... ({left_out:,} more characters)"
