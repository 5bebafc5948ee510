"""`dialogkit evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from dialogkit.cli import complete, options
from dialogkit.cli.evaluation_view import next_command, render_evaluation
from dialogkit.cli.output import Output
from dialogkit.errors import ConfigError
from dialogkit.hints import Call

LEGEND = """
loss, perplexity   how improbable the true answers are to the model
bits/byte          the same, comparable between models with different tokenizers
token accuracy     how often the true token is the most probable
prompt gain        bits/byte saved by the dialog's own prompt over another; 0: ignored
hits@1 of 10       the true answer is the most probable of ten; 10% by chance
repeated 4-grams   sequences of four words that occur earlier in the reply
distinct-1, -2     distinct words, or word pairs, as a fraction of all
length ratio       bytes of the replies relative to the true answers
prompt echo        sequences of three words copied from the prompt
right answers      of questions whose rows say what a right answer contains
chrF, ROUGE-L      similarity to the true answers, up to 100 and up to 1
untrained          the model before training
unigram            token frequencies of the training answers
""".strip()
"""What the words of the table mean; shown below the options in the help."""


def evaluate_command(
    models: options.ModelsArgument = None,
    more_models: options.ModelsOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            metavar="DATA",
            help="Default: the held-out dialogs of the run's dataset.",
            autocompletion=complete.datasets,
        ),
        options.Sets("data.dataset"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", "-s", min=1, metavar="N", help="Dialogs to use, and questions of each task."),
        options.Sets("data.samples"),
    ] = None,
    max_bad_rows: options.BadRowsOption = 0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Score the whole dataset, not only its held-out dialogs.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only score the answers: no replies, no baselines.")
    ] = False,
    slices: Annotated[bool, typer.Option("--slices", help="Show each kind of dialog separately.")] = False,
    worst: Annotated[
        int,
        typer.Option("--worst", min=0, max=20, metavar="N", help="Show N of the worst dialogs and wrong answers."),
    ] = 0,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", metavar="TASKS", help="Of the lm-evaluation-harness: arc_easy,hellaswag or FILE.yaml."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=65_536, metavar="N", help="Dialogs per batch; does not change the results.")
    ] = 8,
    use_model_settings: options.ModelSettingsOption = False,
    wandb: Annotated[
        str | None,
        typer.Option("--wandb", metavar="MODE", help=r"auto, online, offline or disabled. \[the run's]"),
        options.Sets("tracking.wandb"),
    ] = None,
    no_cuda: options.NoCudaOption = False,
    output_dir: options.OutputOption = "models",
    json_output: options.JsonOption = False,
) -> None:
    """Measure how well models predict held-out answers, use their prompts, and reply."""
    from dialogkit.services.evaluate import EvaluateRequest, evaluate_models

    typed = [*(models or []), *(more_models or [])]
    models = list(dict.fromkeys(typed))
    if quick and (left_out := [name for name, given in (("--slices", slices), ("--worst", worst)) if given]):
        raise ConfigError(
            f"{left_out[0]} shows what --quick does not measure",
            hint=Call("evaluate", *models, slices=slices or None, worst=worst, dataset=dataset, samples=samples),
        )
    if quick and use_model_settings:
        raise ConfigError(
            "--use-model-settings is for replies, which --quick does not measure",
            hint=Call("evaluate", *models, use_model_settings=True, dataset=dataset, samples=samples),
        )
    request = EvaluateRequest(
        models=tuple(models or [None]),
        dataset=dataset,
        samples=samples,
        max_bad_rows=max_bad_rows,
        whole=whole,
        batch_size=batch_size,
        worst=worst,
        quick=quick,
        tasks=tuple(name for name in map(str.strip, (tasks or "").split(",")) if name),
        use_model_settings=use_model_settings,
        wandb=wandb,
        output=Path(output_dir),
        device="cpu" if no_cuda else "auto",
    )
    shown = Output(json_mode=json_output)
    with shown.progress() as on_progress:
        result = evaluate_models(request, on_progress=on_progress)
    for name in models:
        if (times := typed.count(name)) > 1:
            shown.note(f"{name} was given {times} times: it was evaluated once")
    for note in (row.model_settings for row in result.rows if row.model_settings):
        shown.note(note)
    for row in result.rows:
        for note in row.data_notes:
            shown.note(f"{row.model}: {note}")
    shown.result(
        result,
        lambda out: render_evaluation(out, result, request, slices=slices, worst=worst),
        hint=next_command(result, request),
    )
