"""`dialogkit evaluate`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli.figures import best_of, print_side_by_side, print_tasks
from dialogkit.cli.options import JsonOption, ModelsArgument, NoCudaOption, OutputOption
from dialogkit.cli.output import Output, fitting, table, untrusted
from dialogkit.services.reporter import counted
from dialogkit.tracking.figures import ANCHORS, FIGURES

if TYPE_CHECKING:
    from rich.table import Table

    from dialogkit.services.evaluate import EvaluateResult, EvaluateRow


def evaluate_command(
    models: ModelsArgument = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", "-d", metavar="DATA", help="Default: the held-out dialogs of the run's dataset."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", "-s", min=1, metavar="N", help="Dialogs, and questions of a task.")
    ] = None,
    max_bad_rows: Annotated[
        int, typer.Option("--max-bad-rows", min=0, metavar="N", help="Malformed rows to pass over.")
    ] = 0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Score the whole dataset, not only its held-out dialogs.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only how well answers are predicted: no replies, no anchors.")
    ] = False,
    slices: Annotated[bool, typer.Option("--slices", help="Show kinds of dialogs one by one.")] = False,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", metavar="TASKS", help="Of the lm-evaluation-harness: arc_easy,hellaswag or FILE.yaml."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=65_536, metavar="N", help="Dialogs at once; changes no figure.")
    ] = 8,
    wandb: Annotated[
        str | None,
        typer.Option("--wandb", metavar="MODE", help="auto, online, offline or disabled. [the run's]"),
    ] = None,
    no_cuda: NoCudaOption = False,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Measure how well models predict held-out answers, listen to prompts, and talk."""
    from dialogkit.services.evaluate import evaluate

    shown = Output(json_mode=json_output)
    with shown.progress() as on_progress:
        result = evaluate(
            models,
            dataset=dataset,
            samples=samples,
            max_bad_rows=max_bad_rows,
            whole=whole,
            batch_size=batch_size,
            quick=quick,
            tasks=[name for name in map(str.strip, (tasks or "").split(",")) if name],
            wandb=wandb,
            output=output_dir,
            device="cpu" if no_cuda else "auto",
            on_progress=on_progress,
        )
    shown.result(result, lambda out: _render(out, result, slices=slices))


def _scored(row: "EvaluateRow") -> str:
    return f"{row.dataset}, {counted(row.dialogs, 'dialog')}"


def _render(output: Output, result: "EvaluateResult", *, slices: bool) -> None:
    if result.anchors:
        render_figures(output, result)
    else:
        _render_likelihood(output, result.rows)
    for row in result.rows:
        for remark in row.remarks:
            output.print(untrusted(f"{row.model} {remark}."))
    if slices:
        for row in result.rows:
            output.print(_slices(row))
    if any(row.tasks for row in result.rows):
        output.print("")
        print_tasks(output, {row.model: row.tasks for row in result.rows})
    datasets = list(dict.fromkeys(map(_scored, result.rows)))
    if len(datasets) == 1:
        output.err.print(untrusted(f"on {datasets[0]}"))
    else:
        for row in result.rows:
            output.err.print(untrusted(f"{row.model} on {_scored(row)}"))
    if len({row.dataset for row in result.rows}) > 1:
        output.err.print("figures of different datasets cannot be compared; name one by --dataset DATA")
    for told in result.tracked:
        output.err.print(untrusted(f"W&B: {told.url or f'wandb sync {told.folder}'}"), soft_wrap=True)


def _render_likelihood(output: Output, rows: "Sequence[EvaluateRow]") -> None:
    columns: dict[str, Callable[[EvaluateRow], str]] = {
        "model": lambda row: row.model,
        "loss": lambda row: f"{row.nats_per_token:.4f}",
        "perplexity": lambda row: f"{row.perplexity:,.2f}",
        "bits/byte": lambda row: f"{row.bits_per_byte:.4f}",
        "accuracy": lambda row: f"{row.accuracy:.1%}",
        "tokens": lambda row: f"{row.tokens:,}",
    }
    numbers = list(columns)[1:]
    output.print(
        fitting(output.out, columns, rows, right=numbers, dispensable=("perplexity", "tokens", "accuracy"))
    )


def render_figures(
    output: Output, result: "EvaluateResult", *, only: Sequence[str] = (), without: str | None = None
) -> None:
    """Print the figures one below the other, the models and their anchors side by side, as many as fit.

    Args:
        output: where to.
        result: what was measured.
        only: the figures that are shown; without any, all.
        without: a figure that is not.
    """
    best = _best(result.rows)

    def draw(rows: "Sequence[EvaluateRow]") -> "Table":
        return _side_by_side(rows, best, lambda name: name != without and (not only or name in only))

    print_side_by_side(output, [*result.rows, *result.anchors], draw)


def _side_by_side(rows: "Sequence[EvaluateRow]", best: dict[str, str], shown: Callable[[str], bool]) -> "Table":
    titles = [ANCHORS[row.anchor] if row.anchor else row.model for row in rows]
    drawn = table("95% interval in brackets", *titles, right=titles)
    for name, title, form, _, _ in FIGURES:
        cells = []
        for row in rows:
            value = getattr(row, name)
            text = "" if value is None else format(value, form)
            if value is not None and not row.anchor and (bounds := row.intervals.get(name)):
                text += f" [{format(bounds[0], form)}, {format(bounds[1], form)}]"
            style = "bold" if best.get(name) == row.model and not row.anchor else "dim" if row.anchor else ""
            cells.append(untrusted(text, style))
        if any(cell.plain for cell in cells) and shown(name):
            drawn.add_row(title, *cells)
    return drawn


def _best(rows: "Sequence[EvaluateRow]") -> dict[str, str]:
    """Return the model that is best in a figure, where its interval is apart from those of all others."""
    best: dict[str, str] = {}
    for name, _, _, better, _ in FIGURES:
        bounds = {row.model: row.intervals[name] for row in rows if name in row.intervals}
        if not better or len(bounds) < 2 or len(bounds) < len(rows):
            continue
        if (first := best_of(bounds, better)) is not None:
            best[name] = first
    return best


def _slices(row: "EvaluateRow") -> "Table":
    drawn = table(
        row.model, "dialogs", "bits/byte", "95% interval", right=("dialogs", "bits/byte", "95% interval")
    )
    for part in row.slices:
        bounds = f"{part.interval[0]:.4f} - {part.interval[1]:.4f}" if part.interval else ""
        drawn.add_row(untrusted(part.name), f"{part.dialogs:,}", f"{part.bits_per_byte:.4f}", bounds)
    return drawn
