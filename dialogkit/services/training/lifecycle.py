"""The lifecycle of a training run: checked, created or resumed, locked, and recorded however it ends."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import flatten
from dialogkit.config.run import RunConfig
from dialogkit.distributed import process_group, rendezvous, shutdown
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
from dialogkit.hints import Call, Either, Shell
from dialogkit.redaction import redact, without_secrets
from dialogkit.services.runs.resolve import find_dataset, output_of
from dialogkit.services.training.base_model import with_lasting_base
from dialogkit.services.training.progress import LogReporter, TrainReporter
from dialogkit.services.training.resume import resume_hint, resumed_config
from dialogkit.services.training.silent import SilentRunDir
from dialogkit.system.compute_lock import require_threads
from dialogkit.system.environment import environment_info
from dialogkit.system.packages import package_versions
from dialogkit.tracking.pruning import remove_unbegun
from dialogkit.tracking.publishing import published_dir, require_publishable
from dialogkit.tracking.record import RunRecord, WandbInfo, now
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import run_name
from dialogkit.tracking.trackers import require_trackers, tracker_places
from dialogkit.tracking.wandb_run import Decision, WandbRun, decide, open_wandb

if TYPE_CHECKING:
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.engine.device import Runtime


@dataclass(frozen=True)
class TrainRequest:
    """A request to train: a new run with settings, or a run to resume with changes."""

    config: RunConfig | None = None
    """Settings of a new run."""
    resumed: RunDir | None = None
    """The run to resume."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the resumed run that differ, by dotted names."""
    force: bool = False
    """Resume despite changed settings, or restart if no checkpoint is usable."""
    restarted: bool = False
    """Whether the ranks were restarted after one of them was lost."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each setting came from."""
    command: Sequence[str] = ()
    """The command as typed."""
    reporter: TrainReporter = field(default_factory=LogReporter)


@dataclass
class TrainingRun:
    """A run in training. On ranks other than 0 its folder, record, W&B run and reporter do nothing."""

    request: TrainRequest
    config: RunConfig
    runtime: "Runtime"
    folder: RunDir
    record: RunRecord
    unchanged: RunRecord
    """The record before any changes."""
    reporter: TrainReporter
    started: float
    """When the run began, by `time.perf_counter`."""
    raise_missed_signal: Callable[[], None]
    wandb_decision: Decision | None = None
    """Mode, reason and credentials of the W&B run; None on other ranks."""
    wandb_run: WandbRun = field(default_factory=lambda: WandbRun(None, "disabled", "rank 0 logs"))
    checkpoint: "tuple[Path, Progress] | None" = None
    """Where it resumes; None for a new run."""

    @property
    def is_new(self) -> bool:
        """Whether this is a new run, not a resumed one."""
        return self.request.resumed is None

    @property
    def duration_s(self) -> float:
        """Seconds since this start, and those of earlier starts as far as they were recorded."""
        return (self.unchanged.duration_s or 0.0) + time.perf_counter() - self.started

    def note(self, text: str) -> None:
        """Report a line, and add it to the run's `console.log`."""
        self.folder.append_console(text)
        self.reporter.note(text)

    def open_tracker(self) -> None:
        """Start or resume the W&B run; on rank 0 only."""
        if self.wandb_decision is None:
            return
        config, record = self.config, self.record
        self.wandb_run = open_wandb(
            config.tracking,
            self.wandb_decision,
            name=record.name,
            tags=[config.model.name, config.preset, "single-model", "pipeline", *config.tracking.tags],
            folder=Path(config.runtime.output_dir),
            settings={name.replace(".", "/"): value for name, value in flatten(record.config)},
            resume_id=None if self.is_new else record.wandb.id,
            logged_step=-1 if self.is_new else record.resumed[-1].told_step,
        )
        record.wandb = WandbInfo(mode=self.wandb_run.mode, reason=self.wandb_run.reason, id=self.wandb_run.id)

    def record_exit(self, error: DialogKitError) -> None:
        """Record an error for a process that cannot raise it because it waits for a device."""
        self.record.status, self.record.error, self.record.finished = _status(error), error.message, now()
        self.folder.write(self.record)


