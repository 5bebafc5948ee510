"""Prints a run: its metrics, its model and data, its replies."""

import math
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from dialogkit.cli.metrics_table import print_tasks
from dialogkit.cli.output import (
    Output,
    date,
    encodes,
    options_table,
    settings_table,
    table,
    untrusted,
    values_grid,
)
from dialogkit.text import counted, duration, known_from_training, no_fault, percent
from dialogkit.tracking.metric_specs import HELD_OUT

if TYPE_CHECKING:
    from dialogkit.services.runs.compare import RunDetails
    from dialogkit.tracking.record import DataInfo, GitInfo, WandbInfo

_MAIN_FIGURES = (
    *("bits_per_byte", "accuracy", "prompt_gain", "hits_at_1", "right_answers", "stop_rate", "repetition", "chrf"),
    "reply_tokens_per_s",
)
"""The metrics of an evaluation that are shown beside other parts of a run."""
_WIDEST = 120
"""Maximum width of curves and replies, in columns."""
_STATUS_STYLES = {"completed": "green", "running": "cyan", "interrupted": "yellow"}


def render_run(output: Output, shown: "RunDetails", *, everything: bool) -> None:
    """Print a summary of a run, or its whole record."""
    if everything:
        _render_record(output, shown)
    else:
        _render_head(output, shown)
    _render_replies(output, shown, whole=everything)
    _render_curve(output, shown)
    _render_evaluations(output, shown)


def _render_record(output: Output, shown: "RunDetails") -> None:
    """Print the whole record, one value per line."""
    from dialogkit.config.load import flatten
    from dialogkit.tracking.record import RunRecord

    kept = shown.model_dump(mode="json", include=set(RunRecord.model_fields) - {"origins"})
    output.print(settings_table({name: value for name, value in flatten(kept) if value not in (None, "", [])}))


# The summary


def _render_head(output: Output, shown: "RunDetails") -> None:
    """Print name and status, metrics, model and data, and the settings that somebody chose."""
    status = Text(shown.status, style=_STATUS_STYLES.get(shown.status, "red"))
    when = f"  {date(shown.created)}" + (f", {took}" if (took := _time(shown.duration_s)) else "")
    output.print(Text.assemble(untrusted(shown.name, "bold"), "  ", status, untrusted(when, "dim")))
    if shown.error:
        output.print(untrusted(f"error: {shown.error}", "red"))
    if (figures := _figures(shown)).row_count:
        output.print("", figures)
    output.print("", _overview(shown))
    if settings := _settings(shown):
        output.print("", options_table(settings))


def _figures(shown: "RunDetails") -> Table:
    """Return the metrics on the held-out dialogs before and after training, or at the last evaluation."""
    drawn = table("held out", "before", "after", right=("before", "after"))
    evaluated = [(step, value) for step, value in shown.held_out_loss if step]
    last = evaluated[-1] if evaluated and shown.status != "completed" else None
    if last is not None:
        drawn.columns[2].header = f"at step {last[0]:,}"
    for name, (title, form) in HELD_OUT.items():
        before, after = (shown.metrics.get(f"{when}/{name}") for when in ("before", "final"))
        if after is None and last is not None and name == "nats_per_token":
            after = last[1]
        if before is not None or after is not None:
            drawn.add_row(title, *("" if value is None else format(value, form) for value in (before, after)))
    return drawn


def _overview(shown: "RunDetails") -> Table:
    """Return a table of the run's model, data, training and machine, as far as they are recorded."""
    values = {
        "model": _listed(_model(shown)),
        "data": _data(shown.data),
        "training": _listed(_training(shown)),
        "device": _listed(_device(shown)),
        "versions": _listed(
            f"{name} {shown.versions[name]}"
            for name in ("dialogkit", "python", "torch", "transformers")
            if name in shown.versions
        ),
        "git": _git(shown.environment.git),
        "W&B": _wandb(shown.wandb),
        "command": shlex.join(shown.command),
    }
    return values_grid({name: value for name, value in values.items() if value})


def _listed(parts: Iterable[str | None]) -> str:
    return ", ".join(filter(None, parts))


def _model(shown: "RunDetails") -> list[str | None]:
    model = shown.model
    plain = model.parameters_without_embeddings
    without = f" ({plain:,} without embeddings)" if plain is not None else ""
    return [
        shown.model_name,
        f"{model.parameters:,} parameters{without}" if model.parameters else None,
        model.architecture,
        counted(model.layers, "layer") if model.layers else None,
        f"width {model.width:,}" if model.width else None,
        f"context {model.context:,}" if model.context else None,
        f"from {model.source}" if model.source else None,
    ]


def _data(data: "DataInfo") -> str:
    counts = {"cut": data.cut, "dropped": data.dropped, "unusable": data.unusable}
    lost = [f"{count:,} {name}" for name, count in counts.items() if count]
    known = known_from_training("the held-out dialogs", data.known_prompts, data.known_answers)
    used = [
        data.dataset,
        f"{data.train_dialogs:,} to train on" if data.train_dialogs is not None else None,
        f"{data.eval_dialogs:,} held out" + (", as the rows say" if data.split_by == "rows" else "")
        if data.eval_dialogs is not None
        else None,
        f"{_listed(lost)} of {data.rows:,} rows" if data.rows is not None and lost else None,
    ]
    return _listed(used) + (f". {known[0].upper()}{known[1:]}." if known else "")


