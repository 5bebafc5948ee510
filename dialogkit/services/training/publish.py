"""Writes the finished model into its run, publishes it under its name, and closes the run."""

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dialogkit.config.generate import TEST_PROMPTS
from dialogkit.data.sources import NAMED
from dialogkit.distributed import process_group
from dialogkit.errors import CheckpointError, StorageError
from dialogkit.hints import Call, Hint, Shell, Then
from dialogkit.services.runs.report import write_run_report
from dialogkit.services.training.lifecycle import TrainingRun
from dialogkit.services.training.model_card import model_card
from dialogkit.services.training.recorder import reply_statistics
from dialogkit.services.training.result import TrainResult, closing_lines
from dialogkit.services.training.resume import resume_hint
from dialogkit.system.files import ordinary_permissions, write_text
from dialogkit.system.ownership import free_name
from dialogkit.tracking.publishing import (
    is_publishable,
    keep_foreign_model,
    publish,
    published_dir,
    replace_folder,
)
from dialogkit.tracking.record import now
from dialogkit.tracking.wandb_sync import folders_of_run

if TYPE_CHECKING:
    from dialogkit.engine.fit import FitResult
    from dialogkit.services.training.measure import Measurements
    from dialogkit.services.training.setup import TrainingSetup


def publish_model(
    run: TrainingRun,
    setup: "TrainingSetup",
    fitted: "FitResult",
    measured: "Measurements",
) -> TrainResult:
    """Write and publish the trained model, close the run, and return the result on every rank.

    Raises: StorageError that says where the complete model is, if it could not be published.
    """
    from dialogkit.distributed.sharding import gather_weights

    weights = gather_weights(fitted.trainer.model)
    result = None
    if process_group.is_main_process():
        run.folder.require_there()  # saving the model would create a removed folder again
        run.record.metrics, run.record.replies = measured.metrics, reply_statistics(measured.replies)

        def save(folder: Path) -> None:
            if weights is None:
                fitted.trainer.save_model(str(folder))
            else:
                fitted.trainer.save_weights(folder, weights)
            setup.tokenizer.save(folder)
            write_text(folder / "README.md", model_card(run.record))
            ordinary_permissions(folder)

        published = _publish(run, save)
        _close(run)
        result = _result(run, fitted, measured, published)
        for line in closing_lines(result):
            run.folder.append_console(line)
    result = process_group.broadcast(result)
    assert result is not None
    return result


def _publish(run: TrainingRun, save: Callable[[Path], None]) -> Path:
    """Write the model into the run and publish it; return the folder of the newest model of its name."""
    folder, again = run.folder, resume_hint(run.folder)
    target = published_dir(Path(run.config.runtime.output_dir), run.config.model.name)
    state = "training is complete and the run can be resumed"
    hint: Hint = again
    try:
        problems = keep_foreign_model(folder.model_dir)
        problems += replace_folder(folder.model_dir, save)
        state = f"the finished model is complete in {str(folder.model_dir)!r}; resume the run to publish it"
        if not is_publishable(target):
            aside = Shell(f"mv {shlex.quote(str(target))} {shlex.quote(str(free_name(target)))}")
            hint = Then(aside, again)
        problems += publish(folder.model_dir, target)
    except StorageError as error:
        refused = StorageError(f"{error.message}; {state}", hint=hint)
        refused.exit_code = 1  # all the work is done
        raise refused from None
    for problem in problems:
        run.note(problem)
    return target


def _close(run: TrainingRun) -> None:
    """Record the completed run, in its folder and in W&B."""
    record = run.record
    record.status, record.exit_code = "completed", 0
    record.finished, record.duration_s = now(), run.duration_s
    run.wandb_run.summarize(
        {
            **record.metrics,
            **{f"replies/{name}": value for name, value in record.replies.items()},
            **record.model_dump(include={"status", "created", "finished", "duration_s"}),
        }
    )
    if run.config.tracking.log_model:
        run.wandb_run.log_model(run.config.model.name, run.folder.model_dir)
    run.folder.write(record)  # before W&B, which may take long
    run.wandb_run.finish(exit_code=0)


def _write_report(run: TrainingRun) -> str | None:
    """Write the run's report; return its path, None if it was not requested or could not be written."""
    if not run.config.tracking.report:
        return None
    unwritten = write_run_report(run.folder)
    if unwritten is None:
        return str(run.folder.report_path)
    again = run.reporter.advice(Call("runs report", run.folder.name))
    line = f"warning: the report could not be written ({unwritten}); {again}"
    run.reporter.note(line)
    with suppress(CheckpointError):  # such as a full disk
        run.folder.append_console(line)
    return None


def _result(run: TrainingRun, fitted: "FitResult", measured: "Measurements", published: Path) -> TrainResult:
    report, wandb_run = _write_report(run), run.wandb_run
    own = run.config.data.dataset not in NAMED and run.config.generate.test_prompts == TEST_PROMPTS
    return TrainResult(
        run=run.folder.name,
        run_dir=str(run.folder.path),
        model_dir=str(run.folder.model_dir),
        published_dir=str(published),
        report=report,
        steps=fitted.steps,
        kept_step=fitted.kept_step,
        duration_s=run.record.duration_s or 0.0,
        metrics=run.record.metrics,
        replies=measured.replies,
        held_out_replies=measured.held_out_replies,
        shows_held_out=own and bool(measured.held_out_replies),
        reply_rate=run.record.replies.get("reply_rate", 0.0),
        stop_rate=run.record.replies.get("stop_rate", 0.0),
        wandb_mode=wandb_run.mode,
        wandb_dir=str(wandb_run.folder) if wandb_run.folder else None,
        wandb_url=wandb_run.url,
        wandb_dirs=list(map(str, folders_of_run(Path(run.config.runtime.output_dir), wandb_run.id))),
    )
