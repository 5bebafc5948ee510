"""Trains a model: from a validated configuration to a published model and its record."""

import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import flatten, load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.distributed.stop_signals import signals_stop
from dialogkit.errors import (
    CheckpointError,
    ConfigError,
    DialogKitError,
    DivergedError,
    InterruptedRunError,
    StorageError,
    exit_code_of,
    is_interruption,
)
from dialogkit.redaction import redact, without_secrets
from dialogkit.services.runs.resolve import find_dataset, known_as, output_option
from dialogkit.services.training.agreement import require_same_resume, require_same_training
from dialogkit.services.training.base_model import with_lasting_base
from dialogkit.services.training.learner import Parts
from dialogkit.services.training.progress import LogReporter, TrainReporter, show_log
from dialogkit.services.training.resume import require_same, resumed_config
from dialogkit.services.training.run import Training, TrainResult, follow
from dialogkit.system.compute_lock import alone, require_threads
from dialogkit.system.environment import environment_facts
from dialogkit.system.packages import package_versions
from dialogkit.text import counted
from dialogkit.tracking.pruning import remove_unbegun
from dialogkit.tracking.publishing import published_dir, require_publishable
from dialogkit.tracking.record import RunRecord, now
from dialogkit.tracking.run_dir import RunDir, run_name
from dialogkit.tracking.trackers import require_trackers
from dialogkit.tracking.wandb_run import WandbRun, decide, open_wandb

if TYPE_CHECKING:
    from dialogkit.engine.checkpoints import Progress


def train(
    config: RunConfig,
    *,
    origins: Mapping[str, str] | None = None,
    command: list[str] | None = None,
    reporter: TrainReporter | None = None,
) -> TrainResult:
    """Train, evaluate, answer the test prompts, and publish the model.

    Args:
        config: everything that decides the run.
        origins: where each setting came from; kept with the run.
        command: the words typed; kept with the run.
        reporter: takes what happens; None logs it.

    Raises: DialogKitError, with the run's record telling how it ended.
    """
    reporter = reporter or LogReporter()
    with alone(reporter.note):
        return _train(config, origins=origins or {}, command=command or [], reporter=reporter)[0]


