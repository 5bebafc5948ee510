"""Trains a few steps to measure how fast this machine is, without writing anything."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dialogkit.errors import InterruptedRunError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dialogkit.services.training.setup import TrainingSetup


def measure_steps(setup: "TrainingSetup", dialogs: "Sequence[int] | NDArray[np.int64]", steps: int) -> list[float]:
    """Train some steps on the chosen training dialogs, and return the tokens per second in each.

    Afterwards the setup is of no other use: its model is changed, and its settings are those of this training.

    Raises: what `fit` raises; InterruptedRunError if a signal stops it.
    """
    from dialogkit.engine.arguments import UNPLANNED, StepCounts
    from dialogkit.engine.fit import fit

    speeds: list[float] = []

    def sink(step: int, logged: dict[str, float]) -> None:
        if "perf/tokens_per_s" in logged:  # evaluations have none
            speeds.append(logged["perf/tokens_per_s"])

    config = setup.config
    setup.schedule = StepCounts(steps, log_every_steps=1, eval_every_steps=UNPLANNED)
    setup.data = replace(setup.data, train=setup.data.sample.select(dialogs))
    train = config.train.model_copy(update={"max_steps": steps, "budget_s": None, "keep": "last"})
    tracking = config.tracking.model_copy(update={"trackers": ()})
    setup.config = config.model_copy(update={"train": train, "tracking": tracking})
    try:
        with tempfile.TemporaryDirectory(prefix="dialogkit-measured-") as folder:
            fit(setup.fit_task(Path(folder)), sink)
    except InterruptedRunError as error:
        problem = "stopped while the speed was measured; nothing was kept"
        raise InterruptedRunError(problem, exit_code=error.exit_code) from None
    return speeds
