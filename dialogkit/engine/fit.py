"""Fits a model to dialogs with HF Trainer."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback
from transformers.utils import logging as hf_logging

from dialogkit.config.train import TrainConfig
from dialogkit.distributed import process_group
from dialogkit.engine.arguments import StepCounts
from dialogkit.engine.attention import kernels_without_plans, use_packed_attention, use_plain_attention
from dialogkit.engine.budget import BudgetCallback, BudgetPlan
from dialogkit.engine.callbacks import (
    EvaluationAborted,
    MetricCallback,
    MetricSink,
    StopAtNonFinite,
    ThreadsCallback,
    guard_trackers,
)
from dialogkit.engine.device import Runtime, float32_as_found
from dialogkit.engine.histograms import HistogramCallback, HistogramSink
from dialogkit.engine.loss import install_dialog_loss, remove_dialog_loss
from dialogkit.engine.loss_scale import LossScaler
from dialogkit.engine.norms import fused_norms
from dialogkit.engine.task import FitTask
from dialogkit.engine.trainer import DialogTrainer, StreamCallback, Streamed, resume
from dialogkit.errors import ModelError, OutOfMemoryError
from dialogkit.hints import Call, Change
from dialogkit.system.memory import is_out_of_memory, keep_freed_memory
from dialogkit.text import counted


@dataclass(frozen=True)
class FitResult:
    """The counts of a run, and HF's trainer."""

    trainer: Any
    steps: int
    supervised_tokens: int
    tokens: int
    train_s: float
    """Seconds in training steps, without evaluations and saving."""
    best_step: int | None
    kept_step: int
    """The step whose weights the model has."""
    skipped_steps: int | None = None
    """In fp16, the steps whose gradients overflowed, which changed no weight; else None."""


def fit(
    task: FitTask,
    sink: MetricSink,
    *,
    histograms: HistogramSink | None = None,
    on_step_counts: Callable[[StepCounts], None] = lambda _: None,
) -> FitResult:
    """Train a model in place; afterwards it has the best or the last weights, according to `config.keep`.

    `sink` receives every logged point, `histograms` those of weights and gradients, and `on_step_counts` the
    numbers of steps that the budget allows, whenever they change.

    Raises: DivergedError, InterruptedRunError, OutOfMemoryError, ConfigError for a budget that is too small.
    """
    config, train_set, stop = task.config, task.train_set, task.stop
    config.require_divisible(process_group.world_size())
    sharded = task.runtime.sharding == "fsdp"
    if task.runtime.device == "cpu" and not sharded:  # runs that shard are short of memory
        keep_freed_memory()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    scaler = LossScaler(task.runtime.device) if task.runtime.precision == "fp16" else None
    metrics = MetricCallback(sink, scaler)
    callbacks = [metrics, StopAtNonFinite(scaler), stop, ThreadsCallback()]
    if histograms is not None and task.histogram_every and process_group.is_main_process() and not sharded:
        callbacks.append(HistogramCallback(histograms, every=task.histogram_every))
    plan = None
    if task.budget:
        from_zero = task.resume_from is not None  # unless the checkpoint says otherwise
        plan = BudgetPlan(config.schedule, config.warmup_fraction, task.budget, from_zero=from_zero)
        callbacks.append(BudgetCallback(config, task.budget, plan, on_step_counts))
    if config.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
    use_packed_attention(task.model)
    install_dialog_loss(task.model, dtype=task.runtime.dtype, counter=metrics.counter, sharded=sharded)
    trainer: DialogTrainer | None = None
    try:
        with float32_as_found():
            trainer = DialogTrainer(task, metrics, sink, plan, callbacks)
        trainer.remove_callback(PrinterCallback)  # the reporter prints
        guard_trackers(trainer, task.trackers)
        # Raised by accelerate about an argument that HF passes.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        if isinstance(train_set, Streamed):
            train_set.restore(task.resume_from[0] if task.resume_from else None)
            trainer.args.ignore_data_skip = True
            stream = StreamCallback(train_set)
            stream.exchange()  # a finished run makes no step, so no callback would
            trainer.add_callback(stream)
        device = task.runtime.device
        with kernels_without_plans(device), fused_norms(task.model, device, task.runtime.dtype):
            if task.resume_from is None:
                trainer.train()
            else:
                resume(trainer, task, metrics, *task.resume_from)
    except EvaluationAborted:
        assert trainer is not None  # only in training
        trainer.save_unevaluated()
    except pickle.UnpicklingError:
        # torch only loads tensors and plain values.
        name = task.resume_from[0].name if task.resume_from else "the checkpoint"
        raise ModelError(
            f"{name} is not loaded: it contains pickled objects other than tensors, which could run code",
            hint=Call("runs list"),
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(config, task.runtime, trainer.at_once if trainer else ()) from None
    finally:
        stop.release()
        if isinstance(train_set, Streamed):
            train_set.close()
        remove_dialog_loss(task.model)
        use_plain_attention(task.model)
    counter = metrics.counter
    counter.all_reduce()
    stop.raise_if_stopped(trainer.state.global_step)
    steps, best = trainer.state.global_step, trainer.state.best_global_step or None
    return FitResult(
        trainer=trainer,
        steps=steps,
        supervised_tokens=counter.supervised,
        tokens=counter.all,
        train_s=metrics.train_s,
        best_step=best,
        kept_step=best if best is not None and config.keep == "best" else steps,
        skipped_steps=None if scaler is None else scaler.skipped_steps,
    )


def _out_of_memory(config: TrainConfig, runtime: Runtime, at_once: Sequence[int]) -> OutOfMemoryError:
    """Return the error, with the next setting that saves memory as its hint.

    `at_once` are the lengths of the dialogs that were computed last.
    """
    count = len(at_once) or config.batch_size // (config.accumulation_steps * runtime.processes)
    if count > 1 and not config.fit_batch:
        hint = Change({"train.fit_batch": True})
    elif len(at_once) > 1 and runtime.processes > 1:  # others may have room, so that nothing is changed by itself
        hint = Change({"train.micro_batch_tokens": max(*at_once, sum(at_once) // 2)})
    elif not config.activation_checkpointing:
        hint = Change({"train.activation_checkpointing": True})
    else:
        hint = Change({"data.max_tokens": 256})
    device = "machine" if runtime.device == "cpu" else "GPU"
    return OutOfMemoryError(
        f"the {device} does not have enough memory for {counted(count, 'dialog')} at once", hint=hint
    )