def train_single_model(
    model_name: str = "custom-tiny",
    config_type: str = "test",
    *,
    max_samples: int | None = None,
    project_name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train one model from a notebook and return HF's trainer and the metrics.

    Args:
        model_name: a model of the catalogue, a model file, a folder or a hub id.
        config_type: the preset: test, development or production.
        max_samples: training dialogs to use; None is the preset's.
        project_name: W&B project.
        overrides: further settings by dotted names, such as `{"train.learning_rate": 1e-3}`.
    """
    words = {"data.samples": max_samples, "tracking.project": project_name}
    chosen = {name: value for name, value in words.items() if value is not None} | dict(overrides or {})
    config = load_run_config(model_name, preset=config_type, overrides=chosen)
    show_log()
    with alone():
        result, trainer = _train(config, origins={}, command=[], reporter=LogReporter())
    return trainer, result.metrics


def resume(
    run: RunDir,
    *,
    changes: Mapping[str, Any] | None = None,
    force: bool = False,
    command: list[str] | None = None,
    reporter: TrainReporter | None = None,
) -> TrainResult | None:
    """Go on with an unfinished run from its newest valid checkpoint, bit for bit as if it had not stopped.

    Args:
        run: the run.
        changes: settings that are to differ, by dotted names.
        force: go on although a difference alters what is learned.
        command: the words typed; kept with the run.
        reporter: takes what happens; None logs it.

    Returns None, and changes nothing, if the run is finished.
    Raises: what `train` raises; ConfigError for settings or a machine that alter what is learned.
    """
    reporter = reporter or LogReporter()
    with alone(reporter.note):
        return _resume(run, changes=changes or {}, force=force, command=command or [], reporter=reporter)


def _resume(
    run: RunDir, *, changes: Mapping[str, Any], force: bool, command: list[str], reporter: TrainReporter
) -> TrainResult | None:
    from dialogkit.distributed import process_group

    process_group.join()
    require_same_resume(run.name, changes, force=force)
    if not process_group.is_first():
        followed: TrainResult | None = follow()[0]
        return followed
    record = run.read()
    if record.status == "completed":
        process_group.share(None)
        return None
    with run.locked():
        pass  # another process that trains it is told of at once, before anything is loaded
    config, differing = resumed_config(run, record, changes, force=force)
    if "data.dataset" not in changes:
        # A relative file is looked for where the run was started; that it is the same is known by its digest.
        data = config.data.model_copy(update={"dataset": find_dataset(record)})
        config = config.model_copy(update={"data": data})
    for told in differing:
        reporter.note(f"changed: {told}")
    return _train(config, origins={}, command=command, reporter=reporter, resumed=run, force=force)[0]


def _train(
    config: RunConfig,
    *,
    origins: Mapping[str, str],
    command: list[str],
    reporter: TrainReporter,
    resumed: RunDir | None = None,
    force: bool = False,
) -> tuple[TrainResult, Any]:
    from dialogkit.distributed import process_group
    from dialogkit.engine.device import gpu_facts, resolve_runtime

    started = time.perf_counter()
    process_group.join()
    if resumed is None:
        require_same_training(config)
    if not process_group.is_first():
        return follow()
    if resumed is None and (begun := process_group.begun_run()) is not None:
        return _start_again(RunDir(begun), command=command, reporter=reporter)
    require_started(config, process_group.count())
    config = with_lasting_base(config)
    require_threads(config.runtime.threads)
    runtime = resolve_runtime(config.runtime)
    output = Path(config.runtime.output_dir)
    # What can be known to be wrong is told before anything is made.
    require_publishable(published_dir(output, config.model.name))
    require_trackers(config.tracking.trackers)
    wandb_decision = decide(config.tracking, Path.cwd())
    if resumed is None:
        name = config.name or run_name(config.model.name, config.preset, output)
        run = RunDir.create(output, name)
        record = RunRecord(
            name=name,
            created=now(),
            command=without_secrets(command),
            environment={**environment_facts(Path.cwd()), "gpu": gpu_facts(runtime.device)},
            config=config.model_dump(mode="json"),
            origins={name: redact(origin) for name, origin in origins.items()},
            runtime=asdict(runtime),
            versions=package_versions(),
        )
    else:
        run, record = resumed, resumed.read()
        name = record.name
    before = record.model_copy(deep=True)
    wandb_run: WandbRun | None = None

    def end(error: DialogKitError) -> None:
        """Keep how it ended, for a process that cannot get there by itself."""
        record.status, record.error, record.finished = _status(error), error.message, now()
        run.write(record)

    with run.locked(), signals_stop() as raise_lost_stop:
        try:
            with process_group.end_together(end):
                process_group.share((config, run.path))
                process_group.begin_run(run.path)
                parts = Parts(config, runtime, raise_lost_stop=raise_lost_stop)
                checkpoint = _go_on(run, record, parts, reporter, force=force) if resumed else None
                checkpoint = process_group.share(checkpoint)
            run.write(record)
            wandb_run = open_wandb(
                config.tracking,
                wandb_decision,
                name=name,
                tags=[config.model.name, config.preset, "single-model", "pipeline", *config.tracking.tags],
                folder=output,
                settings={k.replace(".", "/"): v for k, v in flatten(record.config)},
                resume_id=record.wandb.get("id") if resumed else None,
                told_step=record.resumed[-1]["told_step"] if resumed else -1,
            )
            record.wandb = {"mode": wandb_run.mode, "reason": wandb_run.reason, "id": wandb_run.id}
            with process_group.end_together(end):
                training = Training(
                    parts, run, record, wandb_run, reporter, started=started, checkpoint=checkpoint
                )
                result, trainer = training.complete()
                process_group.share(result)
        except BaseException as error:
            if run.is_gone:
                raise _end_without_folder(error, run, record, wandb_run) from None
            if record.status == "completed" and isinstance(error, InterruptedRunError):
                # Nothing of the run is missing: only W&B or the report was still waited for.
                folder = wandb_run.folder if wandb_run is not None else None
                error.hint = f"wandb sync {folder}" if folder else f"dialogkit runs show {known_as(run)}"
                run.list_files()
                raise
            if (
                resumed is None
                and isinstance(error, DialogKitError)
                and (not record.schedule or isinstance(error, ConfigError))
            ):
                # Refused before its first step: there is nothing to tell that the error does not say.
                if wandb_run is not None:
                    wandb_run.finish(exit_code=error.exit_code)
                remove_unbegun(run)
                raise
            if isinstance(error, ConfigError) and resumed is not None and process_group.begun_run() is None:
                # Refused as well: the run stays as it was.
                if wandb_run is not None:
                    wandb_run.finish(exit_code=error.exit_code)
                with suppress(StorageError):
                    run.write(before)
                raise
            record.status = _status(error)
            record.finished, record.error = now(), redact(str(error)) or type(error).__name__
            record.duration_s, record.exit_code = time.perf_counter() - started, exit_code_of(error)
            hint = getattr(error, "hint", None)
            if is_interruption(error) or isinstance(error, CheckpointError):
                hint = hint or f"dialogkit train --resume {known_as(run)}"
            if isinstance(error, DialogKitError):
                error.hint = hint
            with suppress(StorageError, CheckpointError):  # as where the disk is full: the error itself is told
                run.write(record)
                run.append_console(f"error: {record.error}")
                if hint:
                    run.append_console(f"try: {hint}")
            if wandb_run is not None:
                wandb_run.finish(exit_code=exit_code_of(error))
            run.list_files()
            raise
        run.list_files()
    return result, trainer


def _end_without_folder(
    error: BaseException, run: RunDir, record: RunRecord, wandb_run: WandbRun | None
) -> BaseException:
    """Return the error of a training whose run folder is gone: there is nothing to write to, or to resume."""
    if not is_interruption(error):
        error = CheckpointError(f"the run folder {str(run.path)!r} was removed or moved while training")
    if isinstance(error, DialogKitError):
        listed = f"dialogkit runs list{output_option(run.output or run.path.parent.parent)}"
        error.hint = shlex.join(record.command) if record.command else listed
    if wandb_run is not None:
        wandb_run.finish(exit_code=exit_code_of(error))
    return error


def _go_on(
    run: RunDir, record: RunRecord, parts: Parts, reporter: TrainReporter, *, force: bool
) -> "tuple[Path, Progress] | None":
    """Prepare a run's record and files to go on; return its newest valid checkpoint, None to begin again.

    Raises: CheckpointError where all that was saved is damaged, unless `force`.
    """
    from dialogkit.distributed import process_group
    from dialogkit.engine.checkpoints import newest_valid, steps_aside
    from dialogkit.engine.trainer import set_aside_torn_best

    restarted = process_group.begun_run() is not None

    def note(text: str) -> None:
        run.append_console(text)
        reporter.note(text)

    require_same(run, record, parts, force=force or restarted)
    run.unlist_files()
    checkpoint = newest_valid(run.path, note)
    if checkpoint is not None:
        parts.require_place(checkpoint[0])
    before, count = record.runtime.get("processes", 1), parts.runtime.processes
    if before != count:
        note(f"the number of processes was {before} and is {count}: the last digits of figures differ from now on")
    record.runtime["processes"] = count
    step = checkpoint[1].step if checkpoint else 0
    told = max((point["step"] for point in run.metrics()), default=-1)
    if checkpoint is not None:
        lost = set_aside_torn_best(checkpoint[0]) if parts.config.train.keep == "best" else None
        if lost is not None:
            note(lost)
    # A run that went on after a save had that checkpoint; one that ended in its first save never had any.
    elif (aside := steps_aside(run.path)) and told > aside[0] and not force:
        command = f"dialogkit train --resume {known_as(run)}"
        raise CheckpointError(
            f"no checkpoint of the run {run.name!r} is whole: {counted(len(aside), 'torn one')} are kept aside; "
            "--force begins again",
            hint=f"{command} --force",
        )
    else:
        note("there is no checkpoint to go on from: the run begins again")
    run.cut_after(step if checkpoint else -1)
    record.config = parts.config.model_dump(mode="json")
    record.resumed.append({"time": now(), "step": step, "told_step": told})
    record.status, record.finished, record.error, record.exit_code = "running", None, None, None
    return checkpoint


def _status(error: BaseException) -> Any:
    match error:
        case DivergedError():
            return "diverged"
        case _:
            return "interrupted" if is_interruption(error) else "failed"


def require_started(config: RunConfig, processes: int) -> None:
    """Raise ConfigError if several devices are asked for and nobody has started their processes."""
    devices = config.runtime.devices
    if processes == 1 and isinstance(devices, int) and devices > 1:
        raise ConfigError(
            f"runtime.devices is {devices}, and this program is a single process",
            hint=f"torchrun --nproc-per-node {devices} PROGRAM, or dialogkit train --devices {devices}",
        )


def _start_again(run: RunDir, *, command: list[str], reporter: TrainReporter) -> tuple[TrainResult, Any]:
    """Go on with the run that these processes had begun before one of them was lost."""
    from dialogkit.distributed import process_group

    record = run.read()
    if record.status == "completed":
        error = DialogKitError(f"the run {run.name!r} is finished: there is nothing to do")
        error.exit_code = 0
        raise error
    times = process_group.restarts()
    line = "a process was lost: all are started again" + (f" ({times})" if times else "")
    run.append_console(line)
    reporter.note(line)
    config, _ = resumed_config(run, record, {}, force=True)
    data = config.data.model_copy(update={"dataset": find_dataset(record)})
    config = config.model_copy(update={"data": data})
    return _train(config, origins={}, command=command, reporter=reporter, resumed=run)
