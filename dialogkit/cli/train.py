"""`dialogkit train`."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from dialogkit.cli import hints, options
from dialogkit.cli.output import Output, untrusted
from dialogkit.cli.progress import TrainOutput
from dialogkit.cli.train_arguments import TrainArguments
from dialogkit.cli.train_view import chat_command, render_dry_run, render_training
from dialogkit.distributed.rank import LAUNCH_FOLDER, this_rank
from dialogkit.errors import ConfigError
from dialogkit.hints import Call
from dialogkit.system.loading import LOADING, loads_libraries
from dialogkit.text import listed

if TYPE_CHECKING:
    from dialogkit.config.run import RunConfig
    from dialogkit.services.training.result import TrainResult
    from dialogkit.tracking.run_dir import RunDir

_PANELS = {
    "Training": ("lr", "batch_size", "method", "no_merge", "from_run", "force", "fit_batch", "dry"),
    "All settings": ("config", "sets"),
    "Data": ("columns", "max_bad_rows"),
    "Tracking": ("project", "wandb", "tags", "trackers", "log_model"),
    "Devices": ("no_cuda", "devices", "nodes", "node_rank", "rendezvous", "max_restarts"),
    "Output": ("output_dir", "json_output"),
}
"""Panels of the help by their parameters; what most people need first is in none of them, and shown above."""


class TrainCommand(TyperCommand):
    """The command with its help in panels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        panels = {name: panel for panel, names in _PANELS.items() for name in names}
        for parameter in self.params:
            if parameter.name in panels:
                parameter.rich_help_panel = panels[parameter.name]  # type: ignore[attr-defined]


def train_command(
    context: typer.Context,
    model: options.BaseModelArgument = None,
    model_option: options.BaseModelOption = None,
    preset: options.PresetOption = None,
    dataset: options.TrainDatasetOption = None,
    samples: options.TrainSamplesOption = None,
    epochs: options.EpochsOption = None,
    budget: options.BudgetOption = None,
    resume_run: options.ResumeOption = None,
    name: options.RunNameOption = None,
    lr: options.LearningRateOption = None,
    batch_size: options.BatchSizeOption = None,
    method: options.MethodOption = None,
    no_merge: options.NoMergeOption = False,
    from_run: options.FromOption = None,
    force: options.ForceOption = False,
    fit_batch: options.FitBatchOption = False,
    dry: options.DryRunOption = False,
    config: options.ConfigOption = None,
    sets: options.SetOption = None,
    columns: options.ColumnsOption = None,
    max_bad_rows: options.TrainBadRowsOption = None,
    project: options.ProjectOption = None,
    wandb: options.WandbOption = None,
    tags: options.TagsOption = None,
    trackers: options.TrackersOption = None,
    log_model: options.LogModelOption = False,
    no_cuda: options.NoCudaOption = False,
    devices: options.DevicesOption = None,
    nodes: options.TrainNodesOption = None,
    node_rank: options.NodeRankOption = None,
    rendezvous: options.RendezvousOption = None,
    max_restarts: options.TrainRestartsOption = None,
    output_dir: options.TrainOutputOption = None,
    json_output: options.JsonOption = False,
) -> None:
    """Train MODEL, evaluate it, answer the test prompts with it, and save it."""
    from dialogkit.services.cluster.launch import join_processes, leave_processes
    from dialogkit.services.train import train

    output = Output(json_mode=json_output)
    arguments = TrainArguments(train_command, context.params)
    _ = arguments.settings  # a wrong word is reported before anything else is done
    join_processes()
    if resume_run is not None:
        _resume(output, arguments)
    elif dry:
        _dry_run(output, arguments)
    else:
        loaded = arguments.load()
        _require_free_name(loaded.config)
        _start_processes(output, arguments, loaded.config)
        with _drawing(output) as drawing:
            result = train(loaded.config, origins=loaded.origins, command=hints.typed(), reporter=drawing)
        leave_processes()
        output.result(
            result,
            lambda out: render_training(out, result),
            hint=_next(loaded.config.model.name, result),
        )


