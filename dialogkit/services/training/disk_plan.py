"""Checks before the first step whether everything a run writes fits on the disk."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dialogkit.config.paths import existing_part
from dialogkit.errors import StorageError
from dialogkit.hints import Call, Change, Either
from dialogkit.services.runs.resolve import output_of
from dialogkit.text import byte_size, counted

if TYPE_CHECKING:
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.services.training.setup import TrainingSetup

_FEWEST = 2
"""Fewest checkpoints that a run keeps."""


def require_disk(setup: "TrainingSetup", output: Path, checkpoint: "tuple[Path, Progress] | None" = None) -> None:
    """Raise StorageError unless the checkpoints and the model of a run fit into the free space on the disk.

    Args:
        setup: what is trained.
        output: folder of models and runs; it need not exist yet.
        checkpoint: where a resumed run continues; it and those before it are on the disk already.
    """
    from dialogkit.engine.disk import checkpoint_bytes, model_bytes

    train = setup.config.train
    each, model = checkpoint_bytes(setup.model, train), model_bytes(setup.model, train)
    there = 0
    if checkpoint is not None:
        there = len([path for path in checkpoint[0].parent.glob("checkpoint-*") if path.is_dir()])
    due = _due(setup, 0 if checkpoint is None else checkpoint[1].step)

    def needed(keep: int) -> tuple[int, int]:
        # The oldest one is removed only when the next one is complete.
        count = min(due, max(1, keep + 1 - there)) if due else 0
        return count, count * each + model

    count, total = needed(train.keep_checkpoints)
    free = shutil.disk_usage(existing_part(output)).free
    if total <= free:
        return
    keeps_fewer = train.keep_checkpoints > _FEWEST and needed(_FEWEST)[1] <= free
    prune = Call("runs prune", checkpoints_only=True, **output_of(output))
    elsewhere = "choose an output folder on a disk with more space"
    raise StorageError(
        f"the run needs {byte_size(total)} on the disk of {str(output)!r}, for "
        f"{counted(count, 'checkpoint')} of {byte_size(each)} and the model of {byte_size(model)}, and "
        f"{byte_size(free)} are free",
        hint=Either(*([Change({"train.keep_checkpoints": _FEWEST})] if keeps_fewer else []), prune, elsewhere),
    )


def _due(setup: "TrainingSetup", step: int) -> int:
    """Return how many checkpoints will be written after a step."""
    from dialogkit.engine.arguments import EVALUATIONS_PER_RUN

    if setup.config.train.budget_s is not None:
        return EVALUATIONS_PER_RUN
    schedule = setup.schedule
    return math.ceil(max(0, schedule.total_steps - step) / schedule.eval_every_steps)
