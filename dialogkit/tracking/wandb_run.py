"""The W&B run that logs a run. A failure of W&B never ends training.

The mode is chosen before any call to W&B, so that it never prompts. Every later call is guarded: the first failure
is logged as a warning, and training continues without W&B.
"""

import atexit
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from dialogkit.config.tracking import TrackingConfig
from dialogkit.errors import DialogKitError, StorageError
from dialogkit.hints import Change
from dialogkit.redaction import without_secrets
from dialogkit.system.credentials import Credentials, find_credentials, user_settings, warn_of_open_dotenv
from dialogkit.system.network import Wait, problems
from dialogkit.system.variables import changed_variables

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 9.0
FINISH_TIMEOUT_S = 30.0
"""Longest delay of the start and the end of a run by an unresponsive server."""

EXIT_WAIT_S = 1.0
"""How long W&B's service may take to exit after a failure before it is killed."""

Mode = Literal["online", "offline", "disabled"]


def sound_settings(empty: str) -> dict[str, str]:
    """Return environment variables that hide user settings of W&B that are not a regular file, such as a pipe."""
    settings = user_settings()
    return {"WANDB_CONFIG_DIR": empty} if settings.exists() and not settings.is_file() else {}


def _set_up() -> None:
    """Let W&B read its settings, except from the working directory: these could send the key elsewhere."""
    import wandb

    here = Path.cwd()
    if not any((here / place / "settings").exists() for place in ("wandb", ".wandb")) and not sound_settings(""):
        return  # W&B does it by itself
    with tempfile.TemporaryDirectory() as empty, changed_variables(sound_settings(empty)), chdir(empty):
        settings = wandb.setup().settings
    if settings.root_dir in (empty, os.path.realpath(empty)):
        settings.root_dir = str(here)


class Decision(NamedTuple):
    """The mode of W&B, chosen before any call to it."""

    mode: Mode
    reason: str
    credentials: Credentials


def decide(config: TrackingConfig, folder: Path) -> Decision:
    """Return mode, reason and credentials for a run started in `folder`.

    Raises: UnavailableError if `online` is asked for without a key.
    """
    credentials = find_credentials(folder)
    warn_of_open_dotenv(folder / ".env")
    if config.wandb in ("auto", "online"):
        credentials.warn()
    return Decision(*resolve_mode(config.wandb, credentials), credentials)


def resolve_mode(request: str, credentials: Credentials) -> tuple[Mode, str]:
    """Return the W&B mode and the reason for it.

    Raises: UnavailableError if `online` is asked for without a key.
    """
    match request:
        case "disabled":
            return "disabled", "requested"
        case "offline":
            return "offline", "requested"
        case "online":
            credentials.require_key(hint=Change({"tracking.wandb": "offline"}))
            return "online", "requested"
    if os.environ.get("WANDB_MODE", "") in ("offline", "disabled"):
        return ("disabled" if os.environ["WANDB_MODE"] == "disabled" else "offline"), "WANDB_MODE"
    if credentials.key is None:
        return "offline", credentials.problem or "no key found"
    if (problem := problems([credentials.server])[0]) is not None:
        return "offline", f"the server {problem}"
    return "online", "a key was found"


class WandbRun:
    """A W&B run whose failures are warnings. If disabled, it does nothing.

    A separate thread calls W&B, in the order of the calls here: some of its functions wait for the server, which
    must not block training.
    """

    def __init__(self, run: Any, mode: Mode, reason: str, *, place: Path = Path(), logged_step: int = -1) -> None:
        self.mode = mode
        self.reason = reason
        self.id: str | None = str(run.id) if run is not None else None
        """W&B's id of the run."""
        self.folder = place / "wandb" / Path(run.dir).parent.name if run is not None else None
        """Folder of W&B's files."""
        self.url: str | None = str(run.url) if run is not None and mode == "online" else None
        """Address of the run; None offline."""
        self._run = run
        # Online, W&B skips steps that it has; offline, they would appear twice after the upload.
        self._logged_step = logged_step if mode == "offline" else -1
        self._failed = False
        self._calls: SimpleQueue[Callable[[Any], object] | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="wandb", daemon=True)
        if run is not None:
            self._worker.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at an optimizer step."""
        self._guard(lambda run: run.log({**metrics, "train/step": step}, step=step), step=step)

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Add to the run's configuration."""
        self._guard(lambda run: run.config.update(dict(config), allow_val_change=True))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int, late: bool = False
    ) -> None:
        """Log a table at an optimizer step or, if `late`, after all that was logged up to that last step."""

        def log(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            # In a resumed run, W&B skips the steps that it has, if it knows them.
            run.log({name: table, "train/step": step}, step=max(run.step, step + 1) if late else step)

        self._guard(log, step=None if late else step)

    def log_histograms(self, step: int, histograms: Mapping[str, tuple[Any, Any]]) -> None:
        """Log histograms, each as counts and edges, at an optimizer step."""

        def log(run: Any) -> None:
            import wandb

            drawn = {name: wandb.Histogram(np_histogram=made) for name, made in histograms.items()}
            # Committed with the metrics of the same step, which are logged afterwards.
            run.log(drawn, step=step, commit=False)

        self._guard(log, step=step)

    def log_model(self, name: str, folder: Path) -> None:
        """Upload a model folder as an artifact."""

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type="model")
            artifact.add_dir(str(folder))
            run.log_artifact(artifact)

        self._guard(log)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set summary values."""
        self._guard(lambda run: run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Finish the run. If the server does not take the rest in time, log a warning and return."""
        self._guard(lambda run: run.finish(exit_code=exit_code))
        self._calls.put(None)
        taker = "W&B" if self.mode == "online" else "W&B's files"
        waiting = Wait(f"waiting for {taker} to take the rest of the run, at most {FINISH_TIMEOUT_S:.0f} s")
        deadline = time.monotonic() + FINISH_TIMEOUT_S + 3
        try:
            while self._worker.is_alive() and not self._failed and time.monotonic() < deadline:
                self._worker.join(0.25)
                waiting.tick()
        except BaseException:  # Ctrl-C ends this wait, and that of W&B at exit
            self._run, self._failed = None, True
            _limit_exit()
            raise
        if self._worker.is_alive() and not self._failed:
            self._run, self._failed = None, True
            message = "W&B did not finish within %.0f s; to upload: wandb sync %s"
            logger.warning(message, FINISH_TIMEOUT_S, shlex.quote(str(self.folder)))
        if self._failed:
            self.url = None  # the page is incomplete; the folder has the rest
            _limit_exit()

    def _guard(self, call: Callable[[Any], object], *, step: int | None = None) -> None:
        if self._run is not None and (step is None or step > self._logged_step):
            self._calls.put(call)

    def _work(self) -> None:
        """Make the calls until the last one, or the first that fails."""
        while (call := self._calls.get()) is not None:
            try:
                call(self._run)
            except Exception as error:  # whatever W&B raises, training continues
                self._run = None
                if self._failed:
                    return  # `finish` gave up already, with a warning
                self._failed = True
                _leave_dead_service(error)
                logger.warning("W&B failed (%s); the run continues without it", type(error).__name__)
                return
        self._run = None


