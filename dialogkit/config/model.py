"""Which model: a pretrained one by its source, or one built from scratch by its shape."""

from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from dialogkit.config.base import Section

SHIPPED_VOCABULARIES = {None: 32_768, "smalltalk": 4096}
"""Entries of the shipped tokenizers, by the setting `model.tokenizer`."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of models and runs become folder names, so they cannot leave their folder."""


class ParameterCounts(NamedTuple):
    """Exact numbers of parameters."""

    total: int
    embedding: int
    """Token and position embeddings, with the output layer where it is tied to the former."""

    @property
    def without_embeddings(self) -> int:
        """Parameters that are not embeddings."""
        return self.total - self.embedding


class ModelConfig(Section):
    """The model to train: the source of its weights, or its shape if it is trained from scratch."""

    name: str = Field("model", pattern=NAME_PATTERN)
    """Name of the model; its results go to a folder of this name."""
    source: str | None = Field(None, min_length=1, max_length=4096)
    """Hub id, model folder or GGUF file to start from. None: built from scratch."""
    revision: str | None = Field(None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub source. None: the hub's default."""
    size_class: str | None = Field(None, max_length=20)
    """The size by which the model is known, such as 345M."""
    license: str | None = Field(None, max_length=200)
    """Licence of the source's weights."""
    architecture: Literal["gpt2", "llama"] = "llama"
    """Architecture of a model from scratch: GPT-2, or Llama (rotary positions, RMSNorm, SwiGLU)."""
    layers: int | None = Field(None, examples=[4], ge=1, le=256)
    """Number of transformer blocks."""
    width: int | None = Field(None, examples=[256], ge=8, le=32_768)
    """Size of a hidden state."""
    heads: int | None = Field(None, examples=[4], ge=1, le=512)
    """Attention heads. Must divide the width."""
    feed_forward: int | None = Field(None, ge=8, le=262_144)
    """Width of the feed-forward layer. None: 4 x width for gpt2, 8/3 x width rounded up to 8 for llama."""
    context: int | None = Field(None, examples=[1024], ge=16, le=1_048_576)
    """Longest dialog, in tokens."""
    vocabulary: int | None = Field(None, ge=256, le=2_000_000)
    """Entries of the tokenizer. None: read from the tokenizer."""
    tokenizer: str | None = Field(None, min_length=1, max_length=4096)
    """Tokenizer folder, or smalltalk, the small shipped one. None: the source's, or the large shipped one."""
    chat_format: Literal["auto", "dialogkit", "plain", "turns"] = "auto"
    """Chat format. auto: the tokenizer's own template; without one, `plain`."""
    initializer_range: float = Field(0.02, gt=0, le=1)
    """Standard deviation of the initial weights of a model from scratch."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        problems = []
        missing = [n for n in ("layers", "width", "heads", "context") if getattr(self, n) is None]
        if self.source is None and missing:
            problems.append(f"a model without a source needs {', '.join(missing)}")
        if self.width and self.heads and self.width % self.heads:
            problems.append(f"width {self.width} is not a multiple of heads {self.heads}")
        elif self.width and self.heads and self.architecture == "llama" and (self.width // self.heads) % 2:
            problems.append(f"width {self.width} over {self.heads} heads is odd, and rotary positions need pairs")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def from_scratch(self) -> bool:
        """Whether the weights start random."""
        return self.source is None

    @property
    def feed_forward_width(self) -> int | None:
        """Width of the feed-forward layer, derived if not set."""
        if self.feed_forward is not None or self.width is None:
            return self.feed_forward
        return 4 * self.width if self.architecture == "gpt2" else -(-8 * self.width // 3 // 8) * 8

    @property
    def known_vocabulary(self) -> int | None:
        """Entries of the tokenizer without reading it: as set, or those of a shipped one."""
        shipped = SHIPPED_VOCABULARIES.get(self.tokenizer) if self.from_scratch else None
        return self.vocabulary or shipped

    def parameter_counts(self, vocabulary: int | None = None) -> ParameterCounts | None:
        """Return the exact parameter counts of this shape, tied embeddings counted once.

        Args:
            vocabulary: entries of the tokenizer; None: `known_vocabulary`, or those of the large shipped one.

        Returns None if the shape is incomplete, as for any hub id.
        """
        large = SHIPPED_VOCABULARIES[None] if self.from_scratch else None
        entries = vocabulary or self.known_vocabulary or large
        layers, width, context, inner = self.layers, self.width, self.context, self.feed_forward_width
        if entries is None or layers is None or width is None or context is None or inner is None:
            return None
        if self.architecture == "gpt2":
            # Attention 4 D^2 + 4 D, feed-forward 2 D F + F + D, two layer norms 4 D; final norm 2 D.
            block = 4 * width * width + 2 * width * inner + 9 * width + inner
            embedding = (entries + context) * width
            return ParameterCounts(embedding + layers * block + 2 * width, embedding)
        # Attention 4 D^2, SwiGLU 3 D F, two RMS norms 2 D; final norm D. Rotary positions have no parameters.
        block = 4 * width * width + 3 * width * inner + 2 * width
        embedding = entries * width
        return ParameterCounts(embedding + layers * block + width, embedding)
