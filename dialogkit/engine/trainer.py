"""HF's Trainer with an evaluation of our own, and everything that needs its private methods."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import seed_worker

from dialogkit.distributed import process_group, shutdown
from dialogkit.distributed.sharding import own_shard
from dialogkit.engine.adapter_checkpoints import has_adapter, load_adapter
from dialogkit.engine.arguments import training_arguments
from dialogkit.engine.attention import computes_rows
from dialogkit.engine.batches import BalancedBatches, DialogsWithFillers, EpochOrder, collate_in_parts, parts_of
from dialogkit.engine.budget import BudgetPlan
from dialogkit.engine.callbacks import EvaluationAborted, MetricCallback, MetricSink, diverged
from dialogkit.engine.checkpoints import (
    Progress,
    back_up,
    commit,
    move_foreign,
    read_progress,
    remove_torn,
    restore,
    rotate,
    set_aside,
)
from dialogkit.engine.disk import checkpoint_bytes, require_space
from dialogkit.engine.hf_private import OpenTrainer
from dialogkit.engine.optimizer import muon_with_adamw
from dialogkit.engine.schedule import StepSchedule
from dialogkit.engine.task import FitTask
from dialogkit.errors import CheckpointError

logger = logging.getLogger(__name__)

_BEST_BY = "eval_nats_per_token"


@runtime_checkable
class Streamed(Protocol):
    """A training set that knows its position: a resumed run continues there, without skipping through the data."""

    passes: float

    def batches(
        self, size: int, collate: Callable[[Any], dict[str, Any]], workers: int
    ) -> Iterator[dict[str, Any]]:
        """Yield this rank's batches, from the position on."""

    def restore(self, folder: Path | None) -> None:
        """Go to the position in a checkpoint, or to the beginning."""

    def save(self, folder: Path) -> None:
        """Write the position into a checkpoint."""

    def row_counts(self) -> Any:
        """Return what the other ranks need to know about what this one has read."""

    def merge_row_counts(self, ranks: Sequence[Any]) -> None:
        """Receive what each rank has read; may raise an error that ends all of them."""

    def close(self) -> None:
        """Stop reading ahead."""


