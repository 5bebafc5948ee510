"""Measures what a training takes on this machine."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from dialogkit.config.data import DataConfig
from dialogkit.config.paths import cache_dir
from dialogkit.config.run import RunConfig
from dialogkit.services.training.memory_plan import fit_batch_to_memory
from dialogkit.services.training.samples import LONGEST_SHORT, reply_to_tests
from dialogkit.services.training.setup import TrainingSetup
from dialogkit.services.training.speed import measure_steps

if TYPE_CHECKING:
    from dialogkit.data.prepare import PreparedData
    from dialogkit.dialog import ChatTokenizer

OF_WORLD = 2_000
"""Dialogs to make of a world: enough to estimate the mean length, and to contain the held-out ones to score."""
SCORED = 32
"""Held-out dialogs that are scored to measure what all of them take."""
SHORT_REPLY = 12
"""Tokens of the replies that are made to measure what whole ones take."""
STEPS = 3
"""Steps that are made; the first one includes preparations and is not counted."""


class Measured(NamedTuple):
    """What was measured of a model.

    Attributes:
        parameters, parameters_without_embeddings: its size.
        device: what it runs on.
        revision: that of the dataset.
        train_dialogs: training dialogs of a pass; of a world that was not made in full about as many.
        start_s: seconds until the data are read and the model is built.
        tokens_per_s: tokens that steps train on in a second.
        step_s: seconds of a step on dialogs of mean length.
        evaluation_s: seconds of an evaluation with its replies, as a time budget counts it.
    """

    parameters: int
    parameters_without_embeddings: int
    device: str
    revision: str
    train_dialogs: int
    start_s: float
    tokens_per_s: float
    step_s: float
    evaluation_s: float

    @property
    def costs(self) -> dict[str, float]:
        """What the parts of a training take, as a time budget counts them."""
        return {"start_s": self.start_s, "step_s": self.step_s, "evaluation_s": self.evaluation_s}


class SharedData:
    """The dialogs of a dataset for several models: prepared once for each tokenizer, and few of a world.

    Attributes:
        last_prepare_s: seconds that the newest call of `prepare` took.
        full_prepare_s: seconds that training takes to prepare the whole dataset.
        sampled_fraction: fraction of the dataset that was prepared.
    """

    def __init__(self) -> None:
        self.last_prepare_s, self.full_prepare_s, self.sampled_fraction = 0.0, 0.0, 1.0
        self._prepared: dict[tuple[str, int], tuple[PreparedData, float]] = {}

    def prepare(self, config: DataConfig, tokenizer: "ChatTokenizer", context: int) -> "PreparedData":
        """Return the dialogs for a tokenizer and a context. Raises: what `prepare_data` raises."""
        started, key = time.perf_counter(), (tokenizer.fingerprint, context)
        if key not in self._prepared:
            self._prepared[key] = _prepared(config, tokenizer, context)
        data, self.full_prepare_s = self._prepared[key]
        self.sampled_fraction = data.part
        self.last_prepare_s = time.perf_counter() - started
        return data


def _prepared(config: DataConfig, tokenizer: "ChatTokenizer", context: int) -> "tuple[PreparedData, float]":
    """Return dialogs to measure with, and the seconds that all of them take."""
    from dialogkit.data.prepare import prepare_data
    from dialogkit.data.sources import find_source
    from dialogkit.data.worlds.folder import read_world

    started = time.perf_counter()
    data = prepare_data(config, tokenizer, context=context, cache=cache_dir(), most=OF_WORLD)
    took_s = time.perf_counter() - started
    if data.part < 1.0 and (world := find_source(config).world) is not None:
        # However many dialogs are made, the world is read once.
        started = time.perf_counter()
        read_world(world)
        read_s = time.perf_counter() - started
        took_s += max(0.0, took_s - read_s) * (1 / data.part - 1)
    return data, took_s


def measure(config: RunConfig, data: SharedData) -> Measured:
    """Return what a training takes on this machine, from a few steps and a small part of an evaluation.

    Raises: what a training raises at its start.
    """
    from dialogkit.engine.device import resolve_runtime

    runtime = resolve_runtime(config.runtime)
    started = time.perf_counter()
    setup = TrainingSetup(config, runtime, prepare=data.prepare)
    start_s = time.perf_counter() - started - data.last_prepare_s + data.full_prepare_s
    fit_batch_to_memory(setup)
    info, dialogs = setup.model_info, setup.data
    train_dialogs = _extrapolated(len(dialogs.sample), data.sampled_fraction, config.data.samples)
    held_out = _extrapolated(len(dialogs.evaluation), data.sampled_fraction, config.data.eval_max_dialogs)
    evaluation_s = _measure_evaluation(setup, held_out)
    batch = config.train.batch_size
    tokens_per_dialog = float(dialogs.sample.lengths.mean())
    speeds = measure_steps(setup, range(min(STEPS * batch, len(dialogs.sample))), STEPS)[1:]
    tokens_per_s = len(speeds) / sum(1 / speed for speed in speeds)
    return Measured(
        parameters=info["parameters"],
        parameters_without_embeddings=info["parameters_without_embeddings"],
        device=f"{runtime.device} ({runtime.device_name})",
        revision=dialogs.ledger.revision,
        train_dialogs=train_dialogs,
        tokens_per_s=tokens_per_s,
        start_s=start_s,
        step_s=tokens_per_dialog * batch / tokens_per_s,
        evaluation_s=evaluation_s,
    )


def _extrapolated(number: int, fraction: float, most: int | None) -> int:
    """Scale a count from the sample to the whole dataset; the settings take at most `most`."""
    if fraction == 1.0:
        return number
    whole = round(number / fraction)
    return whole if most is None else min(whole, most)


def _measure_evaluation(setup: TrainingSetup, held_out: int) -> float:
    """Return the seconds of an evaluation of so many held-out dialogs, with its replies."""
    evaluation, generate = setup.data.evaluation, setup.config.generate
    questions = setup.questions if setup.config.tracking.replies_at_evaluations else []
    # Sorted by their hashes, the first ones are as good as drawn by chance.
    scored = min(SCORED, len(evaluation))
    setup.data = replace(setup.data, evaluation=evaluation.select(range(scored)))
    started = time.perf_counter()
    setup.score(autocast=False)
    score_s = (time.perf_counter() - started) * held_out / scored
    tokens = min(SHORT_REPLY, generate.max_new_tokens)
    started = time.perf_counter()
    reply_to_tests(setup, longest=tokens)
    token_s = (time.perf_counter() - started) / tokens
    # Replies are made side by side, so what counts is their length.
    return score_s + token_s * (generate.max_new_tokens + (LONGEST_SHORT if questions else 0))
