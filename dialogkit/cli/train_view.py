"""Prints the result of a run or a dry run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from dialogkit.cli.output import Output, settings_table, table, untrusted, values_grid
from dialogkit.redaction import redact
from dialogkit.text import byte_size, counted, duration, sanitize
from dialogkit.tracking.metric_specs import HELD_OUT

if TYPE_CHECKING:
    from dialogkit.inference.results import ReplyResult
    from dialogkit.services.training.dry_run import DryRunResult
    from dialogkit.services.training.result import TrainResult


GREETING = "Hello!"
"""The prompt to try where the data has no short one."""
_LONGEST_PROMPT = 80
"""Characters of a prompt that is shown in a command."""
_TALKS = "dialogkit train custom-pico --preset talk"
_UNSURE = 100.0
"""Perplexity above which sentences do not hold together."""


def chat_command(model: str, run: Path | str, replies: "Sequence[ReplyResult]" = ()) -> str:
    """Return the command that prompts the finished model of a run, with a short prompt of its data if any."""
    from dialogkit.cli.hints import output_option, run_argument
    from dialogkit.services.runs.resolve import name_to_type
    from dialogkit.tracking.run_dir import RunDir

    made = RunDir(Path(run))
    name = run_argument(made)
    is_named = not made.name.startswith(f"{model[:32]}-")  # by the user, who will look for it under that name
    if not is_named and made.output is not None and name_to_type(model, made, made.output) == model:
        name = f"{model}{output_option(made.output)}"
    prompt = prompt_to_try(replies)
    typed = f'"{prompt}"' if prompt == GREETING else shlex.quote(prompt)
    return f"dialogkit generate {name} --prompt {typed}"


def prompt_to_try(replies: "Sequence[ReplyResult]") -> str:
    """Return the first short prompt of some replies, or a greeting."""
    return next((reply.prompt for reply in replies if _is_typed_easily(reply.prompt)), GREETING)


def _is_typed_easily(prompt: str) -> bool:
    """Return whether a prompt is one short line without a system text, which would precede it in parentheses."""
    return (
        len(prompt) <= _LONGEST_PROMPT
        and "\n" not in prompt
        and sanitize(prompt) == prompt == redact(prompt)
        and not prompt.startswith("(system: ")
    )


def render_training(output: Output, result: "TrainResult") -> None:
    """Print the metrics before and after training, its replies, and where everything is."""
    figures = table("on the held-out dialogs", "before", "after", right=("before", "after"))
    for name in ("nats_per_token", "perplexity", "bits_per_byte", "accuracy", "right_answers"):
        if not {f"before/{name}", f"final/{name}"} <= result.metrics.keys():
            continue
        label, form = HELD_OUT[name]
        figures.add_row(label, *(format(result.metrics[f"{when}/{name}"], form) for when in ("before", "final")))
    output.print(figures)
    output.note("bits per byte: what the true answers still cost to predict; lower is better", "dim")
    output.print("")
    for reply in result.shown_replies:
        _render_reply(output, reply)
    if (perplexity := result.metrics["final/perplexity"]) > _UNSURE:
        more = "more training helps (--epochs, --preset production)"
        if not result.shows_held_out:
            more = f"`{_TALKS}` makes a model that talks"
        elif result.kept_step < result.steps:
            more = (
                f"held-out dialogs were predicted best after step {result.kept_step:,}, so further steps only "
                "memorise these dialogs: more of them help"
            )
        output.note(
            f"a perplexity of {perplexity:,.0f} is a choice among {perplexity:,.0f} tokens for each next one: "
            f"sentences do not hold together yet after {counted(result.steps, 'step')}; {more}"
        )
    output.print(
        "",
        f"{result.reply_rate:.0%} of the test prompts got a reply, and {result.stop_rate:.0%} ended by "
        f"themselves (the stop rate); {result.steps_in_words}, "
        f"{result.metrics['perf/tokens_per_s']:,.0f} tokens/s, "
        f"{duration(result.duration_s)} in all",
    )
    places = {
        "model": result.published_dir,
        "run": result.run_dir,
        "report": result.report,
        "W&B": _wandb(result),
    }
    output.print(*(untrusted(f"{name + ':':8}{place}") for name, place in places.items() if place))


def _render_reply(output: Output, reply: "ReplyResult") -> None:
    """Print a reply, below its prompt and beside the true answer where there is one."""
    if reply.reference is None:
        output.reply(reply, prompt=True)
        return
    output.print(untrusted(f"> {reply.prompt}", "bold"))
    output.print(values_grid({"true answer": reply.reference, "reply": reply.reply or "(empty)"}))
    output.reply_statistics(reply)


def _wandb(result: "TrainResult") -> str | None:
    """Return the page of the W&B run, or the command that uploads it."""
    from dialogkit.cli.hints import run_argument
    from dialogkit.tracking.run_dir import RunDir

    if len(result.wandb_dirs) > 1 and not result.wandb_url:
        return f"dialogkit runs sync {run_argument(RunDir(Path(result.run_dir)))}"
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
        "peak memory": byte_size(result.peak_memory_bytes),
        "held-out loss": f"{result.eval_nats_per_token:.3f} nats/token before training",
        "one reply": shorten(result.reply, 120) or "(empty)",
        "expected time": f"{duration(result.expected_s)}, {duration(result.training_s)} of it in training steps",
    }
    output.print(settings_table(rows, "dry run"))
