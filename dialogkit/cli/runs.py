"""`dialogkit runs`."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding

from dialogkit.cli import complete, hints
from dialogkit.cli.options import JsonOption, OutputOption
from dialogkit.cli.output import Output, date, fits, fitting, parameters, untrusted
from dialogkit.hints import Call
from dialogkit.text import counted, duration, sanitize

if TYPE_CHECKING:
    from dialogkit.services.runs.compare import SyncRow
    from dialogkit.services.runs.listing import RunRow


_DISPENSABLE = ("parameters", "preset", "stop rate", "tokens/s", "loss", "steps", "time", "status")
"""Columns that are left out in a narrow terminal, the first ones first; `status` only if all are completed."""
_TIED = 3
"""Runs that are named as no worse than the best one."""
_FIRST_TRAINING = Call("train", "custom-tiny", preset="test")


def list_command(output_dir: OutputOption = "models", json_output: JsonOption = False) -> None:
    """List the runs, the newest first."""
    from dialogkit.services.runs.listing import list_run_rows
    from dialogkit.tracking.run_list import is_ahead

    rows, damaged = list_run_rows(output=output_dir)
    hint = None if rows else _FIRST_TRAINING
    none = f"there is no run in {output_dir!r} yet"
    if damaged:
        hint = Call("runs show", damaged[0], output_dir=output_dir)

    def render(out: Output) -> None:
        render_runs(out, rows, none=none)
        if ahead := [row for row in rows if is_ahead(row.created)]:
            names = ", ".join(f"{row.name} ({row.created})" for row in ahead)
            out.note(f"listed last, as the clock was wrong: {names}")
        out.skipped(damaged)

    Output(json_mode=json_output).result(rows, render, hint=hint)


def show_command(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.", autocompletion=complete.runs)],
    everything: Annotated[bool, typer.Option("--all", help="Show the whole record, and replies in full.")] = False,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Show a run: metrics, model and data, settings, replies, loss curve, evaluation."""
    from dialogkit.cli.run_view import render_run
    from dialogkit.services.runs.compare import show_run

    shown = show_run(name, output=output_dir)
    # JSON has all of it already.
    hint = None if everything or json_output else Call("runs show", name, all=True, output_dir=output_dir)
    Output(json_mode=json_output).result(
        shown, lambda out: render_run(out, shown, everything=everything), hint=hint
    )


def compare_command(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Two or more runs.", autocompletion=complete.runs)
    ],
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Show runs side by side: metrics, different settings, replies."""
    from dialogkit.cli.comparison_view import render_comparison
    from dialogkit.services.runs.compare import compare_runs

    compared = compare_runs(names, output=output_dir)
    # Runs that were not evaluated on the same dialogs have no intervals to compare.
    hint = compared.evaluation
    compared = compared.model_copy(update={"evaluate": shlex.split(hints.render(hint) or "")})
    Output(json_mode=json_output).result(compared, lambda out: render_comparison(out, compared), hint=hint)


def best_command(output_dir: OutputOption = "models", json_output: JsonOption = False) -> None:
    """Show the finished run with the lowest bits per byte, for each dataset."""
    from dialogkit.services.runs.listing import best_runs

    rows = best_runs(output=output_dir)
    hint = Call("generate", rows[0].name) if rows else _FIRST_TRAINING
    none = f"there is no finished run in {output_dir!r} yet"
    Output(json_mode=json_output).result(rows, lambda out: _render_best(out, rows, none), hint=hint)


def _render_best(output: Output, rows: "list[RunRow]", none: str) -> None:
    """Print the best run of each dataset, and which others may be as good."""
    render_runs(output, rows, none=none)
    for row in rows:
        if row.tied_with:
            output.note(_tie(row))


def _tie(row: "RunRow") -> str:
    """Return which runs the best one may not be better than, and how to find out."""
    names = ", ".join(row.tied_with[:_TIED]) + (" ..." if len(row.tied_with) > _TIED else "")
    if not row.not_paired:
        return f"{row.name} is not clearly better than {names}, compared dialog by dialog"
    by_dialog = hints.render(Call("evaluate", row.name, *row.not_paired[:_TIED]))
    overlapping = (
        "their 95% intervals overlap" if row.not_paired == row.tied_with else "some 95% intervals overlap"
    )
    return (
        f"{row.name} is not clearly better than {names}: {overlapping}; "
        f"{by_dialog} compares them dialog by dialog, which is sharper"
    )


def report_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="One run, or several side by side.", autocompletion=complete.runs),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help=r"HTML file. \[for one run: in its folder]"),
    ] = None,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Write runs as one HTML page: curves, metrics, replies, settings, data, machine."""
    from dialogkit.services.runs.report import write_report

    output = Output(json_mode=json_output)
    with output.busy("drawing"):
        written = write_report(names, to=to, output=output_dir)
    output.result(written, lambda out: out.print(untrusted(f"report: {written.path}")))


