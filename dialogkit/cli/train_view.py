"""Prints the result of a training or a dry run."""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from dialogkit.cli.output import Output, settings_table, table, untrusted
from dialogkit.text import counted, duration
from dialogkit.tracking.metric_specs import HELD_OUT

if TYPE_CHECKING:
    from dialogkit.services.training.dry_run import DryRunResult
    from dialogkit.services.training.result import TrainResult


def chat_command(model: str, run: Path | str) -> str:
    """Return the command that prompts the finished model of a run."""
    from dialogkit.cli.hints import known_as, output_option
    from dialogkit.services.runs.resolve import name_to_type
    from dialogkit.tracking.run_dir import RunDir

    made = RunDir(Path(run))
    name = known_as(made)
    if made.output is not None and name_to_type(model, made, made.output) == model:
        name = f"{model}{output_option(made.output)}"
    return f'dialogkit generate {name} --prompt "Hello!"'


def render_training(output: Output, result: "TrainResult") -> None:
    """Print the metrics before and after a training, its replies, and where everything is."""
    figures = table("held out, in float32", "before", "after", right=("before", "after"))
    for name in ("nats_per_token", "perplexity", "bits_per_byte", "accuracy"):
        label, form = HELD_OUT[name]
        figures.add_row(label, *(format(result.metrics[f"{when}/{name}"], form) for when in ("before", "final")))
    output.print(figures, "")
    for reply in result.replies:
        output.reply(reply, prompt=True)
    output.print(
        "",
        f"{result.success_rate:.0%} of the test prompts got a reply, {result.stop_rate:.0%} ended by themselves; "
        f"{counted(result.steps, 'step')}, {result.metrics['perf/tokens_per_s']:,.0f} tokens/s, "
        f"{duration(result.duration_s)} in all",
    )
    places = {
        "model": result.published_dir,
        "run": result.run_dir,
        "report": result.report,
        "W&B": _wandb(result),
    }
    output.print(*(untrusted(f"{name + ':':8}{place}") for name, place in places.items() if place))


def _wandb(result: "TrainResult") -> str | None:
    """Return the page of the W&B run, or the command that uploads it."""
    from dialogkit.cli.hints import known_as
    from dialogkit.tracking.run_dir import RunDir

    if len(result.wandb_dirs) > 1 and not result.wandb_url:
        return f"dialogkit runs sync {known_as(RunDir(Path(result.run_dir)))}"
    return result.wandb_place


def render_dry_run(output: Output, result: "DryRunResult") -> None:
    """Print the measurements of a dry run."""
    learns = result.trainable_parameters
    rows = {
        "model": f"{result.model}, {result.parameters:,} parameters"
        + ("" if learns == result.parameters else f", {learns:,} of them LoRA's and trainable"),
        "device": f"{result.device}, {result.precision}",
        "steps": f"{result.total_steps:,} over "
        + ("a stream" if result.train_dialogs is None else counted(result.train_dialogs, "dialog")),
        "longest batch": f"{result.longest_batch_tokens:,} tokens",
        "speed": f"{result.tokens_per_s:,.0f} tokens/s",
        "peak memory": f"{result.peak_memory_bytes / 2**20:,.0f} MiB",
        "held-out loss": f"{result.eval_nats_per_token:.3f} nats/token before training",
        "one reply": shorten(result.reply, 120) or "(empty)",
        "expected time": f"{duration(result.expected_s)}, {duration(result.training_s)} of it in training steps",
    }
    output.print(settings_table(rows, "dry run"))
