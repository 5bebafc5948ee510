"""Measures how fast this machine trains, evaluates and replies with a model, without writing anything."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dialogkit.errors import InterruptedRunError
from dialogkit.services.training.samples import LONGEST_SHORT, reply_to_tests

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dialogkit.services.training.setup import TrainingSetup

SCORED = 32
"""Held-out dialogs that are scored to measure what all of them take."""
SHORT_REPLY = 12
"""Tokens of the replies that are made to measure what whole ones take."""
STEPS = 3
"""Steps that are made; the first one includes preparations and is not counted."""


class Speed(NamedTuple):
    """What a model takes on this machine.

    Attributes:
        tokens_per_s: tokens that steps train on in a second.
        step_s: seconds of a step on dialogs of mean length.
        evaluation_s: seconds of an evaluation with its replies, as a time budget counts it.
    """

    tokens_per_s: float
    step_s: float
    evaluation_s: float


def measure_steps(setup: "TrainingSetup", dialogs: "Sequence[int] | NDArray[np.int64]", steps: int) -> list[float]:
    """Train some steps on the chosen training dialogs, and return the tokens per second in each.

    Afterwards the setup is of no other use: its model is changed, and its settings are those of this training.

    Raises: what `fit` raises; InterruptedRunError if a signal stops it.
    """
    from dialogkit.engine.arguments import UNPLANNED, Schedule
    from dialogkit.engine.fit import fit

    speeds: list[float] = []

    def sink(step: int, logged: dict[str, float]) -> None:
        if "perf/tokens_per_s" in logged:  # evaluations have none
            speeds.append(logged["perf/tokens_per_s"])

    config = setup.config
    setup.schedule = Schedule(steps, log_every_steps=1, eval_every_steps=UNPLANNED)
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


def measure_speed(setup: "TrainingSetup") -> Speed:
    """Measure a model in seconds: a few steps, and a small part of an evaluation; the setup is used up."""
    evaluation, train = setup.data.evaluation, setup.data.sample
    tokens_per_dialog = float(train.lengths.mean())
    # Sorted by their hashes, the first ones are as good as drawn by chance.
    scored = min(SCORED, len(evaluation))
    questions = setup.questions if setup.config.tracking.replies_at_evaluations else []
    setup.data = replace(setup.data, evaluation=evaluation.select(range(scored)))
    started = time.perf_counter()
    setup.score(autocast=False)
    score_s = (time.perf_counter() - started) * len(evaluation) / scored
    generate = setup.config.generate
    tokens = min(SHORT_REPLY, generate.max_new_tokens)
    started = time.perf_counter()
    reply_to_tests(setup, longest=tokens)
    token_s = (time.perf_counter() - started) / tokens
    # Replies are made side by side, so what counts is their length.
    replies_s = token_s * (generate.max_new_tokens + (LONGEST_SHORT if questions else 0))
    batch = setup.config.train.batch_size
    speeds = measure_steps(setup, range(min(STEPS * batch, len(train))), STEPS)[1:]
    tokens_per_s = len(speeds) / sum(1 / speed for speed in speeds)
    return Speed(tokens_per_s, tokens_per_dialog * batch / tokens_per_s, score_s + replies_s)
