"""`dialogkit evaluate`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli.options import JsonOption, ModelsArgument, NoCudaOption, OutputOption
from dialogkit.cli.output import Output, fitting, untrusted
from dialogkit.services.reporter import counted

if TYPE_CHECKING:
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
        int | None, typer.Option("--samples", "-s", min=1, metavar="N", help="Dialogs to use.")
    ] = None,
    max_bad_rows: Annotated[
        int, typer.Option("--max-bad-rows", min=0, metavar="N", help="Malformed rows to pass over.")
    ] = 0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Score the whole dataset, not only its held-out dialogs.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, max=65_536, metavar="N", help="Dialogs at once; changes no figure.")
    ] = 8,
    no_cuda: NoCudaOption = False,
    output_dir: OutputOption = "models",
    json_output: JsonOption = False,
) -> None:
    """Measure how well models predict held-out answers."""
    from dialogkit.services.evaluate import evaluate

    shown = Output(json_mode=json_output)
    with shown.busy("scoring held-out dialogs"):
        result = evaluate(
            models,
            dataset=dataset,
            samples=samples,
            max_bad_rows=max_bad_rows,
            whole=whole,
            batch_size=batch_size,
            output=output_dir,
            device="cpu" if no_cuda else "auto",
        )
    shown.result(result, lambda out: _render(out, result))


def _scored(row: "EvaluateRow") -> str:
    return f"{row.dataset}, {counted(row.dialogs, 'dialog')}"


def _render(output: Output, result: "EvaluateResult") -> None:
    datasets = list(dict.fromkeys(map(_scored, result.rows)))
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
        fitting(output.out, columns, result.rows, right=numbers, dispensable=("perplexity", "tokens", "accuracy"))
    )
    if len(datasets) == 1:
        output.err.print(untrusted(f"on {datasets[0]}"))
    else:
        for row in result.rows:
            output.err.print(untrusted(f"{row.model} on {_scored(row)}"))
    if len({row.dataset for row in result.rows}) > 1:
        output.err.print("figures of different datasets cannot be compared; name one by --dataset DATA")
