"""`dialogkit train`."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from dialogkit.cli import hints, options
from dialogkit.cli.output import Output, untrusted
from dialogkit.cli.progress import TrainOutput
from dialogkit.cli.train_request import TrainRequest
from dialogkit.cli.train_view import chat_command, render_dry_run, render_training
from dialogkit.distributed.rank import LAUNCH_FOLDER, this_rank
from dialogkit.errors import ConfigError
from dialogkit.hints import Call

if TYPE_CHECKING:
    from dialogkit.config.run import RunConfig
    from dialogkit.tracking.run_dir import RunDir


def train_command(
    context: typer.Context,
    model: options.BaseModelArgument = None,
    preset: options.PresetOption = None,
    samples: options.TrainSamplesOption = None,
    dataset: options.TrainDatasetOption = None,
    max_bad_rows: options.TrainBadRowsOption = None,
    project: options.ProjectOption = None,
    name: options.RunNameOption = None,
    no_cuda: options.NoCudaOption = False,
    wandb: options.WandbOption = None,
    output_dir: options.TrainOutputOption = None,
    tags: options.TagsOption = None,
    trackers: options.TrackersOption = None,
    log_model: options.LogModelOption = False,
    resume_run: options.ResumeOption = None,
    budget: options.BudgetOption = None,
    from_run: options.FromOption = None,
    force: options.ForceOption = False,
    fit_batch: options.FitBatchOption = False,
    devices: options.DevicesOption = None,
    nodes: options.TrainNodesOption = None,
    node_rank: options.NodeRankOption = None,
    rendezvous: options.RendezvousOption = None,
    max_restarts: options.TrainRestartsOption = None,
    method: options.MethodOption = None,
    no_merge: options.NoMergeOption = False,
    config: options.ConfigOption = None,
    sets: options.SetOption = None,
    dry: options.DryRunOption = False,
    json_output: options.JsonOption = False,
) -> None:
    """Train MODEL, evaluate it, let it answer test prompts, and keep it."""
    from dialogkit.services.cluster.launch import join_others

    output = Output(json_mode=json_output)
    request = TrainRequest(train_command, context.params)
    _ = request.settings  # a wrong word is reported before other processes are waited for
    join_others()
    if resume_run is not None:
        _resume(output, request)
    elif dry:
        _dry_run(output, request)
    else:
        _train(output, request)


def _train(output: Output, request: TrainRequest) -> None:
    from dialogkit.services.cluster.launch import leave_others
    from dialogkit.services.train import train

    loaded = request.load()
    _start_processes(output, request, loaded.config)
    with _drawing(output) as drawing:
        result = train(loaded.config, origins=loaded.origins, command=_typed(), reporter=drawing)
    leave_others()
    output.result(
        result,
        lambda out: render_training(out, result),
        hint=chat_command(loaded.config.model.name, result.run_dir),
    )


def _dry_run(output: Output, request: TrainRequest) -> None:
    from dialogkit.services.training.dry_run import dry_run

    config = request.load().config
    if (rank := this_rank()) is not None:
        raise ConfigError(
            f"--dry-run measures one process, and this is one of {rank.count}", hint=shlex.join(_typed())
        )
    with _drawing(output) as drawing:
        measured = dry_run(config, reporter=drawing)
    output.result(measured, lambda out: render_dry_run(out, measured))


def _resume(output: Output, request: TrainRequest) -> None:
    from dialogkit.config.load import NEWEST
    from dialogkit.services.cluster.launch import leave_others
    from dialogkit.services.runs.listing import passed_over
    from dialogkit.services.train import resume
    from dialogkit.services.training.resume import find_resumable, resumed_config

    given = request.given
    name, force = given["resume_run"], given["force"]
    if given["preset"] is not None or given["config"] is not None or given["from_run"] is not None or given["dry"]:
        raise ConfigError(
            "--resume keeps the run's own settings: leave out --preset, --config, --from and --dry-run",
            hint=Call("train", resume=name),
        )
    run = find_resumable(name, model=given["model"], output=request.output)
    if name == NEWEST and LAUNCH_FOLDER not in os.environ:  # otherwise the process that started this one says it
        output.passed_over(passed_over(output=request.output))
    if (record := run.read()).status != "completed":
        config, _ = resumed_config(run, record, request.settings, force=force)
        _start_processes(output, request, config)
    with _drawing(output) as drawing:
        result = resume(run, changes=request.settings, force=force, command=_typed(), reporter=drawing)
    model = str(run.read().config["model"]["name"])
    if result is None:
        _render_finished(output, request, run, model)
    else:
        output.result(result, lambda out: render_training(out, result), hint=chat_command(model, run.path))
    leave_others()


def _render_finished(output: Output, request: TrainRequest, run: "RunDir", model: str) -> None:
    """Say that a run is finished, and which of the options that were typed have no effect for that reason."""
    from dialogkit.services.runs.resolve import known_as

    # The folder is where the run was found, and no change of it.
    unused = [hints.name_of(setting) for setting in request.settings if setting != "runtime.output_dir"]
    unused += ["--force"] * request.given["force"]
    message = f"the run {run.name} is finished: there is nothing to do"
    hint = chat_command(model, run.path)
    if unused:
        message += f", and {_listed(unused)} no effect"
        hint = f"dialogkit train --from {known_as(run)}"
        hint += f" --name {request.given['name']}" if request.given["name"] else ""
    output.result(run.read(), lambda out: out.print(untrusted(message)), hint=hint)


def _start_processes(output: Output, request: TrainRequest, config: "RunConfig") -> None:
    """Train in several processes, if the options ask for them, and exit as they do."""
    from dialogkit.services.cluster.launch import Machines, start_processes

    machines = Machines(**{name: request.given[name] for name in Machines._fields})
    code = start_processes(config, hints.typed(), machines, say=lambda text: output.err.print(untrusted(text)))
    if code is not None:
        raise SystemExit(code)


@contextmanager
def _drawing(output: Output) -> Iterator[TrainOutput]:
    """Draw the progress of a training, and leave the terminal as it was."""
    drawing = TrainOutput(output)
    try:
        yield drawing
    finally:
        drawing.close()


def _typed() -> list[str]:
    return ["dialogkit", *hints.typed()]


def _listed(words: Sequence[str]) -> str:
    return f"{words[0]} has" if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]} have"
