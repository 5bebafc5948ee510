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

_WIDTH_BYTES, _INNER_BYTES = 24, 12
"""Working memory of the layer being computed, in bytes per token: for each unit of its width, and of the inner
width of its feed-forward part."""
_SCORE_BYTES = 8
"""Working memory of the layer being computed, in bytes per attention score, unless a kernel avoids them."""
_MASK_BYTES = 12
"""Bytes of each score where a mask is needed: for rows of different lengths, or a sliding window."""
_CHOICE_BYTES = 50
"""Bytes of each entry of the vocabulary while the next token of a reply is drawn."""
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
    free, longest = _free(model), max(prompts, default=0)
    if free is None or not longest:
        return most

    def needed(limit: int) -> int:
        return bytes_of_reply(model, longest, config.model_copy(update={"max_new_tokens": limit}), held)

    one = needed(config.max_new_tokens)
    if one <= free:
        several = one + _MASK_BYTES * min(longest, model.context) ** 2
        return max(1, min(most, free // several))
    halves = (config.max_new_tokens >> times for times in range(1, config.max_new_tokens.bit_length()))
    fits = next((limit for limit in halves if needed(limit) <= free), None)
    raise OutOfMemoryError(
        f"a reply of up to {counted(config.max_new_tokens, 'token')} to a prompt of {longest:,} takes about "
        f"{byte_size(one)} besides the model and {byte_size(free)} are free",
        hint=shorter(fits) if shorter is not None and fits else otherwise,
    )


def scored_at_once(model: "LoadedModel", lengths: Sequence[int], most: int) -> int:
    """Return how many dialogs of these lengths to score at once, at most `most`: as many as fit into memory.

    Raises: OutOfMemoryError if not even one fits.
    """
    free, longest = _free(model), max(lengths, default=0)
    if free is None or not longest:
        return most
    logits, one = bytes_of_logits(model), bytes_of_layer(model, longest)
    if logits + one > free:
        raise OutOfMemoryError(
            f"to score a dialog of {counted(longest, 'token')} takes about {byte_size(logits + one)} "
            f"besides the model and {byte_size(free)} are free",
            hint=Call("models list"),
        )
    return min(most, (free - logits) // one)


def rows_fit(model: "LoadedModel", rows: Sequence[int], held: int, prompt: int, length: int) -> bool:
    """Return whether one more reply fits into memory beside others of a padded batch.

    Args:
        model: the model.
        rows: the tokens that each of the others may come to, prompt and reply.
        held: tokens of the batch now, padding included.
        prompt: tokens of the new prompt.
        length: the tokens that the new one may come to.
    """
    free = _free(model)
    if free is None:
        return True
    grown = (len(rows) + 1) * max(length, *rows) - len(rows) * held
    return (
        grown * bytes_of_cache(model) + bytes_of_layer(model, prompt) + _CHOICE_BYTES * _vocabulary(model) <= free
    )


def _free(model: "LoadedModel") -> int | None:
    return free_bytes() if model.device == "cpu" else None


def bytes_of_reply(model: "LoadedModel", prompt: int, config: GenerateConfig, held: int) -> int:
    """Return about how many bytes a reply takes: keys, values, a layer of its prompt, the choice of tokens."""
    from dialogkit.inference.replies import fitted_lengths

    read, limit = fitted_lengths(prompt, config, model.context)
    held = min(held, read)
    kept = (read + limit - held) * bytes_of_cache(model)
    return kept + bytes_of_layer(model, read - held) + _CHOICE_BYTES * _vocabulary(model)


def _shape(model: "LoadedModel") -> Any:
    return model.model.config.get_text_config(decoder=True)


def _vocabulary(model: "LoadedModel") -> int:
    return int(model.model.get_input_embeddings().weight.shape[0])


def bytes_of_cache(model: "LoadedModel") -> int:
    """Return the bytes of the keys and values of a token; a sliding window is counted in full."""
    shape = _shape(model)
    heads = getattr(shape, "num_attention_heads", None) or 1
    of_keys = getattr(shape, "num_key_value_heads", None) or heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    return int(2 * 4 * shape.num_hidden_layers * of_keys * size)


def bytes_of_logits(model: "LoadedModel") -> int:
    """Return the bytes of the logits that are scored at once, with their softmax."""
    from dialogkit.inference.likelihood import CHUNK_TOKENS

    return 2 * 4 * CHUNK_TOKENS * _vocabulary(model)


def bytes_of_layer(model: "LoadedModel", tokens: int) -> int:
    """Return about how many bytes a layer takes while it computes a row of tokens."""
    from dialogkit.engine.attention import keeps_scores

    shape = _shape(model)
    width = shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * width
    scores = getattr(shape, "num_attention_heads", 1) if keeps_scores(model.model) else 0
    window = getattr(shape, "sliding_window", None) or tokens
    of_row = _SCORE_BYTES * scores + (_MASK_BYTES if tokens > window else 0)
    return int(tokens * (_WIDTH_BYTES * width + _INNER_BYTES * inner + of_row * tokens))
