"""Trains a model: from a validated configuration to a published model and its record."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import flatten, load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.errors import (
    CheckpointError,
    ConfigError,
    DialogKitError,
    DivergedError,
    InterruptedRunError,
    OutOfMemoryError,
    ProcessLostError,
    StorageError,
)
from dialogkit.ranks import is_asked_to_stop
from dialogkit.services.adapters import with_lasting_base
from dialogkit.services.bands import Watch
from dialogkit.services.card import model_card
from dialogkit.services.evaluate import find_dataset
from dialogkit.services.generate import ReplyResult
from dialogkit.services.models import output_option
from dialogkit.services.parts import Parts
from dialogkit.services.processes import require_same_resume, require_same_training
from dialogkit.services.recorder import Recorder, reply_statistics
from dialogkit.services.report import write_run_report
from dialogkit.services.reporter import LogReporter, TrainReporter, counted, show_log
from dialogkit.services.result import Result
from dialogkit.services.resume import require_same, resumed_config
from dialogkit.services.versions import package_versions
from dialogkit.tracking.environment import environment_facts, without_secrets
from dialogkit.tracking.rundir import (
    RunDir,
    RunRecord,
    now,
    ordinary_permissions,
    publish,
    published_dir,
    require_publishable,
    run_name,
    write_text,
)
from dialogkit.tracking.trackers import require_trackers, tracker_places
from dialogkit.tracking.wandb_run import WandbRun, decide, open_wandb

if TYPE_CHECKING:
    from dialogkit.engine.arguments import Schedule
    from dialogkit.engine.budget import Budget
    from dialogkit.engine.callbacks import MetricSink
    from dialogkit.engine.checkpoints import Progress


class TrainResult(Result):
    """What a training left, and its figures."""

    run: str
    run_dir: str
    model_dir: str
    """The run's own model folder."""
    published_dir: str
    """The folder of the newest finished model of this name."""
    report: str | None
    """The run as one HTML page; None if it was not asked for or could not be written."""
    steps: int
    duration_s: float
    metrics: dict[str, float]
    """`final/...` figures on the held-out dialogs in float32, `before/...` the same before the first step."""
    replies: list[ReplyResult]
    success_rate: float
    """Share of the test prompts with a reply that is not empty."""
    stop_rate: float
    """Share of the replies that ended by themselves."""
    wandb_mode: str
    wandb_dir: str | None
    wandb_url: str | None


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
    return _train(config, origins=origins or {}, command=command or [], reporter=reporter or LogReporter())[0]


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
    from dialogkit.engine import processes

    processes.join()
    require_same_resume(run.name, changes or {}, force=force)
    if not processes.is_first():
        followed: TrainResult | None = _follow()[0]
        return followed
    record = run.read()
    if record.status == "completed":
        processes.share(None)
        return None
    with run.locked():
        pass  # another process that trains it is told of at once, before anything is loaded
    config, differing = resumed_config(record, changes or {}, force=force)
    if "data.dataset" not in (changes or {}):
        # A relative file is looked for where the run was started; that it is the same is known by its digest.
        data = config.data.model_copy(update={"dataset": find_dataset(record)})
        config = config.model_copy(update={"data": data})
    reporter = reporter or LogReporter()
    for told in differing:
        reporter.note(f"changed: {told}")
    return _train(config, origins={}, command=command or [], reporter=reporter, resumed=run, force=force)[0]


