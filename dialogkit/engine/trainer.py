"""HF's Trainer with an evaluation of our own, and everything that needs its private methods."""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from dialogkit.config.train import TrainConfig
from dialogkit.distributed import process_group, shutdown
from dialogkit.distributed.sharding import own_shard
from dialogkit.engine.adapter_checkpoints import complete_adapter, has_adapter, load_adapter
from dialogkit.engine.batches import BalancedBatches, EpochOrder, NegatableDialogs
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
from dialogkit.engine.clipping import clip_gradients, gradient_norm
from dialogkit.engine.device import Precision
from dialogkit.engine.loss import TokenCounter
from dialogkit.engine.optimizer import muon_with_adamw
from dialogkit.errors import CheckpointError

# Where WANDB_MODE is offline, transformers prints a line to stdout, which belongs to results.
with redirect_stdout(StringIO()):
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import seed_worker

logger = logging.getLogger(__name__)

_BEST_BY = "eval_nats_per_token"

_BESIDE_ADAPTER_BYTES = 16 * 2**20

Scorer = Callable[[], dict[str, float]]
"""Scores the model as it stands on the evaluation set: `nats_per_token` and more."""


@runtime_checkable
class Streamed(Protocol):
    """A training set that knows its own place: it is not skipped through when a run goes on, but goes there."""

    passes: float

    def batches(
        self, size: int, collate: Callable[[Any], dict[str, Any]], workers: int
    ) -> Iterator[dict[str, Any]]:
        """Yield batches from the place on, those of this process."""

    def restore(self, folder: Path | None) -> None:
        """Go to the place that a checkpoint holds, or to the beginning."""

    def save(self, folder: Path) -> None:
        """Write the place into a checkpoint."""

    def tell(self) -> Any:
        """Return what the other processes are to know of what this one has read."""

    def hear(self, told: Sequence[Any]) -> None:
        """Take what each process tells; may raise what is then to end all of them."""

    def close(self) -> None:
        """End what reads ahead."""


