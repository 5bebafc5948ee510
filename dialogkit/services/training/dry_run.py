"""Measure the time and memory of a run, without writing anything."""

import math
import time
from pathlib import Path

from dialogkit.config.base import Result
from dialogkit.config.run import RunConfig
from dialogkit.services.training.base_model import with_lasting_base
from dialogkit.services.training.disk_plan import require_disk
from dialogkit.services.training.lifecycle import create_folder, require_startable
from dialogkit.services.training.memory_plan import fit_batch_to_gpu, fit_batch_to_memory
from dialogkit.services.training.progress import LogReporter, TrainReporter
from dialogkit.services.training.samples import reply_to_tests
from dialogkit.services.training.setup import TrainingSetup
from dialogkit.services.training.speed import measure_steps
from dialogkit.services.training.summary import ledger_line, warnings
from dialogkit.system.compute_lock import alone, require_threads
from dialogkit.text import counted
from dialogkit.tracking.pruning import remove_unbegun


class DryRunResult(Result):
    """The measurements of a dry run."""

    model: str
    parameters: int
    trainable_parameters: int
    device: str
    precision: str
    train_dialogs: int | None
    """None for a stream of unknown size."""
    total_steps: int
    tokens_per_step: float
    """Mean, padding-free."""
    longest_batch_tokens: int
    tokens_per_s: float
    """In the second of two steps on the longest batch."""
    peak_memory_bytes: int
    expected_s: float
    """Expected time of the whole run: start, steps, evaluations and replies."""
    training_s: float
    """Expected time of the training steps alone."""
    eval_nats_per_token: float
    reply: str


@alone()
def dry_run(config: RunConfig, *, reporter: TrainReporter | None = None) -> DryRunResult:
    """Resolve everything, build the model, and measure two steps on the longest batch. Saves nothing.

    Raises: whatever `train` would raise before and in its first steps.
    """
    started = time.perf_counter()
    from dialogkit.engine.arguments import EVALUATIONS_PER_RUN
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.engine.memory import peak_bytes

    config = with_lasting_base(config)
    require_threads(config.runtime.threads)
    require_startable(config)
    remove_unbegun(create_folder(config))  # a run would find out in no other way
    reporter = reporter or LogReporter()
    reporter.note("dry run: nothing will be kept")
    if config.runtime.devices not in (1, "auto"):
        reporter.note(f"measured in one process; the run would use {config.runtime.devices} on each machine")
    runtime = resolve_runtime(config.runtime)
    setup = TrainingSetup(config, runtime)
    require_disk(setup, Path(config.runtime.output_dir))
    split = fit_batch_to_memory(setup) or fit_batch_to_gpu(setup)
    config = setup.config
    for line in (ledger_line(setup), *warnings(setup, reporter.advice), *([split] if split else [])):
        reporter.note(line)
    start_s = time.perf_counter() - started
    dialogs, train_dialogs = setup.data.sample, setup.data.size
    longest = dialogs.lengths.argsort()[-config.train.batch_size :]
    started = time.perf_counter()
    reporter.activity(f"measuring the untrained model on {counted(len(setup.data.evaluation), 'held-out dialog')}")
    metrics = setup.score(autocast=False)
    score_s = time.perf_counter() - started
    reporter.activity("answering the test prompts")
    replies = reply_to_tests(setup)
    reply_s = time.perf_counter() - started - score_s
    reporter.activity("training two steps on the longest batch")
    schedule = setup.schedule
    speed = measure_steps(setup, longest, 2)[-1]
    tokens_per_step = float(dialogs.lengths.mean()) * config.train.batch_size
    step_s = tokens_per_step / speed
    if (budget_s := config.train.budget_s) is None:
        total_steps = schedule.total_steps
        evaluations = math.ceil(total_steps / schedule.eval_every_steps)
    else:
        evaluations = EVALUATIONS_PER_RUN
        total_steps = max(1, int((budget_s - start_s - (evaluations + 2) * score_s - reply_s) / step_s))
    training_s = total_steps * step_s
    return DryRunResult(
        model=config.model.name,
        parameters=setup.model_info["parameters"],
        trainable_parameters=setup.model_info["trainable_parameters"],
        device=runtime.device,
        precision=runtime.precision,
        train_dialogs=train_dialogs,
        total_steps=total_steps,
        tokens_per_step=tokens_per_step,
        longest_batch_tokens=int(dialogs.lengths[longest].sum()),
        tokens_per_s=speed,
        peak_memory_bytes=peak_bytes(runtime.device) or 0,
        # One more evaluation before training and one after it; replies come last.
        expected_s=start_s + training_s + (evaluations + 2) * score_s + reply_s,
        training_s=training_s,
        eval_nats_per_token=metrics["nats_per_token"],
        reply=replies[0].reply if replies else "",
    )
