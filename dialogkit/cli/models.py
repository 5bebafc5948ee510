"""`dialogkit models`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli import complete
from dialogkit.cli.options import JsonOption, OutputOption
from dialogkit.cli.output import Output, fitting, parameters, settings_table

if TYPE_CHECKING:
    from dialogkit.services.models import ModelRow


def list_command(output_dir: OutputOption = "models", json_output: JsonOption = False) -> None:
    """List the models of the catalogue, and your own trained ones."""
    from dialogkit.services.models import list_models

    rows = list_models(output=output_dir)
    Output(json_mode=json_output).result(rows, lambda out: render_models(out, rows))


def show_command(
    name: Annotated[
        str,
        typer.Argument(
            help="A name, a model file (.json), a run, a folder or a hub id.", autocompletion=complete.models
        ),
    ],
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Show everything about one model."""
    from dialogkit.services.models import show_model

    row = show_model(name, output=output_dir)
    Output(json_mode=json_output).result(row, lambda out: render_model(out, row), hint=_next(row, name))


def _next(row: "ModelRow", name: str) -> str:
    return f'dialogkit generate {name} --prompt "Hello!"' if row.folder else f"dialogkit train {name}"


def render_models(output: Output, rows: "list[ModelRow]") -> None:
    """Print one model per line."""
    columns: dict[str, Callable[[ModelRow], str]] = {
        "name": lambda row: row.name,
        "class": lambda row: row.size_class or "",
        "kind": lambda row: "scratch" if row.source is None else "hub",
        "parameters": lambda row: parameters(row.parameters),
        "no emb.": lambda row: _millions(row.parameters_without_embeddings),
        "layers": lambda row: str(row.layers or "?"),
        "width": lambda row: str(row.width or "?"),
        "context": lambda row: str(row.context or "?"),
        "source": lambda row: row.source or "from scratch",
        "licence": lambda row: row.license or "yours",
        "trained": lambda row: "yes" if row.trained else "no",
    }
    output.print(
        fitting(
            output.out,
            columns,
            rows,
            right=("parameters", "no emb.", "layers", "width", "context"),
            # `models show` shows everything.
            dispensable=("class", "context", "source", "licence", "no emb.", "kind", "width", "layers"),
        )
    )


def _millions(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}M"


def render_model(output: Output, row: "ModelRow") -> None:
    """Print everything about one model."""
    values = {}
    for name, value in row.model_dump().items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        if value:
            values[name.replace("_", " ")] = value
    output.print(settings_table(values))
