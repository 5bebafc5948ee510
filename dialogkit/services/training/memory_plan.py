"""How much memory a training step takes on the CPU, and how to split a batch so that it fits.

On a GPU the allocator reports what is missing; on the CPU the system kills a process without a word.
"""

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from dialogkit.config.model import ModelConfig
from dialogkit.distributed import process_group
from dialogkit.errors import OutOfMemoryError
from dialogkit.hints import Call, Change
from dialogkit.system.memory import free_bytes
from dialogkit.text import byte_size, counted

if TYPE_CHECKING:
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.services.training.lifecycle import TrainingRun
    from dialogkit.services.training.setup import TrainingSetup

_LAYER_BYTES, _WIDTH_BYTES = 55, 224
"""Bytes kept for the backward pass: for each token, layer and unit of width, and for each token and unit of width.

Fitted to the peak memory of custom-nano, -tiny and -small in bf16 with 1,000 to 6,000 tokens (within 10%).
"""
_SCORE_BYTES = {"bf16": 6, "fp16": 6, "fp32": 4}
"""Bytes kept per attention score and layer, where scores are kept: in float32, and a copy in a shorter type."""
_SCORE_BYTES_AT_ONCE = 8
"""Working memory of the layer being computed, in bytes per attention score, besides what is kept.

Measured: the peaks of a Llama of 2 and of 6 layers with 1,536 tokens and eager attention (within 13%).
"""
_OPTIMIZER_BYTES = 12
"""A parameter's gradient and Adam's two moments, in float32; the weights themselves are already in memory."""


def step_bytes(*, parameters: int, layers: int, width: int, tokens: int, precision: str, scores: int = 0) -> int:
    """Return about how many bytes training takes beyond the model itself.

    Args:
        parameters: number of weights.
        layers: number of layers.
        width: width of the hidden states.
        tokens: tokens of the largest micro-batch.
        precision: bf16, fp16 or fp32; the last keeps twice as much.
        scores: scores of attention in each layer for the largest micro-batch, if they are kept.
    """
    kept = tokens * width * (_LAYER_BYTES * layers + _WIDTH_BYTES)
    of_scores = scores * (_SCORE_BYTES[precision] * layers + _SCORE_BYTES_AT_ONCE)
    return _OPTIMIZER_BYTES * parameters + kept * (2 if precision == "fp32" else 1) + of_scores


def tokens_at_once(setup: "TrainingSetup") -> tuple[int, int]:
    """Return the most tokens that a rank computes at once, and those of the longest dialog, the least it can.

    A model that computes dialogs in rows of one length computes their padding as well.
    """
    from dialogkit.engine.attention import computes_rows, keeps_scores

    train = setup.config.train
    rank_batch = train.batch_size // (train.accumulation_steps * setup.runtime.processes)
    lengths = sorted(setup.data.sample.lengths.tolist())[-rank_batch:]
    longest, in_rows = lengths[-1], computes_rows(setup.model) or keeps_scores(setup.model)
    tokens = longest * len(lengths) if in_rows else sum(lengths)
    return max(longest, min(tokens, train.micro_batch_tokens or tokens)), longest


def require_room(model: ModelConfig, vocabulary: int) -> None:
    """Raise OutOfMemoryError if the weights of a model from scratch exceed the free memory."""
    counts, free = model.parameter_counts(vocabulary), free_bytes()
    if counts is not None and free is not None and 4 * counts.total > free:
        raise OutOfMemoryError(
            f"the weights of {model.name} alone take {byte_size(4 * counts.total)} and {byte_size(free)} are free",
            hint=Call("models list"),
        )