class DialogTrainer(Trainer):
    """HF's Trainer with an evaluation that weights tokens, not rows: its own depends on the batch size."""

    def __init__(
        self,
        *args: Any,
        scorer: Scorer,
        sink: MetricSink,
        counter: TokenCounter,
        metrics: MetricCallback,
        config: TrainConfig,
        precision: Precision,
        plan: BudgetPlan | None,
        **kw: Any,
    ):
        super().__init__(*args, **kw)
        self._scorer = scorer
        self._sink = sink
        self._counter = counter
        self._metrics = metrics
        self._config = config
        self._precision = precision
        self._plan = plan
        self._evaluation_due = False
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
        # Accelerate's own, on GPUs, would have gradients summed and losses told in bf16, and would leave no way to
        # measure in float32. Products alone are in the run's precision, as they are where nothing is sharded.
        state.fsdp_plugin.mixed_precision_policy = None

    def autocast_smart_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        """Return a context with the run's precision; HF leaves that to accelerate, which sees to whole models."""
        if self.args.fsdp:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Return the batches of this process; HF's own sampler gives each process batches of its own."""
        if isinstance(self.train_dataset, Streamed):  # shared out among processes and workers by itself
            workers = self.args.dataloader_num_workers
            return self.train_dataset.batches(self._train_batch_size, self.data_collator, workers)
        parts = self._config.accumulation_steps
        if parts * process_group.world_size() == 1:
            return super().get_train_dataloader()
        dialogs: Any = self.train_dataset
        batches = BalancedBatches(
            dialogs.lengths,
            self._config.batch_size,
            micro_batches=parts,
            processes=process_group.world_size(),
            process=process_group.rank(),
        )
        self.add_callback(EpochOrder(batches))
        return DataLoader(
            NegatableDialogs(dialogs),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=process_group.rank()
            ),
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Make the optimizer; HF has no way to give Muon's matrices and the rest their own."""
        if self.optimizer is None and self._config.optimizer == "muon":
            decayed = self.get_decay_parameter_names(self.model)
            self.optimizer: Any = muon_with_adamw(self.model, decayed, self._config, self._precision)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Make the schedule of the learning rate; HF's own have to know the number of steps."""
        if self.lr_scheduler is None and self._plan is not None:
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                kwargs.get("optimizer") or self.optimizer, self._plan
            )
        return super().create_scheduler(*args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return gradient_norm(model.parameters()) if grad_norm is None else grad_norm

    def save_unevaluated(self) -> None:
        """Save after a step whose evaluation was left. Raises: what saving raises."""
        self._evaluation_due = True
        self._save_checkpoint(self.model, None)

    def make_up_evaluation(self) -> None:
        """Make the evaluation that was left at this step, and save as if it had not been."""
        metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics, None)
        self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, and make the checkpoint valid at last. Raises: CheckpointError, DivergedError."""
        run, step = Path(self.args.output_dir), self.state.global_step
        folder = run / f"checkpoint-{step}"
        require_finite(self.model, step, self.args.learning_rate)
        if self.state.best_global_step is not None:
            # HF does so only in a process that sees the folder already; the others would not load it at the end.
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        self._counter.all_reduce()
        losses = process_group.all_gather(float(self._tr_loss))
        backup: Path | None = None
        try:
            if process_group.is_main_process():
                require_space(run, self.model)
                backup = self._make_room(folder)
            process_group.barrier()  # nobody writes into a folder that is being renamed
            super()._save_checkpoint(*args, **kwargs)
            if isinstance(self.train_dataset, Streamed):
                self.train_dataset.save(folder)
            process_group.barrier()  # each leaves its random state
            if process_group.is_main_process():
                progress = self._metrics.progress(step, sum(losses) / len(losses))
                parts = losses if len(losses) > 1 else []
                commit(folder, replace(progress, evaluation_due=self._evaluation_due, window_losses=parts))
            process_group.barrier()  # nobody looks for it before it is there
        except (OSError, SafetensorError, RuntimeError) as error:
            if shutdown.is_lost_peer(error):
                raise
            # torch tells of a full disk by a RuntimeError of its zip writer.
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
        # What is sealed stays, whatever happens to older ones.
        if process_group.is_main_process():
            if backup is not None:
                with suppress(OSError, ValueError):
                    move_foreign(backup, folder)
            keep, best = self._config.keep_checkpoints, self.state.best_global_step
            for problem in rotate(run, keep=keep, best_step=best, step=step):
                self._warn_once(problem)

    def _make_room(self, folder: Path) -> Path | None:
        """Back up a valid checkpoint of this step, which is written again; return the backup.

        Whatever else is in its place is set aside. Nothing is written over.
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

    def _load_best_model(self) -> None:
        """Load the best weights. Raises: CheckpointError if they are not what was saved."""
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if read_progress(best) is None:
            raise CheckpointError(f"{best.name}, whose weights are the best, was damaged after it was saved")
        if has_adapter(self.model):
            load_adapter(self.model, best)
        else:
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights; HF knows adapters only in a wrapper of peft's."""
        if has_adapter(self.model):
            load_adapter(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model, or what learns of it."""
        super()._save(output_dir, state_dict)
        if has_adapter(self.model) and self.args.should_save:
            complete_adapter(self.model, Path(output_dir or self.args.output_dir))

    def save_weights(self, folder: Path, weights: dict[str, Any]) -> None:
        """Save weights that were gathered from a sharded model as a transformers folder."""
        self._save(str(folder), state_dict=weights)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the scorer's figures as HF's `eval_...` metrics."""
        figures = self._scorer()
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        told = {f"eval/{name}": value for name, value in figures.items()}
        self._counter.all_reduce()
        left = False
        try:
            self._sink(self.state.global_step, told | self._counter.metrics())
        except EvaluationAborted:
            left = True
        if process_group.broadcast(left):  # the others wait here for the replies of the first
            raise EvaluationAborted
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class RestoreCallback(TrainerCallback):
    """Gives the Trainer what it does not keep with a checkpoint."""

    def __init__(self, trainer: Any, progress: Progress) -> None:
        self._trainer, self._progress = trainer, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the losses that are not logged yet, and the place of the best checkpoint."""
        progress = self._progress
        same = len(progress.window_losses) == process_group.world_size() > 1
        self._trainer._tr_loss += progress.window_losses[process_group.rank()] if same else progress.window_loss
        self._trainer._globalstep_last_logged = self._progress.logged_step
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if args.load_best_model_at_end and not best.is_dir():  # it was set aside
                step = self._progress.step
                here = [entry for entry in state.log_history if entry["step"] == step]
                measured = [entry[_BEST_BY] for entry in here if _BEST_BY in entry]  # empty if it is due
                state.best_metric, state.best_global_step = (measured[0], step) if measured else (None, None)
                best = best.with_name(f"checkpoint-{step}")
            state.best_model_checkpoint = str(best)
        if self._progress.evaluation_due:
            self._trainer.make_up_evaluation()


class StreamCallback(TrainerCallback):
    """Tells how often a stream was passed through, in place of HF's share of all steps, and all what each read."""

    def __init__(self, stream: Streamed) -> None:
        self._stream = stream
        self._told: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch that is logged."""
        state.epoch = self._stream.passes
        self.exchange()

    def exchange(self) -> None:
        """Let each process hear the others, if one has news; all call this at the same step."""
        news = self._stream.tell()
        if process_group.all_reduce_ints([int(news != self._told)])[0]:
            self._told = news
            self._stream.hear(process_group.all_gather(news))


def planned_steps(checkpoint: Path) -> int:
    """Return the steps of the whole training as they were planned when a checkpoint was saved."""
    from transformers import TrainerState

    return int(TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).max_steps)


def load_trained(trainer: Any, checkpoint: Path, *, best: bool) -> None:
    """Give the Trainer's model the weights with which a training that is through would have ended."""
    from transformers import TrainerState

    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if best and (chosen := checkpoint.with_name(f"checkpoint-{trainer.state.best_global_step}")).is_dir():
        checkpoint = chosen
    trainer._load_from_checkpoint(str(checkpoint))


def set_aside_torn_best(checkpoint: Path) -> str | None:
    """Set aside the checkpoint that another one calls the best so far, if it is torn; return what is to be told.

    The best is then looked for among those that follow, the other one included.
    """
    from transformers import TrainerState

    step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).best_global_step
    best = checkpoint.with_name(f"checkpoint-{step}")
    if not step or best == checkpoint or read_progress(best) is not None:
        return None
    aside = f", and is kept aside as {set_aside(best).name}" if best.is_dir() else ""
    return f"{best.name}, the best so far, is torn or damaged{aside}: the best now begins with {checkpoint.name}"


def require_finite(model: Any, step: int, learning_rate: float) -> None:
    """Raise DivergedError if a weight is no number."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(own_shard(parameter)).all():
            raise diverged(f"the weights {name} are no numbers", step, learning_rate)


def no_space() -> str:
    """Return why a file may have come to no end, where what wrote it does not tell."""
    with suppress(ImportError):
        import resource

        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            return "no space left on the device, or a file longer than ulimit -f allows"
    return "no space left on the device"


def require_space(run: Path, model: Any) -> None:
    """Raise OSError if the disk has no room for another checkpoint: weights and two moments in float32.

    Of an adapted model these are what learns; tokenizer and arguments, which can be more than that, take some MiB.
    """
    learns = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    needed = 1.1 * 12 * learns + (_BESIDE_ADAPTER_BYTES if has_adapter(model) else 0)
    if (free := shutil.disk_usage(run).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} MiB are free")