def sync_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Runs to upload. Default: all offline ones.", autocompletion=complete.runs
        ),
    ] = None,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Upload offline runs to W&B; unreadable ones are skipped with a warning.

    The server has 10 s to answer, and each upload takes at most 600 s.
    """
    from dialogkit.services.runs.compare import sync_runs

    output = Output(json_mode=json_output)
    with output.progress() as progress:
        rows = sync_runs(names, output=output_dir, progress=progress)

        left = any(not row.uploaded and "holds no record" not in row.reason for row in rows)
    again = Call("runs sync", *(names or []), output_dir=output_dir)
    output.result(rows, lambda out: _render_uploads(out, rows), hint=again if left else None)
    if rows and not any(row.uploaded for row in rows):
        raise typer.Exit(1)


def _render_uploads(out: Output, rows: "Sequence[SyncRow]") -> None:
    """Print the result of each upload; a reason that several share is printed once."""
    if not rows:
        out.print("there are no offline runs to upload")
    said: set[str] = set()
    for row in rows:
        if row.uploaded or len(rows) > 1:
            out.text(sanitize(f"{'uploaded' if row.uploaded else 'skipped'}  {row.folder}"))
        reason = row.reason.replace(Path(row.folder).name, "")
        if reason and reason not in said:
            out.note(f"warning: {row.reason}")
        said.add(reason)
    if len(rows) > 1 or any(not row.uploaded for row in rows):
        out.print(f"{sum(row.uploaded for row in rows)} of {counted(len(rows), 'offline run')} uploaded")


def render_runs(output: Output, rows: "list[RunRow]", *, none: str = "no run") -> None:
    """Print one run per line, or `none`; where a line is too narrow, one run per paragraph."""
    if not rows:
        output.print(untrusted(none))
        return
    columns: dict[str, Callable[[RunRow], str]] = {
        "run": lambda row: row.name,
        "status": lambda row: row.status,
        "steps": _steps,
        "bits/byte": lambda row: "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}",
        "loss": lambda row: "" if row.nats_per_token is None else f"{row.nats_per_token:.3f}",
        "stop rate": lambda row: "" if row.stop_rate is None else f"{row.stop_rate:.1%}",
        "tokens/s": lambda row: "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
        "time": lambda row: "" if row.duration_s is None else duration(row.duration_s),
        "date": lambda row: date(row.created),
        "model": lambda row: row.model,
        "parameters": lambda row: parameters(row.parameters),
        "preset": lambda row: row.preset,
        "data": lambda row: row.dataset,
    }
    right = ("steps", "bits/byte", "loss", "stop rate", "tokens/s", "time", "parameters")
    dispensable = [name for name in _DISPENSABLE if name != "status" or _all_completed(rows)]
    drawn = fitting(output.out, columns, rows, right=right, dispensable=dispensable)
    if not fits(output.out, drawn):
        columns["date"] = lambda row: date(row.created).partition(" ")[0]
        drawn = fitting(output.out, columns, rows, right=right, dispensable=dispensable)
    if fits(output.out, drawn):
        output.print(drawn)
        return
    for row in rows:
        output.print(untrusted(row.name, "bold"))
        bits = "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f} bits/byte"
        model = f"{row.model} on {row.dataset}" if row.dataset else row.model
        for line in (", ".join(filter(None, (row.status, bits))), model, date(row.created)):
            output.print(Padding(untrusted(line), (0, 0, 0, 2)))


def _all_completed(rows: "Sequence[RunRow]") -> bool:
    return all(row.status == "completed" for row in rows)


def _steps(row: "RunRow") -> str:
    """Return the number of steps, and the planned one if they differ."""
    if row.steps is None or row.total_steps is None:
        return ""
    return f"{row.steps:,}" if row.steps == row.total_steps else f"{row.steps:,}/{row.total_steps:,}"
