"""`dialogkit runs`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli.options import JsonOption, OutputOption
from dialogkit.cli.output import Output, duration, fitting, parameters, settings_table, untrusted

if TYPE_CHECKING:
    from dialogkit.services.runs import RunRow


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


def _render_list(output: Output, rows: "list[RunRow]") -> None:
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
            dispensable=("parameters", "dataset", "loss", "time", "steps"),
        )
    )


def _steps(row: "RunRow") -> str:
    """Return the steps that were made, and of how many where it is not all."""
    if row.steps is None or row.total_steps is None:
        return ""
    return f"{row.steps:,}" if row.steps == row.total_steps else f"{row.steps:,}/{row.total_steps:,}"
