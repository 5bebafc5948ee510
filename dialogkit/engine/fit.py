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
    EvaluationAborted,
    MetricCallback,
    MetricSink,
    StopAtNonFinite,
    StopAtSignal,
    guard_trackers,
)
from dialogkit.engine.checkpoints import Progress
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
    """The counts of a training, and HF's trainer."""

    trainer: Any
    steps: int
    supervised_tokens: int
    tokens: int
    train_s: float
    """Seconds in training steps, without evaluations and saving."""
    best_step: int | None


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """The model, data and settings that `fit` needs."""

    model: Any
    """A causal transformers model in float32; trained in place."""
    train_set: Any
    """Indexable dialogs for `collate`, or a stream of them."""
    config: TrainConfig
    runtime: Runtime
    schedule: Schedule
    collate: Callable[[Any], dict[str, Any]]
    """Makes a padding-free batch of dialogs."""
    score: Scorer
    """Evaluates the current model."""
    folder: Path
    """Where checkpoints go."""
    tokenizer: Any = None
    """Saved beside each checkpoint."""
    compile: bool = False
    workers: int = 0
    """Processes that assemble batches."""
    histogram_every: int = 0
    """Optimizer steps between histograms of weights and gradients; 0 disables them."""
    trackers: Sequence[str] = ()
    """HF's integrations that log as well; one that fails is dropped with a warning."""
    project: str = "dialogkit"
    """Project name for those integrations."""
    resume_from: tuple[Path, Progress] | None = None
    """Checkpoint to resume from; everything else must be unchanged."""
    budget: Budget | None = None
    """Wall-clock limit of the run, instead of the schedule's steps."""
    stop: StopAtSignal = field(default_factory=StopAtSignal)
    """Ends the training at a signal."""


def fit(
    task: FitTask,
    sink: MetricSink,
    *,
    histograms: HistogramSink | None = None,
    planned: Callable[[Schedule], None] = lambda _: None,
) -> FitResult:
    """Train a model in place; afterwards it has the best or the last weights, according to `config.keep`.

    Args:
        task: the model, the data and how to train.
        sink: receives every logged point.
        histograms: receives histograms of weights and gradients.
        planned: receives the schedule that the budget allows, whenever it changes.

    Raises: DivergedError, InterruptedRunError, OutOfMemoryError, ConfigError for a budget that is too small.
    """
    model, train_set, config, runtime, stop = task.model, task.train_set, task.config, task.runtime, task.stop
    schedule, budget, resume_from = task.schedule, task.budget, task.resume_from
    config.require_divisible(process_group.world_size())
    if runtime.device == "cpu" and runtime.sharding == "none":  # runs that shard are short of memory
        keep_freed_memory()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    counter = TokenCounter()
    metrics = MetricCallback(sink, counter)
    callbacks = [metrics, StopAtNonFinite(), stop]
    sharded = runtime.sharding == "fsdp"
    if histograms is not None and task.histogram_every and process_group.is_main_process() and not sharded:
        callbacks.append(HistogramCallback(histograms, every=task.histogram_every))
    plan = BudgetPlan(config.schedule, config.warmup_fraction, budget) if budget else None
    if budget and plan:
        callbacks.append(BudgetCallback(config, budget, plan, planned))
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    use_packed_attention(model)
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
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
            eval_dataset=train_set,  # the scorer has the evaluation set; HF only requires one to be given
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
        trainer.remove_callback(PrinterCallback)  # the reporter prints
        guard_trackers(trainer, task.trackers)
        # Raised by accelerate about an argument that HF passes.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        if isinstance(train_set, Streamed):
            train_set.restore(resume_from[0] if resume_from else None)
            trainer.args.ignore_data_skip = True
            stream = StreamCallback(train_set)
            stream.exchange()  # a finished training makes no step, so no callback would
            trainer.add_callback(stream)
        if resume_from is None:
            trainer.train()
        else:
            checkpoint, progress = resume_from
            counter.restore(progress.tokens, progress.supervised_tokens)
            metrics.restore(progress)
            trainer.add_callback(RestoreCallback(trainer, progress))
            if progress.step < (planned_steps(checkpoint) if budget else schedule.total_steps):
                trainer.train(resume_from_checkpoint=str(checkpoint))
            else:  # HF would train one more step
                load_trained(trainer, checkpoint, best=config.keep == "best")
    except EvaluationAborted:
        trainer.save_unevaluated()
    except pickle.UnpicklingError:
        # torch only loads tensors and plain values.
        name = resume_from[0].name if resume_from else "the checkpoint"
        raise ModelError(
            f"{name} is not loaded: it contains pickled objects other than tensors, which could run code",
            hint=Call("runs list"),
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
    counter.all_reduce()
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
    """Return the error, with the next setting that saves memory as its hint."""
    micro_batches, size = config.accumulation_steps, config.batch_size
    if micro_batches < size:
        hint = Change({"train.fit_batch": True})
    elif not config.activation_checkpointing:
        hint = Change({"train.activation_checkpointing": True})
    else:
        hint = Change({"data.max_tokens": 256})
    device, at_once = "machine" if runtime.device == "cpu" else "GPU", size // micro_batches
    dialogs = "1 dialog" if at_once == 1 else f"{at_once} dialogs"
    return OutOfMemoryError(f"the {device} does not have enough memory for {dialogs} at once", hint=hint)
