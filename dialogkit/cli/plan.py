"""`dialogkit plan`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli import options
from dialogkit.cli.output import Output, fitting, untrusted, values_grid
from dialogkit.text import duration, duration_word

if TYPE_CHECKING:
    from dialogkit.services.plan import PlanResult
    from dialogkit.services.planning.reference import Forecast
    from dialogkit.services.planning.results import PlanRow


def plan_command(
    context: typer.Context,
    time: Annotated[
        str,
        typer.Option("--time", "-t", metavar="TIME", help="Time for the whole run, e.g. 90s, 20m, 8h."),
        options.Sets("train.budget_s", read=options.time_to_train, write=duration_word),
    ] = "20m",
    dataset: options.TrainDatasetOption = None,
    columns: options.ColumnsOption = None,
    max_bad_rows: options.TrainBadRowsOption = None,
    sets: options.SetOption = None,
    no_cuda: options.NoCudaOption = False,
    json_output: options.JsonOption = False,
) -> None:
    """Show the quality to expect from each model in a time on this machine, and which one to train.

    It measures the machine for a few steps, and forecasts from reference runs that ship with the package.
    Without --dataset, it is about the dialogs of the preset talk.
    """
    from dialogkit.config.load import parse_sets
    from dialogkit.services.plan import plan

    settings = options.given_settings(plan_command, context.params) | parse_sets(sets or [])
    output = Output(json_mode=json_output)
    with output.progress() as on_progress:
        result = plan(settings.pop("train.budget_s"), overrides=settings, on_progress=on_progress)
    output.result(result, lambda out: _render(out, result), hint=result.training)


def _render(output: Output, result: "PlanResult") -> None:
    output.print(
        untrusted(f"{result.dataset}, {duration(result.budget_s)} on {result.device}:"),
        "",
    )
    columns: dict[str, Callable[[PlanRow], str]] = {
        "model": lambda row: row.model,
        "steps": lambda row: f"{row.steps:,}" if row.steps else "-",
        "dialogs": lambda row: f"{row.dialogs:,}" if row.steps else "-",
        "passes": lambda row: f"{row.epochs:,.1f}" if row.steps else "-",
        "bits per byte": lambda row: _bits(row.forecast),
        "right answers": lambda row: _right(row.forecast),
        "half right in": lambda row: "?" if row.half_right_s is None else duration(row.half_right_s),
    }
    forecasts = [row.forecast for row in result.rows if row.forecast is not None]
    if not forecasts:
        del columns["bits per byte"]
    if all(forecast.right_answers is None for forecast in forecasts):
        del columns["right answers"], columns["half right in"]
    right = [name for name in columns if name != "model"]
    output.print(fitting(output.out, columns, result.rows, right=right, dispensable=("passes", "steps")), "")
    for remark in result.remarks:
        output.print(untrusted(remark))
    if (forecast := result.row.forecast) is None:
        return
    output.print(untrusted(f"the best is {result.chosen}: {_in_words(forecast)}"))
    if (reply := forecast.nearest.reply) is not None:
        output.print(
            "",
            untrusted(
                f"a reply of the nearest reference run ({forecast.nearest.dialogs:,} dialogs) to a question that "
                "it was not trained on:"
            ),
            untrusted(f"> {reply.prompt}", "bold"),
            values_grid({"true answer": reply.answer, "reply": reply.reply or "(empty)"}),
        )


def _bits(forecast: "Forecast | None") -> str:
    """Return a figure with a mark if it is a bound: the model would see fewer or more than any reference run."""
    if forecast is None:
        return "?"
    return f"{_MARKS[forecast.range][0]}{forecast.bits_per_byte:.2f}"


def _right(forecast: "Forecast | None") -> str:
    if forecast is None or forecast.right_answers is None:
        return "?"
    return f"{_MARKS[forecast.range][1]}{forecast.right_answers:.0%}"


_MARKS = {"within": ("", ""), "below": ("over ", "under "), "above": ("up to ", "at least ")}
"""What a forecast says of bits per byte and of right answers."""


def _in_words(forecast: "Forecast") -> str:
    right = "" if forecast.right_answers is None else f" and {_right(forecast)} right answers"
    beyond = {
        "within": "",
        "below": "; it would see fewer dialogs than any reference run",
        "above": "; it would see more dialogs than any reference run",
    }[forecast.range]
    return f"{_bits(forecast)} bits per byte{right}{beyond}"