def open_wandb(
    config: TrackingConfig,
    decision: Decision,
    *,
    name: str,
    tags: Sequence[str],
    folder: Path,
    settings: Mapping[str, Any],
    resume_id: str | None = None,
    logged_step: int = -1,
) -> WandbRun:
    """Start the W&B run that logs a run, or resume it.

    Args:
        config: project, group and notes.
        decision: the mode, and the key where it is online.
        name: name of the run.
        tags: tags of the run.
        folder: W&B makes its `wandb` folder in here.
        settings: the resolved configuration.
        resume_id: W&B's id of the run to resume.
        logged_step: last step that was logged to it; steps up to it are not logged again.
    """
    mode, reason, credentials = decision
    if mode == "disabled":
        return WandbRun(None, mode, reason)
    try:
        # Otherwise W&B silently uses the temporary folder.
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {str(folder / 'wandb')!r}: {error.strerror}") from None
    options = {
        "project": config.project,
        "entity": config.entity or credentials.entity,
        "name": name,
        "id": resume_id,
        "resume": "allow" if resume_id else None,
        "group": config.group,
        "notes": config.notes,
        "tags": list(tags),
        # W&B's service stays in the folder of the first run of the process, so this path is absolute.
        "dir": str(folder.absolute()),
        "config": dict(settings),
    }
    run = _init(mode, credentials, options)
    if run is None and mode == "online":
        mode, reason = "offline", "the server refused"
        run = _init(mode, credentials, options)
    if run is None:
        return WandbRun(None, "disabled", "W&B could not start")
    return WandbRun(run, mode, reason, place=folder, logged_step=logged_step)


def _init(mode: Mode, credentials: Credentials, options: Mapping[str, Any]) -> Any:
    """Return a new run of W&B; None, with a warning, if it could not start."""
    variables = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_BASE_URL": credentials.server}
    if mode == "online" and credentials.key:
        variables["WANDB_API_KEY"] = credentials.key
    arguments = sys.argv
    with changed_variables(variables):
        try:
            import wandb

            _set_up()
            sys.argv = [*arguments[:1], *without_secrets(arguments[1:])]  # W&B records it
            run = wandb.init(
                **options,
                mode=mode,
                reinit="create_new",  # leaves a run of the user alone, as in a notebook
                settings=wandb.Settings(
                    silent=True,
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    # Otherwise a killed process loses the last 15 seconds.
                    x_transaction_log_flush_interval=2,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    base_url=credentials.server,
                ),
            )
            # Every point also carries train/tokens, which a panel may use as its axis instead.
            run.define_metric("train/step")
            run.define_metric("train/tokens", step_metric="train/step")
            run.define_metric("*", step_metric="train/step")
            return run
        except BaseException as error:  # whatever W&B raises, training continues
            _leave_dead_service(error)
            _limit_exit()
            _raise_stop(error)
            logger.warning("W&B could not start %s (%s)", mode, type(error).__name__)
            return None
        finally:
            sys.argv = arguments


def _limit_exit() -> None:
    """Limit how long W&B's service, which retries an unresponsive server, can delay the exit of the process.

    W&B's own exit hook waits for it forever.
    """
    with suppress(Exception):  # private names of W&B
        import wandb

        connection = wandb.setup()._connection
        if connection is not None and connection.owns_service:
            connection._cleanup()
            atexit.unregister(_end_service)
            atexit.register(_end_service, connection)


def _end_service(connection: Any) -> None:
    """Let W&B's service exit, and kill it if it does not."""

    def end() -> None:
        with suppress(Exception):  # it may have exited already
            connection.teardown(0)

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(EXIT_WAIT_S)
    if ending.is_alive():
        with suppress(Exception):
            connection._proc._process.kill()
            ending.join(EXIT_WAIT_S)


def _raise_stop(error: BaseException) -> None:
    """Raise the interruption that W&B may have wrapped in an error of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DialogKitError) or not isinstance(seen, Exception):
            raise seen
        seen = seen.__cause__ or seen.__context__


def _leave_dead_service(error: BaseException) -> None:
    """Drop W&B's service process if it died: otherwise every later run and the exit would fail."""
    if isinstance(error, ConnectionError):
        with suppress(Exception):
            import wandb

            wandb.teardown()