def _train(
    config: RunConfig,
    *,
    origins: Mapping[str, str],
    command: list[str],
    reporter: TrainReporter,
    resumed: RunDir | None = None,
    force: bool = False,
) -> tuple[TrainResult, Any]:
    from dialogkit.engine import processes
    from dialogkit.engine.runtime import gpu_facts, resolve_runtime

    started = time.perf_counter()
    processes.join()
    if resumed is None:
        require_same_training(config)
    if not processes.is_first():
        return _follow()
    if resumed is None and (begun := processes.begun_run()) is not None:
        return _start_again(RunDir(begun), command=command, reporter=reporter)
    require_started(config, processes.count())
    config = with_lasting_base(config)
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
            origins=dict(origins),
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

    with run.locked(), _signals_stop() as raise_lost_stop:
        try:
            with processes.end_together(end):
                processes.share((config, run.path))
                processes.begin_run(run.path)
                parts = Parts(config, runtime, raise_lost_stop=raise_lost_stop)
                checkpoint = _go_on(run, record, parts, reporter, force=force) if resumed else None
                checkpoint = processes.share(checkpoint)
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
            with processes.end_together(end):
                result, trainer = _work(parts, run, record, wandb_run, reporter, started, checkpoint)
                processes.share(result)
        except BaseException as error:
            if (
                resumed is None
                and isinstance(error, DialogKitError)
                and (not record.schedule or isinstance(error, ConfigError))
            ):
                # Refused before its first step: there is nothing to tell that the error does not say.
                if wandb_run is not None:
                    wandb_run.finish(exit_code=error.exit_code)
                run.remove()
                raise
            if isinstance(error, ConfigError) and resumed is not None:
                # Refused as well: the run stays as it was.
                if wandb_run is not None:
                    wandb_run.finish(exit_code=error.exit_code)
                run.write(before)
                raise
            record.status = _status(error)
            record.finished, record.error = now(), str(error) or type(error).__name__
            record.duration_s, record.exit_code = time.perf_counter() - started, getattr(error, "exit_code", 1)
            if isinstance(error, InterruptedRunError | CheckpointError):
                error.hint = error.hint or f"dialogkit train --resume {name}{output_option(output)}"
            with suppress(StorageError, CheckpointError):  # as where the disk is full: the error itself is told
                run.write(record)
                run.append_console(f"error: {record.error}")
                if hint := getattr(error, "hint", None):
                    run.append_console(f"try: {hint}")
            if wandb_run is not None:
                wandb_run.finish(exit_code=getattr(error, "exit_code", 1))
            raise
    return result, trainer


def _go_on(
    run: RunDir, record: RunRecord, parts: Parts, reporter: TrainReporter, *, force: bool
) -> "tuple[Path, Progress] | None":
    """Prepare a run's record and files to go on; return its newest valid checkpoint, None to begin again.

    Raises: CheckpointError where all that was saved is damaged, unless `force`.
    """
    from dialogkit.engine import processes
    from dialogkit.engine.checkpoints import newest_valid, steps_aside
    from dialogkit.engine.fit import set_aside_torn_best

    restarted = processes.begun_run() is not None

    def note(text: str) -> None:
        run.append_console(text)
        reporter.note(text)

    require_same(record, parts, force=force or restarted)
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
        command = f"dialogkit train --resume {run.name}{output_option(parts.config.runtime.output_dir)}"
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


@contextmanager
def _signals_stop() -> Iterator[Callable[[], None]]:
    """Leave by an exception that a run can record; training steps have their own way.

    Yields what raises it again: a library that was interrupted where it catches all exceptions has lost it.
    """
    stops: list[DialogKitError] = []

    def stop(number: int, _: Any) -> None:
        if not is_asked_to_stop():
            stops.append(ProcessLostError("another process of this training ended"))
        else:
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            stops.append(InterruptedRunError(f"stopped by {name}", exit_code=128 + number))
        raise stops[-1]

    def raise_lost() -> None:
        if stops:
            raise stops[-1]

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, stop)
        yield raise_lost
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status(error: BaseException) -> Any:
    match error:
        case DivergedError():
            return "diverged"
        case InterruptedRunError() | KeyboardInterrupt():
            return "interrupted"
        case _:
            return "failed"


