"""`dialogkit models`."""

from typing import Annotated

import typer

from dialogkit.cli.options import JsonOption, OutputOption
from dialogkit.cli.output import Output, parameters, table, untrusted
from dialogkit.services.models import ModelRow, list_models, show_model


def list_command(output_dir: OutputOption = "models", json_output: JsonOption = False) -> None:
    """List the models of the catalogue."""
    rows = list_models(output=output_dir)
    Output(json_mode=json_output).result(rows, lambda out: _render_list(out, rows))


def show_command(
    name: Annotated[str, typer.Argument(help="A name of the catalogue, or a model file (.json).")],
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Show everything about one model."""
    row = show_model(name, output=output_dir)
    Output(json_mode=json_output).result(row, lambda out: _render_show(out, row), hint=f"dialogkit train {name}")


def _render_list(output: Output, rows: list[ModelRow]) -> None:
    wide = output.out.width >= 110
    numbers = ("parameters", "no embed.", "layers", "width")
    more = ("context", "source", "licence") if wide else ()
    drawn = table("name", "class", "kind", *numbers, "trained", *more, right=(*numbers, "context"))
    for row in rows:
        cells = [
            row.name,
            row.size_class or "",
            "scratch" if row.source is None else "hub",
            parameters(row.parameters),
            _millions(row.parameters_without_embeddings),
            str(row.layers or "?"),
            str(row.width or "?"),
            "yes" if row.trained else "no",
        ]
        if wide:
            cells += [str(row.context or "?"), row.source or "from scratch", row.license or "yours"]
        drawn.add_row(*map(untrusted, cells))
    output.print(drawn)


def _millions(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}M"


def _render_show(output: Output, row: ModelRow) -> None:
    drawn = table("", "")
    drawn.show_header = False
    for name, value in row.model_dump().items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        drawn.add_row(name.replace("_", " "), untrusted("-" if value is None else str(value)))
    output.print(drawn)