class DialogTrainer(OpenTrainer):
    """HF's Trainer with an evaluation that weights tokens, not rows: its own depends on the batch size."""

    def __init__(
        self,
        task: FitTask,
        metrics: MetricCallback,
        sink: MetricSink,
        plan: BudgetPlan | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        collate, limit = task.collate, task.config.micro_batch_tokens
        if limit is not None:
            collate = partial(collate_in_parts, collate=collate, limit=limit, in_rows=computes_rows(task.model))
        super().__init__(
            model=task.model,
            args=training_arguments(task),
            data_collator=collate,
            train_dataset=task.train_set,
            eval_dataset=task.train_set,  # the scorer has the evaluation set; HF only requires one to be given
            processing_class=task.tokenizer,
            callbacks=callbacks,
        )
        self._task, self._config = task, task.config
        self._metrics, self._sink, self._plan = metrics, sink, plan
        self._evaluation_due = False
        self.at_once: Sequence[int] = ()
        """Lengths of the dialogs that were computed last."""
        if metrics.scaler is not None:
            self.scale_loss(metrics.scaler)
        self._warned: set[str] = set()

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; accelerate shards on GPUs only, while FSDP2 itself does so on CPUs as well."""
        super().create_accelerator_and_postprocess()
        if not self.args.fsdp:
            return
        state = self.accelerator.state
        if not getattr(self, "is_fsdp_enabled", False):
            from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled: bool = True
        # Accelerate's own, on GPUs, would sum gradients and report losses in bf16, and leave no way to evaluate in
        # float32. Only matrix products use the run's precision, as in an unsharded model.
        state.fsdp_plugin.mixed_precision_policy = None

    def autocast_smart_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return a context with the run's precision; HF leaves it to accelerate for unsharded models."""
        if self.args.fsdp:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Return the batches of this process; HF's sampler would give each rank batches of its own."""
        if isinstance(self.train_dataset, Streamed):  # it distributes itself among ranks and workers
            workers = self.args.dataloader_num_workers
            batches = self.train_dataset.batches(self.device_batch_size, self.data_collator, workers)
            return map(_pinned, batches) if self.args.dataloader_pin_memory else batches
        micro_batches = self._config.accumulation_steps
        if micro_batches * process_group.world_size() == 1:
            return super().get_train_dataloader()
        dialogs: Any = self.train_dataset
        sampler = BalancedBatches(
            dialogs.lengths,
            self._config.batch_size,
            micro_batches=micro_batches,
            processes=process_group.world_size(),
            process=process_group.rank(),
        )
        self.add_callback(EpochOrder(sampler))
        return DataLoader(
            DialogsWithFillers(dialogs),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=process_group.rank()
            ),
        )

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Add the gradients of a micro-batch, part by part, and return its loss.

        Ranks may have different numbers of parts: they exchange gradients with the last one. A sharded model
        exchanges weights in each, so that all ranks compute equally many.
        """
        parts, losses = parts_of(inputs), list[torch.Tensor]()
        if self.args.fsdp and self._config.micro_batch_tokens is not None:
            small = min(parts, key=lambda part: sum(part["dialog_lengths"]))
            nothing = {name: small[name][:0] for name in ("labels", "label_positions")}
            parts = parts + [{**small, **nothing}] * (max(process_group.all_gather(len(parts))) - len(parts))
        for left, part in zip(reversed(range(len(parts))), parts, strict=True):
            self.at_once = part["dialog_lengths"]
            with self.accelerator.no_sync(model) if left else nullcontext():
                losses.append(super().training_step(model, part, *args, **kwargs))
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return HF's estimate of the operations of a micro-batch."""
        return sum(int(super(DialogTrainer, self).floating_point_ops(part)) for part in parts_of(inputs))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the optimizer; HF has no way to give Muon's matrices and the other weights different ones."""
        if self.optimizer is None and self._config.optimizer == "muon":
            decayed = self.get_decay_parameter_names(self.model)
            self.optimizer: Any = muon_with_adamw(self.model, decayed, self._config, self._task.runtime.precision)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Make the schedule of the learning rate; HF's give the first step none, and know no budget."""
        if self.lr_scheduler is None:
            # A checkpoint of an older version does not say that its warm-up began with 0.
            from_zero = self._task.resume_from is not None
            steps = self._task.schedule.total_steps
            factor = self._plan or StepSchedule(self._config, steps, from_zero=from_zero)
            optimizer = kwargs.get("optimizer") or self.optimizer
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return super().create_scheduler(*args, **kwargs)

    def save_unevaluated(self) -> None:
        """Save after a step whose evaluation was aborted. Raises: what saving raises."""
        self._evaluation_due = True
        self.save_checkpoint()

    def repeat_evaluation(self) -> None:
        """Repeat the evaluation that was aborted at this step, and save as if it had not been."""
        self.evaluate_for_best()
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Save, and make the checkpoint valid last of all. Raises: CheckpointError, DivergedError."""
        run, step = Path(self.args.output_dir), self.state.global_step
        folder = run / f"checkpoint-{step}"
        require_finite(self.model, step, self.args.learning_rate)
        if self.state.best_global_step is not None:
            # HF does so only on a rank that sees the folder already; the others would not load it at the end.
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        self._metrics.counter.all_reduce()
        losses = process_group.all_gather(self.unlogged_loss)
        backup: Path | None = None
        try:
            if process_group.is_main_process():
                require_space(run, checkpoint_bytes(self.model, self._config))
                backup = self._back_up(folder)
            process_group.barrier()  # no rank writes into a folder that is being renamed
            super().save_checkpoint()
            if isinstance(self.train_dataset, Streamed):
                self.train_dataset.save(folder)
            process_group.barrier()  # each rank writes its random state
            if process_group.is_main_process():
                commit(folder, self._metrics.progress(step, losses, evaluation_due=self._evaluation_due))
            process_group.barrier()  # no rank looks for it before it exists
        except (OSError, SafetensorError, RuntimeError) as error:
            if shutdown.is_lost_peer(error):
                raise
            # torch reports a full disk by a RuntimeError of its zip writer.
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            if process_group.is_main_process():
                remove_torn(folder)
                if backup is not None:
                    with suppress(OSError):
                        restore(folder)
            reason = getattr(error, "strerror", None) or no_space()
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be written: {reason[0].lower()}{reason[1:]}; "
                "earlier ones are kept"
            ) from None
        # A committed checkpoint stays, whatever happens to older ones.
        if process_group.is_main_process():
            if backup is not None:
                with suppress(OSError, ValueError):
                    move_foreign(backup, folder)
            keep, best = self._config.keep_checkpoints, self.state.best_global_step
            for problem in rotate(run, keep=keep, best_step=best, step=step):
                self._warn_once(problem)

    def _back_up(self, folder: Path) -> Path | None:
        """Back up a valid checkpoint of this step, which will be rewritten; return the backup.

        Anything else in its place is set aside. Nothing is overwritten.
        """
        if not os.path.lexists(folder):
            return None
        if not folder.is_symlink() and read_progress(folder) is not None:
            return back_up(folder)
        self._warn_once(f"{folder.name} was there already and is kept as {set_aside(folder).name}")
        return None

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            logger.warning(sentence)

    def load_best_model(self) -> None:
        """Load the best weights. Raises: CheckpointError if they are not what was saved."""
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if read_progress(best) is None:
            raise CheckpointError(f"{best.name}, whose weights are the best, was damaged after it was saved")
        if has_adapter(self.model):
            load_adapter(self.model, best)
        else:
            super().load_best_model()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the scorer's metrics under HF's names, `eval_...`."""
        scores = self._task.score()
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self._metrics.counter.all_reduce()
        aborted = False
        try:
            logged = {f"eval/{name}": value for name, value in scores.items()}
            self._sink(self.state.global_step, logged | self._metrics.counter.metrics())
        except EvaluationAborted:
            aborted = True
        if process_group.broadcast(aborted):  # the other ranks wait here for rank 0's replies
            raise EvaluationAborted
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in memory from which it is copied to a GPU while that computes."""
    if "parts" in batch:
        return {"parts": [_pinned(part) for part in batch["parts"]]}
    return {name: part.pin_memory() if isinstance(part, torch.Tensor) else part for name, part in batch.items()}


class RestoreCallback(TrainerCallback):
    """Restores what the Trainer does not keep with a checkpoint."""

    def __init__(self, trainer: DialogTrainer, progress: Progress) -> None:
        self._trainer, self._progress = trainer, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the losses that are not logged yet, and the path of the best checkpoint."""
        progress = self._progress
        same = len(progress.window_losses) == process_group.world_size() > 1
        loss = progress.window_losses[process_group.rank()] if same else progress.window_loss
        self._trainer.restore_log_window(loss, progress.logged_step)
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if args.load_best_model_at_end and not best.is_dir():  # it was set aside
                step = progress.step
                here = [entry for entry in state.log_history if entry["step"] == step]
                measured = [entry[_BEST_BY] for entry in here if _BEST_BY in entry]  # empty if it is due
                state.best_metric, state.best_global_step = (measured[0], step) if measured else (None, None)
                best = best.with_name(f"checkpoint-{step}")
            state.best_model_checkpoint = str(best)
        if progress.evaluation_due:
            self._trainer.repeat_evaluation()