@contextmanager
def open_run(request: TrainRequest) -> Iterator[TrainingRun]:
    """Create or resume a run, hold its lock, and record how it ends; every rank calls this.

    Raises: errors of the checks before a run, and errors of the body with a hint how to resume.
    """
    from dialogkit.engine.device import resolve_runtime

    started = time.perf_counter()
    exiting: list[TrainingRun] = []
    with (
        shutdown.exit_together(lambda error: exiting[0].record_exit(error) if exiting else None),
        signals_stop() as raise_missed_signal,
    ):
        main = process_group.is_main_process()
        decision: Decision | None = None
        folder: RunDir
        if main:
            config = _settings(request)
            require_threads(config.runtime.threads)
            _require_processes(config)
            decision = require_startable(config)
            runtime = resolve_runtime(config.runtime)
            folder = request.resumed or create_folder(config)
            config, path = process_group.broadcast((config, folder.path))
            record = folder.read() if request.resumed else _new_record(request, config, runtime, folder)
        else:
            config, path = process_group.broadcast((None, Path()))  # type: ignore[assignment]
            runtime, folder = resolve_runtime(config.runtime), SilentRunDir(path)
            record = RunRecord(name="", created="", config=config.model_dump(mode="json"))
        run = TrainingRun(
            request=request,
            config=config,
            runtime=runtime,
            folder=folder,
            record=record,
            reporter=request.reporter if main else TrainReporter(),
            started=started,
            wandb_decision=decision,
            raise_missed_signal=raise_missed_signal,
            unchanged=record.model_copy(deep=True),
        )
        exiting.append(run)
        output = Path(config.runtime.output_dir)
        with folder.locked(), tracker_places(path, output, config.tracking.project):
            try:
                rendezvous.remember_run(path)
                yield run
            except BaseException as error:
                settled = shutdown.settle(_underlying_stop(error, raise_missed_signal))
                ended = _record_end(run, settled) if main else settled
                if ended is error:
                    raise
                raise ended from None
            folder.list_files()


def _underlying_stop(error: BaseException, raise_missed_signal: Callable[[], None]) -> BaseException:
    """Return the stop request that a library swallowed and re-raised as another error; else the error itself."""
    if not is_interruption(error):
        try:
            raise_missed_signal()
        except DialogKitError as stop:
            return stop
    return error


def _settings(request: TrainRequest) -> RunConfig:
    """Return the settings of a run before anything is written.

    Raises: ConfigError or UnavailableError if it cannot start, such as for changes that alter a resumed run.
    """
    if (run := request.resumed) is None:
        assert request.config is not None
        return with_lasting_base(request.config)
    record = run.read()
    with run.locked():
        pass  # fail before anything is loaded if another process trains this run
    config, changed = resumed_config(run, record, request.changes, force=request.force or request.restarted)
    if "data.dataset" not in request.changes:
        # A relative path is relative to where the run was started; the digest verifies the file.
        data = config.data.model_copy(update={"dataset": find_dataset(record)})
        config = config.model_copy(update={"data": data})
    for change in changed if not request.restarted else ():
        request.reporter.note(f"changed: {change}")
    return with_lasting_base(config)


def _require_processes(config: RunConfig) -> None:
    """Raise ConfigError if several devices are requested in a single process."""
    devices = config.runtime.devices
    if process_group.world_size() == 1 and isinstance(devices, int) and devices > 1:
        torchrun = Shell(f"torchrun --nproc-per-node {devices} PROGRAM")
        raise ConfigError(
            f"runtime.devices is {devices}, but this program is a single process",
            hint=Either(torchrun, Call("train", settings={"runtime.devices": devices})),
        )


