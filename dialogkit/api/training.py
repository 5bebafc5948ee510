"""Train, stop and resume from Python, with progress and a summary at the end."""

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dialogkit.api import hints
from dialogkit.api.reporter import PythonReporter
from dialogkit.config.load import load_run_config, require_overrides
from dialogkit.config.paths import DEFAULT_OUTPUT, NEWEST
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError
from dialogkit.hints import Call
from dialogkit.services import train as services
from dialogkit.services.training.progress import LogReporter, TrainReporter, hidden_log, show_log
from dialogkit.services.training.result import TrainResult
from dialogkit.system.loading import LOADING, loads_libraries
from dialogkit.system.stopping import ask_to_stop, beginning

logger = logging.getLogger("dialogkit")


def train(
    config: RunConfig,
    *,
    from_run: str | Path | TrainResult | None = None,
    quiet: bool = False,
    origins: Mapping[str, str] | None = None,
    command: list[str] | None = None,
    reporter: TrainReporter | None = None,
) -> TrainResult:
    """Train, evaluate, answer the test prompts, and publish the model.

    Progress and a summary go to the logger `dialogkit`, which prints unless it has its own handlers. Runs
    in several threads take turns. Ctrl-C, or `stop` in another thread, saves a checkpoint for `resume`.

    Args:
        config: the settings of the run.
        from_run: start from the weights of a finished run, by name, folder or result, or of a checkpoint
            (`"my-run/checkpoint-20"`). Its model must have the shape in `config`; the name is that in `config`.
        quiet: report nothing.
        origins: where each setting came from; kept with the run.
        command: the command line as typed; kept with the run.
        reporter: receives progress and notes instead of the log.

    Raises: DialogKitError; the run's record holds the reason.
    """
    _require_settings(config)
    with _reporting(reporter, quiet=quiet) as chosen:
        if from_run is not None:
            from dialogkit.services.training.resume import started_from

            config = started_from(config, _name_of(from_run))
        result = services.train(config, origins=origins, command=command, reporter=chosen)
        return _summarized(result, chosen)


def resume(
    run: str | Path | TrainResult = NEWEST,
    *,
    changes: Mapping[str, Any] | None = None,
    force: bool = False,
    output: str | Path = DEFAULT_OUTPUT,
    quiet: bool = False,
    reporter: TrainReporter | None = None,
) -> TrainResult | None:
    """Resume an unfinished run from its newest valid checkpoint; on a CPU, bit for bit as if it had not stopped.

    Args:
        run: the run by name or folder; `last` is the newest unfinished one.
        changes: settings that differ, by dotted names.
        force: resume despite changed settings, or restart if no checkpoint is usable.
        output: folder of models and runs.
        quiet: report nothing.
        reporter: receives progress and notes instead of the log.

    Returns None, and changes nothing, if the run is finished.
    Raises: what `train` raises; ModelError if there is no such run; ConfigError for changes of the result.
    """
    from dialogkit.services.training.resume import find_resumable

    found = find_resumable(_name_of(run), model=None, output=Path(output))
    with _reporting(reporter, quiet=quiet) as chosen:
        result = services.resume(found, changes=changes, force=force, reporter=chosen)
        if result is None:
            chosen.note(f"the run {found.name} is finished: there is nothing to do")
            return None
        return _summarized(result, chosen)


def stop() -> bool:
    """Ask the run in another thread to save a checkpoint and stop; return whether one runs.

    It ends with an InterruptedRunError after its step, and `resume` continues it. A run after its last step
    finishes.
    """
    return ask_to_stop()


def train_single_model(
    model_name: str = "custom-tiny",
    config_type: str = "test",
    *,
    max_samples: int | None = None,
    project_name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> tuple[Any, dict[str, float]]:
    """Train one model from a notebook and return HF's trainer and the metrics.

    Args:
        model_name: a model of the catalogue, a model file, a folder or a hub id.
        config_type: the preset: test, talk, development or production.
        max_samples: training dialogs to use; None is the preset's.
        project_name: W&B project.
        overrides: further settings by dotted names, such as `{"train.learning_rate": 1e-3}`.
        quiet: report nothing.
    """
    require_overrides(overrides)
    given = {"data.samples": max_samples, "tracking.project": project_name}
    chosen = {name: value for name, value in given.items() if value is not None} | dict(overrides or {})
    config = load_run_config(model_name, preset=config_type, overrides=chosen)
    with _reporting(None, quiet=quiet) as reporter:
        result, trainer = services.run_training(services.TrainRequest(config=config, reporter=reporter))
        return trainer, _summarized(result, reporter).metrics


def _require_settings(config: object) -> None:
    """Raise ConfigError for anything else than settings, such as the name of a model."""
    if isinstance(config, RunConfig):
        return
    if isinstance(config, TrainResult):
        hint = Call("train", settings={"from": config.run})
    else:
        model = config.get("model") if isinstance(config, Mapping) else config
        hint = Call("train", model if isinstance(model, str | Path) else "custom-tiny")
    raise ConfigError(f"train takes the settings that load_run_config returns, not {config!r}", hint=hint)


@contextmanager
def _reporting(reporter: TrainReporter | None, *, quiet: bool) -> Iterator[TrainReporter]:
    """Yield the reporter of a run that `stop` reaches, and show the log meanwhile, or hide it if it is `quiet`."""
    with beginning():
        if quiet:
            with hidden_log():
                yield reporter or TrainReporter()
            return
        reporter = reporter or PythonReporter()
        if isinstance(reporter, LogReporter):
            show_log()
        if loads_libraries():
            reporter.activity(LOADING)
        yield reporter


def _name_of(run: str | Path | TrainResult) -> str:
    return run.run_dir if isinstance(run, TrainResult) else str(run)


def _summarized(result: TrainResult, reporter: TrainReporter) -> TrainResult:
    """Log what the command line prints at the end of a run, if the log reports it."""
    if isinstance(reporter, PythonReporter):
        logger.info(summary(result))
    return result


def summary(result: TrainResult) -> str:
    """Return what the command line prints at the end of a run, and the next call."""
    from dialogkit.cli.output import Output
    from dialogkit.cli.train_view import prompt_to_try, render_training
    from dialogkit.tracking.run_dir import RunDir

    printed = io.StringIO()
    render_training(Output(file=printed), result)
    output = RunDir(Path(result.run_dir)).output
    name, where = (result.run, output) if output is not None else (result.run_dir, None)
    prompt = prompt_to_try(result.held_out_replies if result.shows_held_out else ())
    following = Call("generate", name, prompt=prompt, output_dir=None if where is None else str(where))
    return f"\n{printed.getvalue().rstrip()}\nnext:   {hints.render(following)}"
