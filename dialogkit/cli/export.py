"""`dialogkit export`."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dialogkit.cli import options
from dialogkit.cli.output import Output, values_grid
from dialogkit.hints import Hint, Shell

if TYPE_CHECKING:
    from dialogkit.services.export import ExportResult


def export_command(
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORM",
            help="gguf for llama.cpp and Ollama, onnx for a page in the browser, or bundle, a zip file.",
        ),
    ] = "gguf",
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help=r"Weights: f32, f16, q8_0 or, of GGUF, q4_0. \[q8_0]"),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help=r"Folder to write. \[exports/MODEL-TYPE]")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="DIR",
            help=r"For onnx: folder of the npm package onnxruntime-web. \[node_modules/onnxruntime-web]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace existing files, and keep a copy that is not faithful.")
    ] = False,
    output_dir: options.OutputOption = "models",
    json_output: options.JsonOption = False,
) -> None:
    """Write MODEL for llama.cpp, Ollama, a browser or an e-mail, and certify how faithful the copy is."""
    from dialogkit.services.export import export

    form: Any = to
    weight_type: Any = type
    shown = Output(json_mode=json_output)
    shown.loading()
    with shown.progress() as on_progress:
        result = export(
            options.one_model(model, model_option),
            to=form,
            type=weight_type,
            folder=output,
            runtime=runtime,
            force=force,
            output=output_dir,
            on_progress=on_progress,
        )
    for note in result.notes:
        shown.note(f"note: {note}")
    shown.result(result, lambda out: render_export(out, result), hint=_next(result))


def _next(result: "ExportResult") -> Hint | None:
    """Return how to talk to a GGUF file in Ollama, or to serve a page; None for a bundle."""
    if result.to == "onnx":
        return Shell(f"python -m http.server -b 127.0.0.1 -d {shlex.quote(result.folder)}")
    if result.ollama is None:
        return None
    modelfile = shlex.quote(f"{result.folder}/Modelfile")
    return Shell(f"ollama create {result.ollama} -f {modelfile} && ollama run {result.ollama}")


def render_export(output: Output, result: "ExportResult") -> None:
    """Print the files, and how faithful the copy is."""
    certificate = result.certificate
    beside = ", ".join(name.rpartition("/")[2] for name in result.files if name != result.file)
    files = {"file": f"{result.file}, {certificate.bytes / 2**20:,.1f} MiB", "beside it": beside}
    output.print(values_grid(files | certificate.rows()))
