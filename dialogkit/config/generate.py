"""Sampling settings, and the prompts that every run answers."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from dialogkit.config.base import Section
from dialogkit.text import without_surrogates


def _readable(prompt: object) -> object:
    return without_surrogates(prompt) if isinstance(prompt, str) else prompt


Prompt = Annotated[str, BeforeValidator(_readable), Field(min_length=1, max_length=100_000)]

TEST_PROMPTS: tuple[str, ...] = (
    "Hello! How are you?",
    "What is the capital of France?",
    "Give three tips for staying healthy.",
    "Explain in one sentence why the sky is blue.",
    "Write a short poem about the sea.",
    "What is 7 plus 5?",
    "Rewrite this sentence politely: Send me the report now.",
    "Thank you, goodbye!",
)


class GenerateConfig(Section):
    """How to generate replies. The same seed gives the same reply on the same machine, alone or among others."""

    max_new_tokens: int = Field(128, ge=1, le=1_000_000)
    """Longest reply, in tokens."""
    temperature: float = Field(0.7, ge=0, le=2)
    """Higher is more varied. 0: always the most probable token."""
    top_k: int = Field(50, ge=0, le=1_000_000)
    """Sample from this many most probable tokens. 0: all."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Sample from the most probable tokens that together have this probability."""
    repetition_penalty: float = Field(1.1, ge=1, le=10)
    """Lower the probability of tokens that already occurred in the reply, not in the prompt. 1: off."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of the sampling."""
    use_model_settings: bool = False
    """Use the sampling settings that come with the model for those that are not set here."""
    test_prompts: tuple[Prompt, ...] = Field(TEST_PROMPTS, max_length=1000, strict=False)
    """Prompts answered after training, and by `generate` without a prompt."""
