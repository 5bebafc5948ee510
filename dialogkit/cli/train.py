"""`dialogkit train`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dialogkit.cli.options import ConfigOption, JsonOption, NoCudaOption, SetOption
from dialogkit.cli.output import Output, untrusted
from dialogkit.cli.overrides import FLAGS, as_flags, number_of, require_lora, seconds_of
from dialogkit.cli.progress import TrainOutput
from dialogkit.cli.train_view import chat_command, render_dry_run, render_training
from dialogkit.distributed.rank import LAUNCH_FOLDER, this_rank
from dialogkit.errors import ConfigError

if TYPE_CHECKING:
    from dialogkit.config.run import RunConfig
    from dialogkit.tracking.run_dir import RunDir


def train_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help=r"Catalogue name, model file (.json), folder, GGUF file or hub id. \[custom-tiny]"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", "-c", metavar="PRESET", help=r"test, development or production. \[test]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", "-s", metavar="N", help=r"Training dialogs to use. \[the preset's]")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", metavar="DATA", help="starter, alpaca-gpt4, a file or a hub id."),
    ] = None,
    max_bad_rows: Annotated[
        int | None, typer.Option("--max-bad-rows", metavar="N", help="Malformed rows to pass over. [0]")
    ] = None,
    project: Annotated[str | None, typer.Option("--project", "-p", metavar="NAME", help="W&B project.")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="RUN", help="Name of the run.")] = None,
    no_cuda: NoCudaOption = False,
    wandb: Annotated[
        str | None, typer.Option("--wandb", metavar="MODE", help="auto, online, offline or disabled.")
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option("--output-dir", metavar="DIR", help=r"Folder of models and runs. \[models]")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="A further W&B tag; may be repeated.")
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option("--tracker", metavar="NAME", help="Beside W&B: tensorboard, trackio or mlflow."),
    ] = None,
    log_model: Annotated[
        bool, typer.Option("--log-model", help="Upload the finished model to W&B as an artifact.")
    ] = False,
    resume_run: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run; last: the newest unfinished one."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="TIME", help="Train so long in all: 90s, 20m, 1h30m."),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN", help="A new run from the weights of a finished one, or a checkpoint."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume although a difference alters what is learned, or begin again.")
    ] = False,
    fit_batch: Annotated[
        bool, typer.Option("--fit-batch", help="Split the batch where the memory does not suffice.")
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option("--devices", metavar="N", help="Train on N devices, or auto: all GPUs. [1]"),
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option("--nodes", metavar="N", help="Machines; 1:2 goes on with one when the other is lost."),
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option("--node-rank", metavar="N", min=0, help="0 on the machine where they meet.")
    ] = None,
    rendezvous: Annotated[
        str | None, typer.Option("--rendezvous", metavar="HOST:PORT", help="Where the machines meet.")
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option("--max-restarts", metavar="N", min=0, help="New starts after a lost process. [3]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="METHOD", help=r"full, or lora: small matrices learn. \[full]"),
    ] = None,
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Keep what LoRA learned as an adapter beside its base.")
    ] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Measure two steps on the longest batch; keep nothing.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Train MODEL, evaluate it, let it answer test prompts, and keep it."""
    from dialogkit.config.load import NEWEST, load_with_origins, parse_sets
    from dialogkit.config.paths import DEFAULT_OUTPUT
    from dialogkit.services.cluster.launch import join_others, leave_others, start_processes
    from dialogkit.services.runs.listing import skipped_runs
    from dialogkit.services.train import train
    from dialogkit.services.training.dry_run import dry_run
    from dialogkit.services.training.resume import find_resumable, find_start, resumed_config

    words: dict[str, Any] = {
        "data.samples": samples,
        "data.dataset": dataset,
        "data.max_bad_rows": max_bad_rows,
        "tracking.project": project,
        "tracking.wandb": wandb,
        "runtime.device": "cpu" if no_cuda else None,
        "runtime.devices": None if devices is None else number_of(devices),
        "runtime.output_dir": output_dir,
        "tracking.tags": tags or None,
        "tracking.trackers": trackers or None,
        "tracking.log_model": log_model or None,
        "train.fit_batch": fit_batch or None,
        "train.method": method,
        "train.merge": False if no_merge else None,
        "train.budget_s": None if budget is None else seconds_of(budget),
        "name": name,
    }
    overrides = {key: value for key, value in words.items() if value is not None} | parse_sets(sets or [])
    output = Output(json_mode=json_output)
    join_others()

    def in_processes(settings: "RunConfig") -> None:
        code = start_processes(
            settings,
            context.obj or sys.argv[1:],
            nodes=nodes,
            node_rank=node_rank,
            rendezvous=rendezvous,
            max_restarts=max_restarts,
            say=lambda text: output.err.print(untrusted(text)),
        )
        if code is not None:
            raise SystemExit(code)

    if resume_run is not None:
        if preset is not None or config is not None or from_run is not None or dry:
            raise ConfigError(
                "--resume keeps to the run's own settings: leave out --preset, --config, --from and --dry-run",
                hint=f"dialogkit train --resume {resume_run}",
            )
        run = find_resumable(resume_run, model=model, output=Path(output_dir or DEFAULT_OUTPUT))
        if resume_run == NEWEST and LAUNCH_FOLDER not in os.environ:  # who starts several processes says it
            output.passed_over(skipped_runs(output=output_dir or DEFAULT_OUTPUT))
        if (record := run.read()).status != "completed":
            in_processes(resumed_config(run, record, overrides, force=force)[0])
        _resume(output, run, overrides, force=force)
        leave_others()
        return
    if from_run is not None:
        start, trained = find_start(from_run, output=Path(output_dir or DEFAULT_OUTPUT))
        model, overrides = str(start), {"model.name": trained, **overrides}
    try:
        loaded = load_with_origins(model, preset=preset, config_file=config, overrides=overrides)
    except ConfigError as error:
        raise as_flags(error, [name for name, value in words.items() if value is not None]) from None
    require_lora(loaded.config, no_merge=no_merge)
    if not dry:
        in_processes(loaded.config)
    elif (rank := this_rank()) is not None:
        raise ConfigError(
            f"--dry-run measures one process, and this is one of {rank.world_size}",
            hint=f"dialogkit {shlex.join(context.obj or sys.argv[1:])}",
        )
    drawing = TrainOutput(output)
    try:
        if dry:
            measured = dry_run(loaded.config, reporter=drawing)
            drawing.close()
            output.result(measured, lambda out: render_dry_run(out, measured))
            return
        result = train(
            loaded.config, origins=loaded.origins, command=["dialogkit", *sys.argv[1:]], reporter=drawing
        )
    finally:
        drawing.close()
    leave_others()
    output.result(
        result,
        lambda out: render_training(out, result),
        hint=chat_command(loaded.config.model.name, result.run_dir),
    )


