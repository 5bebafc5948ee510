"""Small callbacks around HF Trainer, each with one concern."""

import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerCallback

from dialogkit.distributed import process_group
from dialogkit.distributed.rank import signal_came_from_user
from dialogkit.engine.checkpoints import Progress
from dialogkit.engine.device import synchronize
from dialogkit.engine.loss import TokenCounter
from dialogkit.engine.loss_scale import LossScaler
from dialogkit.errors import DivergedError, InterruptedRunError, ProcessLostError
from dialogkit.hints import Change, Either
from dialogkit.system import cpu_threads, stopping
from dialogkit.system.signals import name_of

logger = logging.getLogger(__name__)

MetricSink = Callable[[int, dict[str, float]], None]
"""Receives the optimizer step and metrics by name (`train/loss`, `perf/tokens_per_s` ...)."""

_FORWARDED = ("loss", "grad_norm", "learning_rate", "epoch")


class MetricCallback(TrainerCallback):
    """Sends HF's logs to a sink under our names, with tokens and tokens per second.

    Attributes:
        counter: counts the tokens of the run.
        scaler: scales the loss and counts skipped steps, in fp16.
    """

    def __init__(self, sink: MetricSink, scaler: LossScaler | None = None) -> None:
        self._sink = sink
        self.scaler = scaler
        self.counter = TokenCounter()
        self._done = Progress()
        self._since = 0.0

    @property
    def train_s(self) -> float:
        """Seconds spent on training steps so far, without evaluations and saving."""
        return self._done.train_s

    def restore(self, progress: Progress) -> None:
        """Resume from the counts of a checkpoint."""
        self.counter.restore(progress.tokens, progress.supervised_tokens)
        self._done = replace(progress)

    def progress(self, step: int, losses: list[float], *, evaluation_due: bool) -> Progress:
        """Return the progress at a step; `losses` are the sums of unlogged losses of each process."""
        return replace(
            self._done,
            step=step,
            tokens=self.counter.all,
            supervised_tokens=self.counter.supervised,
            window_loss=sum(losses) / len(losses),
            window_losses=losses if len(losses) > 1 else [],
            evaluation_due=evaluation_due,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, again after an evaluation and after saving, whose time does not count."""
        self._since = time.perf_counter()

    on_evaluate = on_save = on_train_begin

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the step's time; where it is logged, the time until the device has done all of it."""
        if control.should_log:
            synchronize(args.device.type)
        now = time.perf_counter()
        self._done.train_s += now - self._since
        self._since = now

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Rename and forward one log entry of training; evaluations are logged elsewhere."""
        if not logs or "loss" not in logs:
            return
        self.counter.all_reduce()
        if not state.is_world_process_zero:
            return
        done, step = self._done, state.global_step
        seconds, tokens = done.train_s - done.logged_train_s, self.counter.all - done.logged_tokens
        metrics = {f"train/{key}": float(value) for key, value in logs.items() if key in _FORWARDED}
        metrics |= self.counter.metrics()
        if self.scaler is not None:
            metrics["train/skipped_steps"] = self.scaler.skipped_steps
            if self.scaler.skipped_last_step:
                metrics.pop("train/grad_norm", None)  # it is not finite, which is why
        metrics["perf/tokens_per_s"] = tokens / max(seconds, 1e-9)
        if cpu_threads.of_process.adaptive:
            metrics["perf/threads"] = cpu_threads.of_process.now
        metrics["perf/step_s"] = seconds / max(step - done.logged_step, 1)
        metrics["perf/time_left_s"] = done.train_s / step * (state.max_steps - step)
        metrics |= device_memory()
        done.logged_train_s, done.logged_tokens, done.logged_step = done.train_s, self.counter.all, step
        self._sink(step, metrics)


def device_memory() -> dict[str, float]:
    """Return bytes allocated, reserved and at their peak on the GPU, and its utilization; empty without a GPU."""
    if not torch.cuda.is_initialized():
        return {}
    metrics = {
        "gpu/memory_allocated_bytes": float(torch.cuda.memory_allocated()),
        "gpu/memory_reserved_bytes": float(torch.cuda.memory_reserved()),
        "gpu/memory_peak_bytes": float(torch.cuda.max_memory_allocated()),
    }
    with suppress(Exception):  # needs a library that may be absent
        metrics["gpu/utilization"] = torch.cuda.utilization() / 100
    return metrics


class _Guarded(TrainerCallback):
    """A callback that is dropped with a warning at its first exception."""

    def __init__(self, name: str, callback: TrainerCallback) -> None:
        self._name = name
        self._callback: TrainerCallback | None = callback

    def __getattribute__(self, event: str) -> Any:
        if not event.startswith("on_"):
            return super().__getattribute__(event)

        def call(*args: Any, **kwargs: Any) -> None:
            if self._callback is None:
                return
            try:
                getattr(self._callback, event)(*args, **kwargs)
            except Exception as error:  # a tracker must not end the run
                self._callback = None
                logger.warning("%s failed (%s); the run continues without it", self._name, type(error).__name__)

        return call


def guard_trackers(trainer: Any, trackers: Sequence[str]) -> None:
    """Keep exceptions of HF's tracker integrations from ending the run."""
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    for name in trackers:
        callback = trainer.pop_callback(INTEGRATION_TO_CALLBACK[name])
        trainer.add_callback(_Guarded(name, callback))


class ThreadsCallback(TrainerCallback):
    """Leaves busy cores to other programs, and reports it."""

    def __init__(self) -> None:
        self._reported = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report fewer threads at the beginning."""
        threads = cpu_threads.of_process
        self._reported = threads.now
        if threads.now < threads.most:
            logger.warning("%s", cpu_threads.ThreadChange(threads.now, threads.most))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Change the number of threads if the load asks for it, and report a change since the last step."""
        threads = cpu_threads.of_process
        threads.adapt()
        if threads.now != self._reported:  # an evaluation may have changed it too
            self._reported = threads.now
            change = cpu_threads.ThreadChange(threads.now, threads.most)
            logger.warning("from step %d on, %s", state.global_step + 1, change)


class StopAtNonFinite(TrainerCallback):
    """Ends a run whose loss or gradient is not finite, before such weights are saved.

    HF saves after it has logged and evaluated; not every step is logged, but every checkpoint is evaluated. A
    gradient that overflows in fp16 is no reason while its step is skipped: a smaller scale of the loss may help.
    """

    def __init__(self, scaler: LossScaler | None = None) -> None:
        self._scaler = scaler

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Check one log entry, of training or of an evaluation. Raises: DivergedError."""
        scaler, step = self._scaler, state.global_step
        for key in ("loss", "grad_norm", "eval_nats_per_token"):
            value = (logs or {}).get(key)
            if value is None or math.isfinite(value):
                continue
            if key != "grad_norm" or scaler is None or not scaler.skipped_last_step:
                raise diverged(f"{key} is {value}", step, args.learning_rate, in_fp16=scaler is not None)
        if scaler is not None and scaler.has_collapsed:
            raise diverged("gradients overflow at any scale", step, args.learning_rate, in_fp16=True)


def diverged(what: str, step: int, learning_rate: float, *, in_fp16: bool = False) -> DivergedError:
    """Return the error of a diverged run, with a lower learning rate, or more room than fp16 has, as its hint."""
    slower = Change({"train.learning_rate": float(f"{learning_rate / 3:.1g}")})
    return DivergedError(
        f"training diverged: {what} at step {step} (learning rate {learning_rate:.3g}"
        f"{', fp16' if in_fp16 else ''})",
        hint=Either(Change({"runtime.precision": "fp32"}), slower) if in_fp16 else slower,
    )


class EvaluationAborted(Exception):
    """A signal aborted an evaluation during training; it is repeated when the run resumes."""


class StopAtSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM finishes the step, or aborts the evaluation; at a second signal nothing more is saved.

    A second signal goes to the handler that was there before training: in a run the one that `open_run` installs
    with `dialogkit.distributed.stop_signals.signals_stop`, which raises at once.

    A request by `dialogkit.system.stopping`, which needs no signal, counts as a Ctrl-C.

    Args:
        on_signal: called at the first signal, from within its handler.
        raise_missed: raises the error of a signal that a library swallowed before the first step.
    """

    def __init__(
        self, on_signal: Callable[[], None] = lambda: None, raise_missed: Callable[[], None] = lambda: None
    ) -> None:
        self._on_signal, self._raise_missed = on_signal, raise_missed
        self._received: int | None = None
        self._is_last_step = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Handle both signals, where Python allows it (in the main thread)."""
        stopping.raise_if_asked()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                return
        self._raise_missed()

    def _handle(self, number: int, frame: Any) -> None:
        if not signal_came_from_user():
            raise ProcessLostError("another rank of this run ended")
        if self._received is not None:
            self.release()
            signal.raise_signal(number)  # to the previous handler
        self._received = number
        self._on_signal()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after the step, or the evaluation, in which any rank received a signal."""
        self._is_last_step = state.global_step >= state.max_steps
        if self._received_by_any() is not None:
            control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end

    def _received_by_any(self) -> int | None:
        """Return the signal that any rank received; every rank calls this at the same step."""
        mine = self._mine()
        if process_group.world_size() == 1:
            return mine
        interrupts, terminations = process_group.all_reduce_ints(
            [int(mine == n) for n in (signal.SIGINT, signal.SIGTERM)]
        )
        return signal.SIGTERM if terminations else signal.SIGINT if interrupts else None

    def _mine(self) -> int | None:
        """Return the signal that this rank received."""
        return signal.SIGINT if self._received is None and stopping.stop_was_called() else self._received

    def should_abort(self) -> bool:
        """Return whether to abort an evaluation or its replies; those of the last step are never aborted."""
        return self._mine() is not None and not self._is_last_step

    def release(self) -> None:
        """Restore the signal handlers that were there before training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def raise_if_stopped(self, step: int) -> None:
        """Raise InterruptedRunError if a signal ended training."""
        if (received := self._received_by_any()) is not None:
            by = stopping.STOPPED if self._received is None and stopping.stop_was_called() else name_of(received)
            raise InterruptedRunError(
                f"stopped by {by} after step {step}; its checkpoint is kept",
                exit_code=128 + received,
            )
