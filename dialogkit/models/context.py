"""The context of a model, read from its configuration without loading it."""

from typing import Any

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError
from dialogkit.models.adapter_source import find_adapter
from dialogkit.models.folder import CONTEXT
from dialogkit.models.sources import load_from_source

SHORTEST_CONTEXT = 16
"""Tokens that a dialog needs at least."""


def context_length(config: Any) -> int:
    """Return the context length, in tokens, of a transformers config; 1024 if it names none."""
    named = (getattr(config, name, None) for name in CONTEXT)
    return next((length for length in named if isinstance(length, int) and length > 0), 1024)


def read_context(config: ModelConfig) -> int:
    """Return the context length of a model from its configuration, without loading it.

    Raises: ModelError if the source cannot be read; UnavailableError if it is on an unreachable hub.
    """
    if config.from_scratch and config.context is not None:
        return config.context
    from transformers import AutoConfig

    adapter = find_adapter(config)
    described = load_from_source(AutoConfig.from_pretrained, config if adapter is None else adapter.base)
    require_context(config.source or "", described)
    return context_length(described)


def require_context(source: str, described: Any) -> None:
    """Raise ModelError if the context or the window of a transformers config is too short for a dialog."""
    for name in (*CONTEXT, "sliding_window"):
        value = getattr(described, name, None)
        if value is not None and (not isinstance(value, int) or value < SHORTEST_CONTEXT):
            raise ModelError(
                f"{name} of {source!r} is {value!r}, and a dialog needs at least {SHORTEST_CONTEXT} tokens"
            )