def _work(
    parts: Parts,
    run: RunDir,
    record: RunRecord,
    wandb_run: WandbRun,
    reporter: TrainReporter,
    started: float,
    checkpoint: "tuple[Path, Progress] | None" = None,
) -> tuple[TrainResult, Any]:
    from dialogkit.engine import processes
    from dialogkit.engine.callbacks import EvaluationLeft
    from dialogkit.engine.sharding import save_model

    config = parts.config
    split = parts.require_memory()
    config = parts.config
    record.config = config.model_dump(mode="json")
    record.model, record.data = parts.model_facts, parts.data_facts()
    if checkpoint is None or config.train.budget_s is None:
        record.schedule = asdict(parts.schedule)
    run.write(record)
    wandb_run.update_config(
        {
            "model_facts": record.model,
            "data_facts": record.data,
            "runtime_facts": record.runtime,
            "schedule": record.schedule,
            "environment": record.environment,
            "versions": record.versions,
            "origins": record.origins,
            "command": " ".join(record.command),
        }
    )
    recorder = Recorder(
        run,
        wandb_run,
        reporter,
        total_steps=None if config.train.budget_s else parts.schedule.total_steps,
        flops_per_token=parts.flops_per_token(),
        peak_flops=parts.peak_flops(),
    )
    recorder.header(parts.header(run, wandb_run))
    for line in (parts.ledger_line(), *parts.warnings(), *([split] if split else [])):
        recorder.note(line)
    asked, there = config.data.samples or 0, parts.data.size
    if there is not None and asked > there and record.origins.get("data.samples") == "command line":
        recorder.note(f"{counted(asked, 'dialog')} were asked for, and {there:,} are there to train on")
    held_out_dialogs = counted(len(parts.data.evaluation), "held-out dialog")
    allowed_s = config.train.budget_s
    if checkpoint is None:
        if allowed_s is not None and (spent := time.perf_counter() - started) >= allowed_s:
            raise ConfigError(
                f"a budget of {allowed_s:,.0f} s leaves no time to train: the start alone took {spent:,.0f} s",
                hint=f"--budget {max(60, round(10 * spent))}s",
            )
        reporter.doing(f"measuring the untrained model on {held_out_dialogs}")
        recorder.histograms(0, {"data/dialog_tokens": parts.length_histogram()})
        measured = time.perf_counter()
        before = parts.score(autocast=False)
        if config.train.budget_s is not None:
            reporter.doing("answering the test prompts, to know how long that takes")
            parts.reply_to_tests()
        aside_s = time.perf_counter() - measured
        untrained = {"train/tokens": 0.0, "train/supervised_tokens": 0.0}
        recorder.point(0, {f"eval/{name}": value for name, value in before.items()} | untrained)
        record.metrics = {f"before/{name}": value for name, value in before.items()}
        run.write(record)
    else:
        recorder.note(f"goes on from step {checkpoint[1].step}, {checkpoint[0].name}")
        aside_s = 0.0  # known from what the checkpoint has of the plan
    watch = Watch(config)
    held_out = config.tracking.held_out_replies

    def sink(step: int, metrics: dict[str, float]) -> None:
        replies = _replies_at(parts, metrics)
        if replies is not None and parts.leaves():
            raise EvaluationLeft  # they were cut short: the whole evaluation is made when the run goes on
        recorder.point(step, metrics)
        if (told := watch.point(step, metrics)) is not None:
            recorder.note(told)
        if replies is not None:
            recorder.replies(step, replies, table="replies/evaluation")
            recorder.talk(step, replies)

    budget = None
    if allowed_s is not None:
        from dialogkit.engine.budget import Budget

        budget = Budget(allowed_s, started, evaluation_s=aside_s, end_s=aside_s)
        if (told := costly_evaluations(allowed_s, aside_s, len(parts.data.evaluation))) is not None:
            recorder.note(told)
    budget = processes.share(budget)
    with tracker_places(run.path, Path(config.runtime.output_dir), config.tracking.project):
        try:
            fitted = _fit(parts, run, record, recorder, sink, checkpoint, budget)
        finally:
            record.data = parts.data_facts()  # of a stream they are known only now
    if parts.streamed:
        recorder.note(parts.ledger_line())
    parts.merge()
    reporter.doing(f"measuring the trained model on {held_out_dialogs}")
    record.schedule["total_steps"] = fitted.steps if config.train.budget_s else parts.schedule.total_steps
    final = parts.score(autocast=False)
    metrics = {
        **{name: value for name, value in record.metrics.items() if name.startswith("before/")},
        **{f"final/{name}": value for name, value in final.items()},
        "train/steps": fitted.steps,
        "train/tokens": fitted.tokens,
        "train/supervised_tokens": fitted.supervised_tokens,
        "train/seconds": fitted.train_s,
        "perf/tokens_per_s": fitted.tokens / max(fitted.train_s, 1e-9),
    }
    reporter.doing("answering the test prompts")
    replies = parts.reply_to_tests()
    recorder.replies(fitted.steps, replies + parts.reply_to_held_out(held_out), table="replies/final")
    statistics = reply_statistics(replies)
    save_model(fitted.trainer, run.model_dir)
    parts.tokenizer.save(run.model_dir)
    record.metrics = metrics
    record.replies = statistics
    write_text(run.model_dir / "README.md", model_card(record))
    ordinary_permissions(run.model_dir)
    target = published_dir(Path(config.runtime.output_dir), config.model.name)
    publish(run.model_dir, target)
    record.status, record.exit_code = "completed", 0
    record.finished, record.duration_s = now(), time.perf_counter() - started
    wandb_run.summarize(
        {
            **metrics,
            **{f"replies/{name}": value for name, value in statistics.items()},
            "status": record.status,
            "created": record.created,
            "finished": record.finished,
            "duration_s": record.duration_s,
        }
    )
    if config.tracking.log_model:
        wandb_run.log_model(config.model.name, run.model_dir)
    wandb_run.finish(exit_code=0)
    wandb_dir, wandb_url = wandb_run.folder, wandb_run.url
    run.write(record)
    unwritten = write_run_report(run) if config.tracking.report else None
    if unwritten is not None:
        line = f"warning: the report could not be written ({unwritten}); dialogkit runs report {run.name}"
        reporter.note(line)
        with suppress(CheckpointError):  # as where the disk is full
            run.append_console(line)
    result = TrainResult(
        run=run.name,
        run_dir=str(run.path),
        model_dir=str(run.model_dir),
        published_dir=str(target),
        report=str(run.report_path) if config.tracking.report and unwritten is None else None,
        steps=fitted.steps,
        duration_s=record.duration_s,
        metrics=metrics,
        replies=replies,
        success_rate=statistics.get("success_rate", 0.0),
        stop_rate=statistics.get("stop_rate", 0.0),
        wandb_mode=wandb_run.mode,
        wandb_dir=str(wandb_dir) if wandb_dir else None,
        wandb_url=wandb_url,
    )
    for line in _closing_lines(result):
        run.append_console(line)
    return result, fitted.trainer


