"""`dialogkit doctor`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dialogkit.cli import hints
from dialogkit.cli.options import JsonOption, OutputOption
from dialogkit.cli.output import Output, untrusted

if TYPE_CHECKING:
    from dialogkit.services.machine.checks import DoctorResult

STYLES = {"ok": "green", "could be better": "yellow", "wrong": "bold red"}


def doctor_command(
    output_dir: OutputOption = "models",
    network: Annotated[
        bool, typer.Option("--network", help="Check that the hub and W&B answer within 10 s.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Check this machine for training, and suggest improvements; paste the result into bug reports."""
    from dialogkit.services.machine.checks import doctor

    output = Output(json_mode=json_output)
    result = _in_words(doctor(output_dir, network=network))
    output.result(result, lambda out: _render(out, result))
    if result.verdict == "wrong":
        raise typer.Exit(1)


def _in_words(result: "DoctorResult") -> "DoctorResult":
    """Return a result with the words to type in place of hints."""
    rendered = [f.model_copy(update={"command": hints.render(f.command)}) for f in result.findings]
    return result.model_copy(update={"findings": rendered})


def _render(output: Output, result: "DoctorResult") -> None:
    grid = Table.grid(padding=(0, 2))
    for width in (len("could be better"), max(len(finding.area) for finding in result.findings), None):
        grid.add_column(width=width, overflow="fold")
    for finding in result.findings:
        style = STYLES[finding.verdict]
        grid.add_row(untrusted(finding.verdict, style), untrusted(finding.area, "bold"), untrusted(finding.text))
        if finding.command:
            grid.add_row("", "", untrusted(f"$ {finding.command}", "cyan"))
    output.print(grid)
