"""How much memory replies and scores take, and how many dialogs fit into it at once.

On the CPU the system kills a process that takes too much, without a word; on a GPU the allocator says what is
missing. Neither replies nor metrics depend on how many dialogs are computed at once, so as many are as fit.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dialogkit.config.generate import GenerateConfig
from dialogkit.errors import OutOfMemoryError
from dialogkit.hints import Call, Either, Hint
from dialogkit.system.memory import free_bytes
from dialogkit.text import byte_size, counted

if TYPE_CHECKING:
    from dialogkit.services.runs.loading import LoadedModel

_WIDTH_BYTES, _INNER_BYTES, _MASK_BYTES = 20, 12, 4
"""Bytes that the one layer that is computed takes of each token: for each unit of width, for each of the inner
width of its feed-forward part, and for each token of the row.

Float32 tensors counted. The peaks of a Llama of 4 layers and width 256, with 8 rows of 1,024 and 32 of 512 tokens,
are within 20% of it.
"""
_SCORE_BYTES = 8
"""Bytes of each score of attention where a kernel of torch does not avoid them."""
SHORTER_PROMPT = Either("shorten the prompt", Call("models list"))


def replies_at_once(
    model: "LoadedModel",
    prompts: Sequence[int],
    config: GenerateConfig,
    most: int,
    *,
    held: int = 0,
    shorter: Callable[[int], Hint] | None = None,
    otherwise: Hint = SHORTER_PROMPT,
) -> int:
    """Return how many prompts to answer at once, at most `most`: as many as fit into memory.

    Args:
        model: the model.
        prompts: tokens of each prompt.
        config: how replies are sampled.
        most: prompts to answer at once where memory suffices.
        held: tokens whose keys and values are in memory already.
        shorter: the hint for replies of at most so many tokens; None if their length cannot be chosen.
        otherwise: the hint if shorter replies would not help.

    Raises: OutOfMemoryError if not even one fits.
    """
    free = _free(model)
    if free is None:
        return most

    def needed(limit: int) -> int:
        shorter_replies = config.model_copy(update={"max_new_tokens": limit})
        return max((_bytes_of_reply(model, length, shorter_replies, held) for length in prompts), default=0)

    if (one := needed(config.max_new_tokens)) <= free:
        return max(1, min(most, free // max(1, one)))
    limit = config.max_new_tokens
    while limit > 1 and needed(limit) > free:
        limit //= 2
    fits = shorter is not None and needed(limit) <= free
    raise OutOfMemoryError(
        f"a reply of up to {counted(config.max_new_tokens, 'token')} to a prompt of {max(prompts):,} takes about "
        f"{byte_size(one)} besides the model and {byte_size(free)} are free",
        hint=shorter(limit) if shorter is not None and fits else otherwise,
    )


def scored_at_once(model: "LoadedModel", lengths: Sequence[int], most: int) -> int:
    """Return how many dialogs of these lengths to score at once, at most `most`: as many as fit into memory.

    Raises: OutOfMemoryError if not even one fits.
    """
    from dialogkit.inference.likelihood import CHUNK_TOKENS

    free, longest_first = _free(model), sorted(lengths, reverse=True)
    if free is None or not longest_first:
        return most
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    logits: int = 3 * 4 * CHUNK_TOKENS * vocabulary  # with their softmax, in the model's and the metrics' form

    def needed(dialogs: int) -> int:
        return logits + sum(_bytes_of_layer(model, length) for length in longest_first[:dialogs])

    if needed(1) > free:
        raise OutOfMemoryError(
            f"to score a dialog of {counted(longest_first[0], 'token')} takes about {byte_size(needed(1))} "
            f"besides the model and {byte_size(free)} are free",
            hint=Call("models list"),
        )
    at_once = min(most, len(longest_first))
    while needed(at_once) > free:
        at_once -= 1
    return most if at_once == len(longest_first) else at_once


def _free(model: "LoadedModel") -> int | None:
    return free_bytes() if model.device == "cpu" else None


def _bytes_of_reply(model: "LoadedModel", prompt: int, config: GenerateConfig, held: int) -> int:
    """Return about how many bytes a reply takes: the keys and values of its tokens, one layer of its prompt."""
    from dialogkit.inference.replies import fitted_lengths

    read, limit = fitted_lengths(prompt, config, model.context)
    held = min(held, read)
    return (read + limit - held) * _bytes_of_cache(model) + _bytes_of_layer(model, read - held)


def _shape(model: "LoadedModel") -> Any:
    return model.model.config.get_text_config(decoder=True)


def _bytes_of_cache(model: "LoadedModel") -> int:
    """Return the bytes of the keys and values of a token; a sliding window is counted in full."""
    shape = _shape(model)
    heads = getattr(shape, "num_attention_heads", None) or 1
    of_keys = getattr(shape, "num_key_value_heads", None) or heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    return int(2 * 4 * shape.num_hidden_layers * of_keys * size)


def _bytes_of_layer(model: "LoadedModel", tokens: int) -> int:
    """Return about how many bytes a layer takes while it computes a row of tokens."""
    from dialogkit.engine.attention import keeps_scores

    shape = _shape(model)
    width = shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * width
    scores = getattr(shape, "num_attention_heads", 1) if keeps_scores(model.model) else 0
    of_row = _MASK_BYTES + _SCORE_BYTES * scores
    return int(tokens * (_WIDTH_BYTES * width + _INNER_BYTES * inner + of_row * tokens))
