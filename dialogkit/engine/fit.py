"""Fits a model to dialogs with HF Trainer."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback
from transformers.utils import logging as hf_logging

from dialogkit.config.train import TrainConfig
from dialogkit.distributed import process_group
from dialogkit.engine.arguments import Schedule, training_arguments
from dialogkit.engine.attention import use_packed_attention, use_plain_attention
from dialogkit.engine.budget import Budget, BudgetCallback, BudgetPlan
from dialogkit.engine.callbacks import (
    EvaluationLeft,
    MetricCallback,
    MetricSink,
    StopAtNonFinite,
    StopAtSignal,
    guard_trackers,
)
from dialogkit.engine.checkpoints import (
    Progress,
)
from dialogkit.engine.device import Runtime
from dialogkit.engine.histograms import HistogramCallback, HistogramSink
from dialogkit.engine.loss import TokenCounter, install_dialog_loss, remove_dialog_loss
from dialogkit.engine.memory import is_out_of_memory, keep_freed_memory
from dialogkit.engine.trainer import (
    DialogTrainer,
    RestoreCallback,
    Scorer,
    StreamCallback,
    Streamed,
    load_trained,
    planned_steps,
)
from dialogkit.errors import ModelError, OutOfMemoryError
from dialogkit.hints import Call, Change


@dataclass(frozen=True)
class FitResult:
    """What a training did, and HF's trainer."""

    trainer: Any
    steps: int
    supervised_tokens: int
    tokens: int
    train_s: float
    """Seconds in training steps, without evaluations and saving."""
    best_step: int | None


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """What `fit` trains, on what, and how."""

    model: Any
    """A causal transformers model in float32; trained in place."""
    train_set: Any
    """Indexable dialogs, as `collate` takes them, or a stream of them."""
    config: TrainConfig
    runtime: Runtime
    schedule: Schedule
    collate: Callable[[Any], dict[str, Any]]
    """Makes a padding-free batch of dialogs."""
    score: Scorer
    """Evaluates the model as it is."""
    folder: Path
    """Where checkpoints go."""
    tokenizer: Any = None
    """Saved beside each checkpoint."""
    compile: bool = False
    workers: int = 0
    """Processes that assemble batches."""
    histogram_every: int = 0
    """Optimizer steps between histograms of weights and gradients; 0 takes none."""
    trackers: Sequence[str] = ()
    """HF's integrations that log as well; one that fails is dropped with a warning."""
    project: str = "dialogkit"
    """Name under which those file the run."""
    resume_from: tuple[Path, Progress] | None = None
    """Checkpoint to resume from; all else must be as it was."""
    budget: Budget | None = None
    """Wall-clock time of the run, in place of the schedule's steps."""
    stop: StopAtSignal = field(default_factory=StopAtSignal)
    """Ends the training at a signal."""


def fit(
    task: FitTask,
    sink: MetricSink,
    *,
    histograms: HistogramSink | None = None,
    planned: Callable[[Schedule], None] = lambda _: None,
) -> FitResult:
    """Train a model in place; afterwards it holds the best or the last weights, as `config.keep` says.

    Args:
        task: the model, the data and how to train.
        sink: receives every logged point.
        histograms: receives histograms of weights and gradients.
        planned: receives the schedule that the budget allows, whenever it changes.

    Raises: DivergedError, InterruptedRunError, OutOfMemoryError, ConfigError for a budget that is too small.
    """
    model, train_set, config, runtime, stop = task.model, task.train_set, task.config, task.runtime, task.stop
    schedule, budget, resume_from = task.schedule, task.budget, task.resume_from
    config.require_even(process_group.world_size())
    if runtime.device == "cpu" and runtime.sharding == "none":  # who shards has no memory to keep
        keep_freed_memory()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    counter = TokenCounter()
    metrics = MetricCallback(sink, counter)
    callbacks = [metrics, StopAtNonFinite(), stop]
    whole = runtime.sharding == "none"
    if histograms is not None and task.histogram_every and process_group.is_main_process() and whole:
        callbacks.append(HistogramCallback(histograms, every=task.histogram_every))
    plan = BudgetPlan(config.schedule, config.warmup_fraction, budget) if budget else None
    if budget and plan:
        callbacks.append(BudgetCallback(config, budget, plan, planned))
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    use_packed_attention(model)
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    sharded = runtime.sharding == "fsdp"
    install_dialog_loss(model, dtype=dtype, counter=counter, sharded=sharded)
    try:
        trainer = DialogTrainer(
            model=model,
            args=training_arguments(
                config,
                runtime,
                schedule,
                folder=task.folder,
                compile=task.compile,
                workers=task.workers,
                trackers=task.trackers,
                project=task.project,
            ),
            data_collator=task.collate,
            train_dataset=train_set,
            eval_dataset=train_set,  # the scorer has the evaluation set; HF only asks that there is one
            processing_class=task.tokenizer,
            callbacks=callbacks,
            scorer=task.score,
            sink=sink,
            counter=counter,
            metrics=metrics,
            config=config,
            precision=runtime.precision,
            plan=plan,
        )
        trainer.remove_callback(PrinterCallback)  # what is printed is the reporter's business
        guard_trackers(trainer, task.trackers)
        # Of accelerate, about an argument that HF passes on.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        if isinstance(train_set, Streamed):
            train_set.restore(resume_from[0] if resume_from else None)
            trainer.args.ignore_data_skip = True
            reading = StreamCallback(train_set)
            reading.exchange()  # a training that is through makes no step
            trainer.add_callback(reading)
        if resume_from is None:
            trainer.train()
        else:
            checkpoint, progress = resume_from
            counter.restore(progress.tokens, progress.supervised_tokens)
            metrics.restore(progress)
            trainer.add_callback(RestoreCallback(trainer, progress))
            if progress.step < (planned_steps(checkpoint) if budget else schedule.total_steps):
                trainer.train(resume_from_checkpoint=str(checkpoint))
            else:  # HF would train a step more
                load_trained(trainer, checkpoint, best=config.keep == "best")
    except EvaluationLeft:
        trainer.save_unevaluated()
    except pickle.UnpicklingError:
        # torch loads tensors and plain values only.
        where = resume_from[0].name if resume_from else "the checkpoint"
        raise ModelError(
            f"{where} is not loaded: it holds more than tensors, which could run code", hint=Call("runs list")
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(config, runtime) from None
    finally:
        stop.release()
        if isinstance(train_set, Streamed):
            train_set.close()
        remove_dialog_loss(model)
        use_plain_attention(model)
    counter.gather()
    stop.raise_if_stopped(trainer.state.global_step)
    return FitResult(
        trainer=trainer,
        steps=trainer.state.global_step,
        supervised_tokens=counter.supervised,
        tokens=counter.all,
        train_s=metrics.train_s,
        best_step=trainer.state.best_global_step or None,
    )


def _out_of_memory(config: TrainConfig, runtime: Runtime) -> OutOfMemoryError:
    """Return the error, with what saves memory next as its hint."""
    parts, size = config.accumulation_steps, config.batch_size
    if parts < size:
        hint = Change({"train.fit_batch": True})
    elif not config.activation_checkpointing:
        hint = Change({"train.activation_checkpointing": True})
    else:
        hint = Change({"data.max_tokens": 256})
    where, at_once = "machine" if runtime.device == "cpu" else "GPU", size // parts
    dialogs = "1 dialog" if at_once == 1 else f"{at_once} dialogs"
    return OutOfMemoryError(f"the {where} does not have enough memory for {dialogs} at once", hint=hint)