class StreamCallback(TrainerCallback):
    """Logs passes over a stream as the epoch, and lets every rank know what the others have read."""

    def __init__(self, stream: Streamed) -> None:
        self._stream = stream
        self._exchanged: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch that is logged."""
        state.epoch = self._stream.passes
        self.exchange()

    def exchange(self) -> None:
        """Exchange what the ranks have read, if one has news; every rank calls this at the same step."""
        news = self._stream.row_counts()
        if process_group.all_reduce_ints([int(news != self._exchanged)])[0]:
            self._exchanged = news
            self._stream.merge_row_counts(process_group.all_gather(news))


def resume(
    trainer: DialogTrainer, task: FitTask, metrics: MetricCallback, checkpoint: Path, progress: Progress
) -> None:
    """Resume from a checkpoint; if no step is left, load the weights with which it would have ended."""
    metrics.restore(progress)
    trainer.add_callback(RestoreCallback(trainer, progress))
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if progress.step < (state.max_steps if task.budget else task.schedule.total_steps):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    # HF would train one more step.
    trainer.state = state
    best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
    trainer.load_checkpoint(best if task.config.keep == "best" and best.is_dir() else checkpoint)


def set_aside_torn_best(checkpoint: Path) -> str | None:
    """Set aside a checkpoint's best predecessor if it is damaged, and return a note about it.

    The best is then chosen among the given checkpoint and those that follow.
    """
    step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).best_global_step
    best = checkpoint.with_name(f"checkpoint-{step}")
    if not step or best == checkpoint or read_progress(best) is not None:
        return None
    aside = f", and is kept aside as {set_aside(best).name}" if best.is_dir() else ""
    return f"{best.name}, the best so far, is torn or damaged{aside}: the best now begins with {checkpoint.name}"


def require_finite(model: Any, step: int, learning_rate: float) -> None:
    """Raise DivergedError if a weight is not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(own_shard(parameter)).all():
            raise diverged(f"the weights {name} are not finite", step, learning_rate)


def no_space() -> str:
    """Return why a file may be incomplete, if its writer does not say."""
    with suppress(ImportError):
        import resource

        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            return "no space left on the device, or a file longer than ulimit -f allows"
    return "no space left on the device"
