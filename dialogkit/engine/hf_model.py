"""Everything in the engine that needs private names of HF's models, under public names.

Seen in transformers 5.x. No other module may use them, and a test fails if a release changes one.
"""

from typing import Any


def attention_of(model: Any) -> str:
    """Return the name of the attention that a model uses now."""
    # HF has a setter for it, but nothing public that reads it.
    return str(model.config._attn_implementation)


def takes_attention(model: Any) -> bool:
    """Return whether the attention of a model can be replaced; otherwise HF's setter only logs a warning."""
    return bool(model._can_set_attn_implementation())


def plain_attention_of(model: Any) -> str:
    """Return the name of the fastest attention that a model has for every input."""
    # Given one that the architecture lacks, HF's setter raises.
    return "sdpa" if model._supports_sdpa else "eager"
