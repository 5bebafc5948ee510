"""Train a model: from validated settings to a published model and its record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dialogkit.config.run import RunConfig
from dialogkit.distributed import process_group, rendezvous
from dialogkit.errors import OutOfMemoryError
from dialogkit.services.training.agreement import require_same_request
from dialogkit.services.training.lifecycle import TrainRequest, open_run
from dialogkit.services.training.progress import LogReporter, TrainReporter
from dialogkit.services.training.result import TrainResult
from dialogkit.system.collector import spare_loaded
from dialogkit.system.compute_lock import alone
from dialogkit.system.stopping import raise_if_asked, stoppable
from dialogkit.tracking.record import DataInfo
from dialogkit.tracking.run_dir import RunDir

__all__ = ["TrainRequest", "TrainResult", "resume", "run_training", "train"]


def train(
    config: RunConfig,
    *,
    origins: Mapping[str, str] | None = None,
    command: list[str] | None = None,
    reporter: TrainReporter | None = None,
) -> TrainResult:
    """Train, evaluate, answer the test prompts, and publish the model.

    Args:
        config: the settings of the run.
        origins: where each setting came from; kept with the run.
        command: the command line as typed; kept with the run.
        reporter: receives progress and notes; None logs them.

    Raises: DialogKitError; the run's record holds the reason.
    """
    request = TrainRequest(
        config=config, origins=origins or {}, command=command or (), reporter=reporter or LogReporter()
    )
    return run_training(request)[0]


def resume(
    run: RunDir,
    *,
    changes: Mapping[str, Any] | None = None,
    force: bool = False,
    command: list[str] | None = None,
    reporter: TrainReporter | None = None,
) -> TrainResult | None:
    """Resume an unfinished run from its newest valid checkpoint; on a CPU, bit for bit as if it had not stopped.

    Args:
        run: the run.
        changes: settings that differ, by dotted names.
        force: resume despite changed settings, or restart if no checkpoint is usable.
        command: the command line as typed; kept with the run.
        reporter: receives progress and notes; None logs them.

    Returns None, and changes nothing, if the run is finished.
    Raises: what `train` raises; ConfigError for settings or a machine that would change the result.
    """
    rendezvous.join()
    if process_group.broadcast(process_group.is_main_process() and run.read().status == "completed"):
        return None
    request = TrainRequest(
        resumed=run, changes=changes or {}, force=force, command=command or (), reporter=reporter or LogReporter()
    )
    return run_training(request)[0]


def run_training(request: TrainRequest) -> tuple[TrainResult, Any]:
    """Train on every rank; return the result and HF's trainer."""
    from dialogkit.data.worlds.location import WORLDS, holds_world
    from dialogkit.engine.fit import fit
    from dialogkit.services.training.disk_plan import require_disk
    from dialogkit.services.training.measure import measure_trained, measure_untrained, plan_budget
    from dialogkit.services.training.memory_plan import (
        fit_batch_to_gpu,
        fit_batch_to_memory,
        resume_after_split,
        split_further,
    )
    from dialogkit.services.training.publish import publish_model
    from dialogkit.services.training.recorder import Recorder
    from dialogkit.services.training.resume import choose_checkpoint
    from dialogkit.services.training.setup import TrainingSetup
    from dialogkit.services.training.summary import data_info

    spare_loaded()
    with alone(request.reporter.note), stoppable():
        rendezvous.join()
        request = require_same_request(request)
        with open_run(request) as run:
            dataset = run.config.data.dataset
            if holds_world(dataset) or holds_world(WORLDS / dataset):  # takes longer than a file does
                run.reporter.activity(f"making the dialogs of {dataset}")
            setup = TrainingSetup(run.config, run.runtime, raise_missed_signal=run.raise_missed_signal)
            raise_if_asked()
            run.checkpoint = None if run.is_new else choose_checkpoint(run, setup)
            if process_group.is_main_process():
                require_disk(setup, Path(run.config.runtime.output_dir), run.checkpoint)
            run.open_tracker()
            split = fit_batch_to_memory(setup) or (None if run.checkpoint else fit_batch_to_gpu(setup))
            recorder = Recorder(run, setup)
            recorder.begin(split)
            # On resume, the checkpoint holds the time that an evaluation takes.
            evaluation_s = 0.0 if run.checkpoint else measure_untrained(run, setup, recorder)
            budget = plan_budget(run, setup, evaluation_s)
            resume_from = run.checkpoint
            while True:  # again with fewer tokens at once if memory runs out, where the settings allow it
                try:
                    fitted = fit(
                        setup.fit_task(run.folder.path, resume_from=resume_from, budget=budget),
                        recorder.metrics,
                        histograms=recorder.histograms,
                        on_step_counts=recorder.plan,
                    )
                    break
                except OutOfMemoryError as error:
                    reason = split_further(setup, error)
                finally:
                    run.record.data = DataInfo(**data_info(setup))  # for a stream it is known only now
                # Outside the handler, as the traceback keeps the tensors of the failed step alive.
                resume_from = resume_after_split(run, setup, reason)
            setup.merge_adapter()
            measured = measure_trained(run, setup, recorder, fitted)
            result = publish_model(run, setup, fitted, measured)
    return result, fitted.trainer
