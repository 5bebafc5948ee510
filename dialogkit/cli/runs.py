"""`dialogkit runs`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli.options import JsonOption, OutputOption
from dialogkit.cli.output import Output, fitting, parameters, settings_table, table, untrusted
from dialogkit.text import duration

if TYPE_CHECKING:
    from dialogkit.services.runs import Comparison, RunRow


def list_command(output_dir: OutputOption = "models", json_output: JsonOption = False) -> None:
    """List the runs, the newest first."""
    from dialogkit.services.runs import list_run_rows

    rows = list_run_rows(output=output_dir)
    hint = None if rows else "dialogkit train custom-tiny --preset test"
    Output(json_mode=json_output).result(rows, lambda out: _render_list(out, rows), hint=hint)


def show_command(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Show everything that is recorded of a run."""
    from dialogkit.config.load import flatten
    from dialogkit.services.runs import show_run

    record = show_run(name, output=output_dir)
    recorded = flatten(record.model_dump(mode="json", exclude={"origins"}))
    facts = {name: value for name, value in recorded if value not in (None, "", [])}
    Output(json_mode=json_output).result(record, lambda out: out.print(settings_table(facts)))


def compare_command(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Two runs or more.")],
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Show runs side by side: figures, settings that differ, replies."""
    from dialogkit.services.runs import compare_runs

    compared = compare_runs(names, output=output_dir)
    Output(json_mode=json_output).result(compared, lambda out: _render_comparison(out, compared))


def best_command(output_dir: OutputOption = "models", json_output: JsonOption = False) -> None:
    """Name the finished run with the fewest bits per byte, for each dataset."""
    from dialogkit.services.runs import best_runs

    rows = best_runs(output=output_dir)
    hint = f"dialogkit generate {rows[0].name}" if rows else "dialogkit train custom-tiny --preset test"
    Output(json_mode=json_output).result(rows, lambda out: _render_list(out, rows, _WITH_DATASET), hint=hint)


def report_command(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="One run, or several side by side.")],
    to: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="HTML file. [of one run: in its folder]"),
    ] = None,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Write runs as one HTML page: curves, figures, what was said, settings, data, machine."""
    from dialogkit.services.report import write_report

    output = Output(json_mode=json_output)
    with output.busy("drawing"):
        written = write_report(names, to=to, output=output_dir)
    output.result(written, lambda out: out.print(untrusted(f"report: {written.path}")))


def _render_comparison(output: Output, compared: "Comparison") -> None:
    letters = [chr(ord("A") + number) if number < 26 else str(number) for number in range(len(compared.runs))]
    for letter, name in zip(letters, compared.runs, strict=True):
        output.print(untrusted(f"{letter}  {name}"))
    for title, rows in (
        ("figure", compared.figures),
        ("setting", compared.settings),
        ("version", compared.versions),
    ):
        if rows:
            output.print("")
            drawn = table(title, *letters, right=letters if title == "figure" else ())
            for row in rows:
                drawn.add_row(untrusted(row.name), *(untrusted(_value(row.name, value)) for value in row.values))
            output.print(drawn)
    if not compared.same_data:
        output.err.print("their held-out dialogs differ: figures of different datasets cannot be compared")
    for answered in compared.replies:
        output.print("")
        output.print(untrusted(f"> {answered.prompt}", "bold"))
        for letter, reply in zip(letters, answered.replies, strict=True):
            output.print(untrusted(f"{letter}  {reply or '(empty)'}"))


def _value(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name in ("token accuracy", "stop rate") and isinstance(value, float):
        return f"{value:.1%}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shorten(shown, 60, placeholder=" ...") if isinstance(value, list) else shown


def sync_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs to upload. Default: all offline ones.")
    ] = None,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Upload offline runs to W&B; unreadable ones are passed over with a warning."""
    from dialogkit.services.runs import sync_runs

    output = Output(json_mode=json_output)
    with output.busy("uploading offline runs"):
        rows = sync_runs(names, output=output_dir)

    def render(out: Output) -> None:
        for row in rows:
            out.print(untrusted(f"{'uploaded' if row.uploaded else 'passed over'}  {row.folder}"))
            if row.reason:
                out.err.print(untrusted(f"warning: {row.reason}"))
        if not rows:
            out.print("there are no offline runs to upload")

    output.result(rows, render)
    if rows and not any(row.uploaded for row in rows):
        raise typer.Exit(1)


_DISPENSABLE = ("parameters", "dataset", "loss", "time", "steps")
_WITH_DATASET = ("parameters", "loss", "status", "time", "steps")
"""Columns that a narrow terminal has no room for, the first ones first."""


def _render_list(output: Output, rows: "list[RunRow]", dispensable: Sequence[str] = _DISPENSABLE) -> None:
    columns: dict[str, Callable[[RunRow], str]] = {
        "run": lambda row: row.name,
        "status": lambda row: row.status,
        "steps": _steps,
        "bits/byte": lambda row: "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}",
        "loss": lambda row: "" if row.nats_per_token is None else f"{row.nats_per_token:.3f}",
        "time": lambda row: "" if row.duration_s is None else duration(row.duration_s),
        "parameters": lambda row: parameters(row.parameters),
        "dataset": lambda row: row.dataset,
    }
    output.print(
        fitting(
            output.out,
            columns,
            rows,
            right=("steps", "bits/byte", "loss", "time", "parameters"),
            dispensable=dispensable,
        )
    )


def _steps(row: "RunRow") -> str:
    """Return the steps that were made, and of how many where it is not all."""
    if row.steps is None or row.total_steps is None:
        return ""
    return f"{row.steps:,}" if row.steps == row.total_steps else f"{row.steps:,}/{row.total_steps:,}"