def _require_free_name(config: "RunConfig") -> None:
    """Raise StorageError if the run's name is taken, before libraries are loaded, which takes seconds."""
    from dialogkit.tracking.run_dir import RunDir

    if config.name is not None and this_rank() is None:  # of several processes, one has created the folder
        RunDir.require_free(Path(config.runtime.output_dir), config.name)


def _dry_run(output: Output, arguments: TrainArguments) -> None:
    from dialogkit.services.training.dry_run import dry_run

    config = arguments.load().config
    if (rank := this_rank()) is not None:
        raise ConfigError(
            f"--dry-run measures one process, and this is one of {rank.world_size}", hint=shlex.join(hints.typed())
        )
    with _drawing(output) as drawing:
        measured = dry_run(config, reporter=drawing)
    output.result(measured, lambda out: render_dry_run(out, measured))


def _resume(output: Output, arguments: TrainArguments) -> None:
    from dialogkit.config.paths import NEWEST
    from dialogkit.services.cluster.launch import leave_processes
    from dialogkit.services.runs.listing import skipped_runs
    from dialogkit.services.train import resume
    from dialogkit.services.training.resume import find_resumable, resumed_config

    given = arguments.given
    name, force = given["resume_run"], given["force"]
    if given["preset"] is not None or given["config"] is not None or given["from_run"] is not None or given["dry"]:
        raise ConfigError(
            "--resume keeps the run's own settings: leave out --preset, --config, --from and --dry-run",
            hint=Call("train", resume=name),
        )
    run = find_resumable(name, model=arguments.model, output=arguments.output)
    if name == NEWEST and LAUNCH_FOLDER not in os.environ:  # otherwise the process that started this one prints it
        output.skipped(skipped_runs(output=arguments.output))
    if (record := run.read()).status != "completed":
        config, _ = resumed_config(run, record, arguments.settings, force=force)
        _start_processes(output, arguments, config)
    with _drawing(output) as drawing:
        result = resume(run, changes=arguments.settings, force=force, command=hints.typed(), reporter=drawing)
    model = str(run.read().config["model"]["name"])
    if result is None:
        _render_finished(output, arguments, run, model)
    else:
        output.result(result, lambda out: render_training(out, result), hint=_next(model, result))
    leave_processes()


def _next(model: str, result: "TrainResult") -> str:
    """Return the command that tries the trained model, with a prompt that fits its data."""
    return chat_command(model, result.run_dir, result.held_out_replies if result.shows_held_out else ())


def _render_finished(output: Output, arguments: TrainArguments, run: "RunDir", model: str) -> None:
    """Report that a run is finished, and which typed options therefore have no effect."""
    # `--output-dir` says where the run was found; it is not a change.
    unused = [hints.name_of(setting) for setting in arguments.settings if setting != "runtime.output_dir"]
    unused += ["--force"] * arguments.given["force"]
    message = f"the run {run.name} is finished: there is nothing to do"
    hint = chat_command(model, run.path)
    if unused:
        message += f", and {listed(unused)} {'has' if len(unused) == 1 else 'have'} no effect"
        hint = f"dialogkit train --from {hints.run_argument(run)}"
        hint += f" --name {arguments.given['name']}" if arguments.given["name"] else ""
    output.result(run.read(), lambda out: out.print(untrusted(message)), hint=hint)


def _start_processes(output: Output, arguments: TrainArguments, config: "RunConfig") -> None:
    """Train in several processes, if the options ask for them, and exit as they do."""
    from dialogkit.services.cluster.launch import Machines, start_processes

    machines = Machines(**{name: arguments.given[name] for name in Machines._fields})
    resumes = arguments.given["resume_run"] is not None
    code = start_processes(config, hints.typed()[1:], machines, resumes=resumes, say=output.note)
    if code is not None:
        raise SystemExit(code)


@contextmanager
def _drawing(output: Output) -> Iterator[TrainOutput]:
    """Draw the progress of a run, and leave the terminal as it was."""
    drawing = TrainOutput(output)
    try:
        if loads_libraries() and not output.json_mode:
            drawing.activity(LOADING)
        yield drawing
    finally:
        drawing.close()
