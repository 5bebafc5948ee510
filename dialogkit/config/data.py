"""The dataset, its split and its limits."""

from typing import Literal

from pydantic import Field

from dialogkit.config.base import Section


class DataConfig(Section):
    """Which dialogs to use and how to prepare them."""

    dataset: str = Field("starter", min_length=1, max_length=4096)
    """starter (shipped), alpaca-gpt4 (hub), a JSON, JSONL, CSV or Parquet file, or a hub id."""
    streaming: bool = False
    """Read JSONL or Parquet (file, folder or hub id) during training, for data larger than memory."""
    shuffle_dialogs: int = Field(10_000, ge=1, le=10_000_000)
    """Dialogs of a stream that are shuffled together, in addition to the order of the shards."""
    revision: str | None = Field(None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub dataset. None: the hub's default."""
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt-response"] = "auto"
    """Format of the rows. auto: recognised by their columns."""
    max_bad_rows: int = Field(0, ge=0, le=1_000_000_000)
    """Malformed rows of a file to skip. Well-formed rows without a dialog are always skipped."""
    samples: int | None = Field(None, examples=[100], ge=1, le=1_000_000_000)
    """Training dialogs to use, chosen by content hash; the evaluation set does not change. None: all."""
    eval_fraction: float = Field(0.05, gt=0, le=0.5)
    """Fraction of the dialogs held out for evaluation, chosen by content hash."""
    eval_min_dialogs: int = Field(8, ge=1, le=100_000)
    """Fewest dialogs to hold out, but never more than half."""
    eval_max_dialogs: int = Field(1000, ge=1, le=10_000_000)
    """Most dialogs to hold out, whatever the fraction: more make evaluation slower, but hardly more precise."""
    max_tokens: int | None = Field(None, examples=[512], ge=8, le=1_048_576)
    """Longest dialog in tokens; longer ones are cut. None: the model's context."""
