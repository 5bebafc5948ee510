"""`dialogkit evaluate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli.options import JsonOption, ModelsArgument, NoCudaOption, OutputOption
from dialogkit.cli.output import Output, table, untrusted

if TYPE_CHECKING:
    from dialogkit.services.evaluate import EvaluateResult


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

    result = evaluate(
        models,
        dataset=dataset,
        samples=samples,
        whole=whole,
        batch_size=batch_size,
        output=output_dir,
        device="cpu" if no_cuda else "auto",
    )
    Output(json_mode=json_output).result(result, lambda out: _render(out, result))


def _render(output: Output, result: "EvaluateResult") -> None:
    datasets = list(dict.fromkeys(f"{row.dataset}, {row.dialogs:,} dialogs" for row in result.rows))
    columns = ("loss", "perplexity", "bits/byte", "accuracy", "tokens")
    drawn = table("model", *columns, *(["on"] if len(datasets) > 1 else []), right=columns)
    for row in result.rows:
        drawn.add_row(
            untrusted(row.model),
            f"{row.nats_per_token:.4f}",
            f"{row.perplexity:,.2f}",
            f"{row.bits_per_byte:.4f}",
            f"{row.accuracy:.1%}",
            f"{row.tokens:,}",
            *([untrusted(f"{row.dataset}, {row.dialogs:,} dialogs")] if len(datasets) > 1 else []),
        )
    output.print(drawn)
    if len(datasets) == 1:
        output.err.print(untrusted(f"on {datasets[0]}"))
    if len({row.dataset for row in result.rows}) > 1:
        output.err.print("figures of different datasets cannot be compared; name one by --dataset DATA")
