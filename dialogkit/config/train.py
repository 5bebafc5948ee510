"""How to train: duration, batch, optimizer, evaluation and checkpoints."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dialogkit.config.base import Section
from dialogkit.errors import ConfigError
from dialogkit.hints import Change
from dialogkit.text import listed

LayerName = Annotated[str, Field(min_length=1, max_length=200)]


class TrainConfig(Section):
    """One optimizer step uses `batch_size` dialogs, whatever the number of micro-batches or devices."""

    epochs: float = Field(1.0, gt=0, le=10_000)
    """Passes over the training dialogs."""
    max_steps: int | None = Field(None, examples=[100], ge=1, le=100_000_000)
    """Optimizer steps. None: as many as `epochs` takes."""
    budget_s: float | None = Field(None, examples=[1200.0], ge=1, le=10_000_000)
    """Seconds for the whole run; the number of steps is fitted to it, whatever `epochs` is. None: no limit."""
    batch_size: int = Field(8, ge=1, le=65_536)
    """Dialogs in one optimizer step."""
    accumulation_steps: int = Field(1, ge=1, le=65_536)
    """Micro-batches into which each batch is split to save memory. Must divide the batch size."""
    micro_batch_tokens: int | None = Field(None, examples=[16384], ge=1, le=2**31)
    """Most tokens at once: a larger micro-batch is computed in parts, to save memory. None: no limit."""
    fit_batch: bool = False
    """Lower `micro_batch_tokens` as far as memory requires; what is learned stays the same."""
    method: Literal["full", "lora"] = "full"
    """full: train all weights. lora: train only small matrices beside linear layers (needs dialogkit[lora])."""
    lora_rank: int = Field(16, ge=1, le=4096)
    """Rank of LoRA's matrices; a higher rank can learn more."""
    lora_alpha: float | None = Field(None, examples=[32.0], gt=0, le=1_000_000)
    """LoRA's matrices are scaled by alpha over rank. None: twice the rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the input of LoRA's matrices."""
    lora_targets: tuple[LayerName, ...] = Field((), examples=[["q_proj", "v_proj"]], max_length=100, strict=False)
    """Linear layers that get LoRA's matrices, by names such as q_proj. Empty: all in the blocks."""
    merge: bool = True
    """Add LoRA's matrices to the weights of the finished model. false: it is a peft adapter beside its base."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights, or Muon for the matrices inside the layers and AdamW for the rest."""
    learning_rate: float = Field(1e-4, gt=0, le=10)
    """Peak learning rate, reached after warm-up. If not set, LoRA uses 1e-3."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after warm-up: to zero, linearly or along a cosine, or none."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction of the steps during which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=10)
    """Decoupled weight decay of AdamW; not applied to norms and biases."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of AdamW's mean of the gradients."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of AdamW's mean of the squared gradients."""
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """AdamW's term against division by zero."""
    max_grad_norm: float = Field(1.0, ge=0, le=1e6)
    """Gradients are scaled down to this global norm. 0: not clipped."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of residuals and embeddings, if the architecture has it. Attention has none."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of the initial weights, the order of the dialogs and dropout."""
    log_every_steps: int | None = Field(None, examples=[10], ge=1, le=1_000_000)
    """Steps between logged points. None: about a hundred points per run, at most 10 steps apart."""
    eval_every_steps: int | None = Field(None, examples=[100], ge=1, le=100_000_000)
    """Steps between evaluations and checkpoints. None: four per run, including the end."""
    eval_batch_size: int = Field(8, ge=1, le=65_536)
    """Dialogs in one evaluation batch; the metrics do not depend on it."""
    keep_checkpoints: int = Field(2, ge=2, le=1_000)
    """Checkpoints to keep: the newest ones and the best one."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the model: those with the lowest evaluation loss, or the last."""
    early_stopping_patience: int | None = Field(None, examples=[3], ge=1, le=1_000)
    """Stop after this many evaluations without a better loss. None: never."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps {self.accumulation_steps} does not divide batch_size {self.batch_size}"
            )
        return self

    def require_divisible(self, processes: int, *, keeps_batch: bool = False) -> None:
        """Raise ConfigError, with the numbers that would work, unless the batch divides evenly.

        The hint is another batch, or fewer devices of one machine if the run `keeps_batch`.
        """
        size, micro_batches = self.batch_size, self.accumulation_steps
        divisor = micro_batches * processes
        if size % divisor == 0:
            return
        sizes = [number for number in (size // divisor * divisor, -(-size // divisor) * divisor) if number]
        fitting = [number for number in range(1, processes) if size % (micro_batches * number) == 0]
        others = ""
        if fitting:
            others = f", and {listed(fitting, 'or')} process{'' if fitting == [1] else 'es'} would as well"
        in_parts = f", each in {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise ConfigError(
            f"train.batch_size {size} does not split evenly over {processes} processes{in_parts}: "
            f"{listed(sizes, 'or')} would{others}",
            hint=Change({"runtime.devices": fitting[-1]} if keeps_batch else {"train.batch_size": sizes[-1]}),
        )