def fit_batch_to_memory(setup: "TrainingSetup") -> str | None:
    """Split the batch so that a step fits into the CPU's memory, if the settings allow it; every rank calls this.

    Returns a note about the split, or None. Raises: OutOfMemoryError if a step would not fit.
    """
    free, train, (tokens, longest) = free_bytes(), setup.config.train, tokens_at_once(setup)
    # The ranks of a machine share its memory, and all ranks must reach the same decision.
    per_rank = process_group.all_gather(free and free // process_group.local_world_size())
    free = min(filter(None, per_rank), default=None)
    needed = bytes_of_step(setup, tokens)
    if setup.runtime.device != "cpu" or free is None or needed <= free:
        return None
    limits = (max(longest, tokens // parts) for parts in range(2, tokens // longest + 2))
    limit = next((limit for limit in limits if bytes_of_step(setup, limit) <= free), None)
    problem = f"a step takes about {byte_size(needed)} and {byte_size(free)} are free"
    if limit is None:
        recompute = Change({"train.activation_checkpointing": True})
        raise OutOfMemoryError(
            f"{problem}; not even a single dialog fits",
            hint=Call("models list") if train.activation_checkpointing else recompute,
        )
    if not train.fit_batch:
        raise OutOfMemoryError(
            f"{problem}; {counted(limit, 'token')} at once would fit (train.micro_batch_tokens={limit})",
            hint=Change({"train.fit_batch": True}),
        )
    setup.limit_tokens(limit)
    return f"{problem}: larger steps are computed in parts of {counted(limit, 'token')}"


def fit_batch_to_gpu(setup: "TrainingSetup") -> str | None:
    """Split the batch so that a step fits into the GPU, if the settings allow it; return a note about the split.

    Raises: OutOfMemoryError if not even the longest dialog fits.
    """
    train, runtime = setup.config.train, setup.runtime
    if runtime.device == "cpu" or not train.fit_batch or runtime.processes > 1:
        return None
    return split_until_the_longest_fit(setup)


def split_until_the_longest_fit(setup: "TrainingSetup") -> str | None:
    """Train a step on the longest dialogs, which a run may meet only after hours, in ever smaller parts.

    Returns a note about the split, or None. The model is as before. Raises: OutOfMemoryError.
    """
    from dialogkit.services.training.speed import measure_steps

    train = setup.config.train
    longest = setup.data.sample.lengths.argsort()[-train.batch_size :]
    problem: str | None = None
    while True:
        try:
            measure_steps(copy(setup), longest, 1)
            break
        except OutOfMemoryError as error:
            problem = split_further(setup, error)
        finally:
            setup.reset_model()
    if problem is None:
        return None
    return f"{problem}: larger steps are computed in parts of {_limit(setup)}"


def _limit(setup: "TrainingSetup") -> str:
    return counted(setup.config.train.micro_batch_tokens or 0, "token")


def split_further(setup: "TrainingSetup", error: OutOfMemoryError) -> str:
    """Compute half as many tokens at once from now on, and return why; raise the error if impossible."""
    tokens, longest = tokens_at_once(setup)
    # Other ranks may not run out of memory, so only a single process splits its batch.
    if setup.runtime.processes > 1 or not setup.config.train.fit_batch or tokens <= longest:
        raise error
    setup.limit_tokens(max(longest, tokens // 2))
    return error.message


def resume_after_split(run: "TrainingRun", setup: "TrainingSetup", problem: str) -> "tuple[Path, Progress] | None":
    """Prepare a run to train on with fewer tokens at once; return its checkpoint, None for the first step."""
    from dialogkit.engine.checkpoints import newest_valid

    checkpoint = newest_valid(run.folder.path)
    step = checkpoint[1].step if checkpoint else 0
    run.folder.cut_after(step)
    setup.reset_model()
    run.record.config = setup.config.model_dump(mode="json")
    run.folder.write(run.record)
    run.note(f"{problem}; resumes from step {step} with at most {_limit(setup)} at once")
    return checkpoint


def bytes_of_step(setup: "TrainingSetup", tokens: int) -> int:
    """Return about how many bytes of the CPU's memory a step takes on each rank that computes so many at once."""
    from dialogkit.engine.attention import keeps_scores

    train, info = setup.config.train, setup.model_info
    longest = int(setup.data.sample.lengths.max())
    scores = info.get("heads", 0) * tokens * longest if keeps_scores(setup.model) else 0
    return step_bytes(
        parameters=info["trainable_parameters"],
        layers=1 if train.activation_checkpointing else info.get("layers", 0),
        width=info.get("width", 0),
        tokens=tokens,
        precision=setup.runtime.precision,
        scores=scores,
    )
