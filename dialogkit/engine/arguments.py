"""HF's `TrainingArguments` for a run, and the numbers of steps."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialogkit.config.train import TrainConfig
from dialogkit.distributed import process_group

if TYPE_CHECKING:
    from dialogkit.engine.task import FitTask

POINTS_PER_RUN = 100
EVALUATIONS_PER_RUN = 4

UNPLANNED = 100_000_000
"""Steps of a run with a time budget, before its speed is known."""


@dataclass(frozen=True)
class StepCounts:
    """Numbers of steps that follow from the settings and the size of the training set."""

    total_steps: int
    log_every_steps: int
    eval_every_steps: int


def resolve_schedule(config: TrainConfig, num_dialogs: int) -> StepCounts:
    """Return the number of optimizer steps, and the steps between logs and between evaluations."""
    if config.budget_s is not None:
        return StepCounts(config.max_steps or UNPLANNED, UNPLANNED, UNPLANNED)
    steps_per_epoch = math.ceil(num_dialogs / config.batch_size)
    total = config.max_steps or max(1, math.ceil(steps_per_epoch * config.epochs))
    log = config.log_every_steps or default_log_interval(total)
    evaluate = config.eval_every_steps or max(1, math.ceil(total / EVALUATIONS_PER_RUN))
    return StepCounts(total, min(log, total), min(evaluate, total))


def default_log_interval(total_steps: int) -> int:
    """Return the steps between logged points of a run of `total_steps`, where the settings give none."""
    return max(1, min(10, total_steps // POINTS_PER_RUN))


def training_arguments(task: "FitTask") -> Any:
    """Return HF's arguments for a run."""
    from transformers import TrainingArguments

    config, runtime, schedule = task.config, task.runtime, task.schedule
    fields = TrainingArguments.__dataclass_fields__
    # Its name in the oldest transformers that dialogkit works with is deprecated in the newest.
    recompute = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    sharded = runtime.sharding == "fsdp"
    arguments = TrainingArguments(
        output_dir=str(task.folder),
        # In steps, so that the length does not depend on how the Trainer rounds epochs.
        max_steps=schedule.total_steps,
        per_device_train_batch_size=config.batch_size // (config.accumulation_steps * process_group.world_size()),
        gradient_accumulation_steps=config.accumulation_steps,
        # The loss is a mean over the supervised tokens of the step, in all micro-batches and ranks: HF sums their
        # number and multiplies the loss by the number of ranks, as DDP takes the mean of the gradients.
        average_tokens_across_devices=True,
        # Its schedule is our own (`DialogTrainer.create_scheduler`).
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        logging_strategy="steps",
        logging_steps=schedule.log_every_steps,
        # Nothing is logged before the number of steps is known.
        logging_first_step=config.budget_s is None or config.max_steps is not None,
        # HF's default writes 0.0 for a loss that is not a number.
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=schedule.eval_every_steps,
        save_strategy="steps",
        save_steps=schedule.eval_every_steps,
        load_best_model_at_end=config.keep == "best",
        metric_for_best_model="eval_nats_per_token",
        greater_is_better=False,
        **_sharding(config) if sharded else {recompute: config.activation_checkpointing},
        bf16=runtime.precision == "bf16",
        fp16=runtime.precision == "fp16",
        use_cpu=runtime.device == "cpu",
        torch_compile=task.compile,
        dataloader_num_workers=task.workers,
        # A GPU computes while the next batch is copied, which takes memory that is not swapped.
        dataloader_pin_memory=runtime.device == "cuda",
        accelerator_config={"non_blocking": runtime.device == "cuda"},
        # The batches are ours: no column may be removed.
        remove_unused_columns=False,
        # We report to W&B and show progress ourselves.
        report_to=list(task.trackers) or "none",
        run_name=task.folder.name,
        project=task.project,
        disable_tqdm=True,
        # Every rank has a micro-batch of each step, which gives every weight a gradient.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=int(process_group.STEP_TIMEOUT.total_seconds()),
        restore_callback_states_from_checkpoint=True,
    )
    use_visible_device(getattr(arguments, "distributed_state", None))
    # Several visible GPUs make HF multiply the batch and wrap the model in DataParallel, which splits batches.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def use_visible_device(state: Any) -> None:
    """Make accelerate's number of a GPU that of this rank's device, among those that it sees.

    Accelerate gives DDP the rank on its machine as the number of the device. Under `srun --gpus-per-task=1` each
    rank sees a single device, number 0.
    """
    if state is not None and state.device.type == "cuda" and state.device.index is not None:
        state.local_process_index = state.device.index


def _sharding(config: TrainConfig) -> dict[str, Any]:
    """Return the arguments by which HF has accelerate shard the model with FSDP2."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            # torch's distributed format, which any number of ranks can read.
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": config.activation_checkpointing,
        },
    }