def require_startable(config: RunConfig) -> Decision:
    """Return how W&B is used, of a new or a resumed run alike, or of a dry run.

    Raises: errors that would otherwise appear only after training.
    """
    require_publishable(published_dir(Path(config.runtime.output_dir), config.model.name))
    require_trackers(config.tracking.trackers)
    return decide(config.tracking, Path.cwd())


def create_folder(config: RunConfig) -> RunDir:
    """Create the folder of a new run. Raises: StorageError if it exists already or cannot be created."""
    output = Path(config.runtime.output_dir)
    return RunDir.create(output, config.name or run_name(config.model.name, config.preset, output))


def _new_record(request: TrainRequest, config: RunConfig, runtime: "Runtime", folder: RunDir) -> RunRecord:
    from dialogkit.engine.device import gpu_info

    return RunRecord(
        name=folder.name,
        created=now(),
        command=without_secrets(list(request.command)),
        environment={**environment_info(Path.cwd()), "gpu": gpu_info(runtime.device)},
        config=config.model_dump(mode="json"),
        origins={name: redact(origin) for name, origin in request.origins.items()},
        runtime=asdict(runtime),
        versions=package_versions(),
    )


def _record_end(run: TrainingRun, error: BaseException) -> BaseException:
    """Record how a run ended, and return the error to raise, with a hint how to resume."""
    folder, record, wandb_run = run.folder, run.record, run.wandb_run
    if folder.is_gone:
        return _end_without_folder(run, error)
    if record.status == "completed" and isinstance(error, InterruptedRunError):
        # The run is complete: it only waited for W&B or the report.
        sync = Shell(f"wandb sync {shlex.quote(str(wandb_run.folder))}") if wandb_run.folder else None
        error.hint = sync or Call("runs show", folder.path)
        folder.list_files()
        return error
    if (
        run.is_new
        and isinstance(error, DialogKitError)
        and (record.schedule.total_steps is None or isinstance(error, ConfigError))
    ):
        # Refused before its first step: only the error matters, so the run is removed.
        wandb_run.finish(exit_code=error.exit_code)
        remove_unbegun(folder)
        if isinstance(error, InterruptedRunError):
            error.add("before training began, so there is nothing to resume")
        return error
    if isinstance(error, ConfigError) and rendezvous.started_run() is None:
        # A resumed run is refused as well: restore its record.
        wandb_run.finish(exit_code=error.exit_code)
        with suppress(StorageError):
            folder.write(run.unchanged)
        return error
    record.status = _status(error)
    record.finished, record.error = now(), redact(str(error)) or type(error).__name__
    record.duration_s, record.exit_code = run.duration_s, exit_code_of(error)
    hint = getattr(error, "hint", None)
    if is_interruption(error) or isinstance(error, CheckpointError):
        hint = hint or resume_hint(folder)
    if isinstance(error, DialogKitError):
        error.hint = hint
    with suppress(StorageError, CheckpointError):  # such as a full disk: the error itself is reported
        folder.write(record)
        folder.append_console(f"error: {record.error}")
        if hint:
            folder.append_console(f"try: {run.reporter.advice(hint)}")
    wandb_run.finish(exit_code=exit_code_of(error))
    folder.list_files()
    return error


def _end_without_folder(run: TrainingRun, error: BaseException) -> BaseException:
    """Return the error of a run whose folder is gone: nothing can be written or resumed."""
    folder = run.folder
    if not is_interruption(error):
        error = CheckpointError(f"the run folder {str(folder.path)!r} was removed or moved while training")
    if isinstance(error, DialogKitError):
        output = folder.output or folder.path.parent.parent
        again = Shell(shlex.join(run.record.command)) if run.record.command else None
        error.hint = again or Call("runs list", **output_of(output))
    run.wandb_run.finish(exit_code=exit_code_of(error))
    return error


def _status(error: BaseException) -> Any:
    if isinstance(error, DivergedError):
        return "diverged"
    return "interrupted" if is_interruption(error) else "failed"