def _resume(output: Output, run: "RunDir", overrides: dict[str, Any], *, force: bool) -> None:
    from dialogkit.services.runs.resolve import known_as
    from dialogkit.services.train import resume

    drawing = TrainOutput(output)
    try:
        result = resume(
            run, changes=overrides, force=force, command=["dialogkit", *sys.argv[1:]], reporter=drawing
        )
    finally:
        drawing.close()
    name = _model_of(run)
    if result is None:
        record = run.read()
        # The folder is where the run was found, and no change of it.
        unused = [FLAGS.get(setting, setting) for setting in overrides if setting != "runtime.output_dir"]
        unused += ["--force"] * force
        told = f"the run {run.name} is finished: there is nothing to do"
        hint = chat_command(name, run.path)
        if unused:
            told += f", and {_listed(unused)} no effect"
            hint = f"dialogkit train --from {known_as(run)}"
            hint += f" --name {overrides['name']}" if "name" in overrides else ""
        output.result(record, lambda out: out.print(untrusted(told)), hint=hint)
        return
    output.result(result, lambda out: render_training(out, result), hint=chat_command(name, run.path))


def _listed(words: list[str]) -> str:
    return f"{words[0]} has" if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]} have"


def _model_of(run: "RunDir") -> str:
    return str(run.read().settings("model")["name"])
