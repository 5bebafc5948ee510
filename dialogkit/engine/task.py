"""What `engine.fit.fit` needs: the model, the data and how to train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dialogkit.config.train import TrainConfig
from dialogkit.engine.arguments import StepCounts
from dialogkit.engine.budget import Budget
from dialogkit.engine.callbacks import StopAtSignal
from dialogkit.engine.checkpoints import Progress
from dialogkit.engine.device import Runtime

Scorer = Callable[[], dict[str, float]]
"""Scores the model as it is on the held-out dialogs: `nats_per_token` and more."""


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """The model, data and settings that `fit` needs."""

    model: Any
    """A causal transformers model in float32; trained in place."""
    train_set: Any
    """Indexable dialogs for `collate`, or a stream of them."""
    config: TrainConfig
    runtime: Runtime
    schedule: StepCounts
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
    """Ends training at a signal."""