def _training(shown: "RunDetails") -> list[str | None]:
    made = shown.metrics.get("train/steps", max((step for step, _ in shown.train_loss), default=0))
    planned, metrics = shown.schedule.total_steps, shown.metrics
    of_all = f" of {planned:,}" if planned is not None and planned != made else ""
    tokens, speed = metrics.get("train/tokens"), metrics.get("perf/tokens_per_s")
    kept_step = metrics.get("train/kept_step", made)
    return [
        f"{made:,.0f}{of_all} steps",
        None if kept_step == made else f"kept that of step {kept_step:,.0f}",
        None if tokens is None else f"{tokens:,.0f} tokens",
        None if speed is None else f"{speed:,.0f} tokens/s",
        _time(metrics.get("train/seconds")),
        f"resumed {counted(len(shown.resumed), 'time')}" if shown.resumed else None,
    ]


def _device(shown: "RunDetails") -> list[str | None]:
    from dialogkit.tracking.report.run import in_bytes

    runtime, memory = shown.runtime, shown.environment.memory_bytes
    return [
        runtime.device,
        runtime.device_name,
        runtime.precision,
        f"{in_bytes(memory)} of memory" if memory is not None else None,
    ]


def _wandb(wandb: "WandbInfo") -> str:
    reason = f" ({wandb.reason})" if wandb.reason else ""
    return f"{wandb.mode}{reason} {wandb.url or ''}".strip() if wandb.mode else ""


def _git(git: "GitInfo | None") -> str:
    if git is None or not git.commit:
        return ""
    changed = ", with uncommitted changes" if git.dirty else ""
    return f"{git.commit[:12]} on {git.branch}{changed}"


def _settings(shown: "RunDetails") -> list[tuple[str, Any, str]]:
    """Return the settings that are not defaults, with their origins, without the shape of the model."""
    from dialogkit.config.load import default_settings, flatten

    settings = dict(flatten(shown.config))
    if shown.origins:
        chosen = [name for name in settings if shown.origins.get(name, "default") != "default"]
        chosen = [name for name in chosen if not name.startswith("model.") or "model " not in shown.origins[name]]
    else:  # started from Python
        defaults = default_settings()
        chosen = [
            n for n in settings if n in defaults and settings[n] != defaults[n] and not n.startswith("model.")
        ]
    return [(name, settings[name], shown.origins.get(name, "")) for name in chosen if name != "name"]


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None and math.isfinite(seconds) else ""


# Replies, curve, evaluation


def _render_replies(output: Output, shown: "RunDetails", *, whole: bool) -> None:
    """Print the final replies with their prompts: whole, or one per line, cut to the width."""
    if not shown.answers:
        return
    replies = shown.replies
    answered, stopped = replies.get("reply_rate", replies.get("success_rate")), replies.get("stop_rate")
    rates = ""
    if answered is not None and stopped is not None:
        rates = f"  {percent(answered)} of the test prompts got a reply, {percent(stopped)} ended by themselves"
    output.print("", Text.assemble(("replies", "bold"), rates))
    if whole:
        for answer in shown.answers:
            output.print(untrusted(f"> {answer.prompt}", "bold"), untrusted(answer.replies[0] or "(empty)"))
            if answer.reference is not None:
                output.print(untrusted(f"true answer: {answer.reference}", "dim"))
        return
    width = min(output.out.width, _WIDEST)
    grid = Table.grid(Column(no_wrap=True), Column(no_wrap=True), padding=(0, 2))
    for answer in shown.answers:
        grid.add_row(_line(answer.prompt, 2 * width // 5, "dim"), _line(answer.replies[0], 3 * width // 5 - 2))
        if answer.reference is not None:
            grid.add_row(Text("  true answer", "dim"), _line(answer.reference, 3 * width // 5 - 2, "dim"))
    output.print(grid)


def _line(text: str, width: int, style: str = "") -> Text:
    line = untrusted(" ".join(text.split()) or "(empty)", style)
    line.truncate(width, overflow="ellipsis")
    return line


def _render_curve(output: Output, shown: "RunDetails") -> None:
    from dialogkit.cli.chart import BLOCKS, loss_curve

    blocks, width = encodes(output.out, BLOCKS), min(output.out.width, _WIDEST)
    if lines := loss_curve(shown.train_loss, shown.held_out_loss, width=width, blocks=blocks):
        output.print("", *(Text(line, no_wrap=True) for line in lines))


def _render_evaluations(output: Output, shown: "RunDetails") -> None:
    """Print the stored evaluations beside their baselines, and the task results."""
    from dialogkit.cli.evaluation_view import render_figures

    for evaluation in shown.evaluations:
        row = evaluation.rows[0]
        output.print("", untrusted(f"evaluated on {row.dataset}, {counted(row.dialogs, 'dialog')}", "bold"))
        named = evaluation.model_copy(update={"rows": [row.model_copy(update={"model": shown.name})]})
        render_figures(output, named, only=_MAIN_FIGURES)
        for remark in row.remarks:
            output.print(untrusted(f"{shown.name} {remark}."))
        if row.checks and not row.remarks:
            output.print(untrusted(f"{shown.name}: {no_fault(row.checks)}."))
    if shown.tasks:
        output.print("")
        print_tasks(output, {shown.name: shown.tasks})