def _fit(
    parts: Parts,
    run: RunDir,
    record: RunRecord,
    recorder: Recorder,
    sink: "MetricSink",
    checkpoint: "tuple[Path, Progress] | None",
    budget: "Budget | None",
) -> Any:
    """Train; where the memory does not suffice and the settings allow it, go on with a batch in more parts."""
    from dialogkit.engine.checkpoints import newest_valid

    def planned(schedule: "Schedule") -> None:
        first, recorder.total_steps = recorder.total_steps is None, schedule.total_steps
        if not first:
            return
        record.schedule = asdict(schedule)
        run.write(record)
        train = parts.config.train
        recorder.note(
            f"to end in time: about {counted(schedule.total_steps, 'step')}, "
            f"{round(train.warmup_fraction * schedule.total_steps):,} of them warm-up, "
            f"with an evaluation each {schedule.eval_every_steps:,}"
        )

    while True:
        try:
            return parts.fit(
                folder=run.path,
                sink=sink,
                histograms=recorder.histograms,
                resume_from=checkpoint,
                budget=budget,
                planned=planned,
            )
        except OutOfMemoryError as error:
            alone = parts.runtime.processes == 1  # what one process runs out of, the others may have
            if not (alone and parts.config.train.fit_batch and parts.split_finer()):
                raise
            told = error.message
        # Outside the handler, whose traceback holds on to what filled the memory.
        checkpoint = newest_valid(run.path)
        step = checkpoint[1].step if checkpoint else 0
        run.cut_after(step)
        parts.begin_again()
        train = parts.config.train
        record.config = parts.config.model_dump(mode="json")
        run.write(record)
        at_once = counted(train.batch_size // train.accumulation_steps, "dialog")
        recorder.note(f"{told}; goes on from step {step} with {at_once} at once")


def require_started(config: RunConfig, processes: int) -> None:
    """Raise ConfigError if several devices are asked for and nobody has started their processes."""
    devices = config.runtime.devices
    if processes == 1 and isinstance(devices, int) and devices > 1:
        raise ConfigError(
            f"runtime.devices is {devices}, and this program is a single process",
            hint=f"torchrun --nproc-per-node {devices} PROGRAM, or dialogkit train --devices {devices}",
        )


def costly_evaluations(budget_s: float, evaluation_s: float, dialogs: int) -> str | None:
    """Return what to tell where evaluations take much of a budget: at the start, after training, at the end."""
    share = 3 * evaluation_s / budget_s
    if share < 0.25:
        return None
    fewer = max(50, 50 * round(dialogs * 0.1 / share / 50))  # take a tenth, in fifties
    if fewer >= dialogs:
        return None
    return (
        f"three evaluations of {dialogs:,} dialogs take {min(share, 1):.0%} of the budget: "
        f"--set data.eval_max_dialogs={fewer} leaves more of it to train"
    )


def _replies_at(parts: Parts, metrics: Mapping[str, float]) -> list[ReplyResult] | None:
    """Return short replies of the model as it stands at an evaluation; None at another point, or without any."""
    tracking = parts.config.tracking
    asked, held_out = tracking.replies_at_evaluations, tracking.held_out_replies
    if not asked + held_out or "eval/nats_per_token" not in metrics:
        return None
    return parts.reply_to_tests(asked, longest=32) + parts.reply_to_held_out(held_out, longest=32)


def _start_again(run: RunDir, *, command: list[str], reporter: TrainReporter) -> tuple[TrainResult, Any]:
    """Go on with the run that these processes had begun before one of them was lost."""
    from dialogkit.engine import processes

    record = run.read()
    if record.status == "completed":
        error = DialogKitError(f"the run {run.name!r} is finished: there is nothing to do")
        error.exit_code = 0
        raise error
    times = processes.restarts()
    line = "a process was lost: all are started again" + (f" ({times})" if times else "")
    run.append_console(line)
    reporter.note(line)
    config, _ = resumed_config(record, {}, force=True)
    data = config.data.model_copy(update={"dataset": find_dataset(record)})
    config = config.model_copy(update={"data": data})
    return _train(config, origins={}, command=command, reporter=reporter, resumed=run)


def _follow() -> tuple[Any, Any]:
    """Do the part of a training that falls to another process than the first: without a word, or a file."""
    from dialogkit.engine import processes
    from dialogkit.engine.runtime import resolve_runtime
    from dialogkit.engine.sharding import save_model

    with processes.end_together(), _signals_stop() as raise_lost_stop:
        told = processes.share(None)
        if told is None:  # the run is finished
            return None, None
        config, folder = told
        processes.begin_run(folder)
        parts = Parts(config, resolve_runtime(config.runtime), raise_lost_stop=raise_lost_stop)
        checkpoint = processes.share(None)
        parts.require_memory()
        if checkpoint is None:
            parts.score(autocast=False)
        budget = processes.share(None)
        # Each call of a model that is sharded takes all processes.
        sharded = parts.runtime.sharding != "none"

        def sink(step: int, metrics: dict[str, float]) -> None:
            if sharded:
                _replies_at(parts, metrics)

        fitted = parts.fit(folder=folder, sink=sink, resume_from=checkpoint, budget=budget)
        parts.merge()
        parts.score(autocast=False)
        if sharded:
            parts.reply_to_tests()
            parts.reply_to_held_out(config.tracking.held_out_replies)
            save_model(fitted.trainer, folder / "model")
        return processes.share(None), fitted.trainer


def _closing_lines(result: TrainResult) -> list[str]:
    """Return the end of a run's `console.log`: figures, replies and places."""
    figures = [
        f"{name}: {result.metrics[f'before/{name}']:.4f} before, {result.metrics[f'final/{name}']:.4f} after"
        for name in ("nats_per_token", "perplexity", "bits_per_byte", "accuracy")
    ]
    spoken = [f"> {reply.prompt!r} {reply.reply!r} ({reply.stop_reason})" for reply in result.replies]
    places = [f"model: {result.published_dir}", f"run: {result.run_dir}"]
    places += [f"report: {result.report}"] if result.report else []
    wandb = result.wandb_url or (f"wandb sync {result.wandb_dir}" if result.wandb_dir else None)
    return [*figures, *spoken, *places, *([f"W&B: {wandb}"] if wandb else [])]
