"""The dataset, its split and its limits."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from dialogkit.config.base import Section
from dialogkit.errors import did_you_mean

COLUMN_ROLES = (
    "prompt",
    "response",
    "system",
    "history",
    "context",
    "messages",
    "text",
    "chosen",
    "rejected",
    "label",
    "split",
    "check",
    "topic",
    "new",
)
"""What a column can be mapped to."""


class DataConfig(Section):
    """Which dialogs to use and how to prepare them."""

    dataset: str = Field("starter", min_length=1, max_length=4096)
    """starter, smalltalk, smalltalk-core (shipped), alpaca-gpt4 (hub), a file, a world folder or a hub id."""
    streaming: bool = False
    """Read JSONL or Parquet (file, folder or hub id) during training, for data larger than memory."""
    shuffle_dialogs: int = Field(10_000, ge=1, le=10_000_000)
    """Dialogs of a stream that are shuffled together, in addition to the order of the shards."""
    revision: str | None = Field(None, min_length=1, max_length=200)
    """Branch, tag or commit of a hub dataset. None: the hub's default."""
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt-response", "preference", "text", "oasst"] = (
        "auto"
    )
    """Format of the rows. auto: recognised by their columns."""
    columns: tuple[str, ...] = Field(
        (), examples=[["prompt=frage", "response=antwort"]], max_length=len(COLUMN_ROLES), strict=False
    )
    """What the columns of the rows mean, as ROLE=COLUMN; of the others only `system`, `label`, `split` and
    `check` are used. Empty: all are known by their names."""
    max_bad_rows: int = Field(0, ge=0, le=1_000_000_000)
    """Malformed rows of a file to skip. Well-formed rows without a dialog are always skipped."""
    samples: int | None = Field(None, examples=[100], ge=1, le=1_000_000_000)
    """Training dialogs to use, chosen by content hash; the evaluation set does not change. None: all."""
    eval_fraction: float = Field(0.05, gt=0, le=0.5)
    """Fraction of the dialogs held out for evaluation, chosen by content hash, unless the rows have a `split`."""
    eval_min_dialogs: int = Field(8, ge=1, le=100_000)
    """Fewest dialogs to hold out, but never more than half."""
    eval_max_dialogs: int = Field(1000, ge=1, le=10_000_000)
    """Most dialogs to hold out, whatever the fraction: more make evaluation slower, but hardly more precise."""
    max_tokens: int | None = Field(None, examples=[512], ge=8, le=1_048_576)
    """Longest dialog in tokens; longer ones are cut. None: the model's context."""

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            role, _, column = word.partition("=")
            if not column.strip():
                raise ValueError(f"{word!r} is not of the form ROLE=COLUMN, such as prompt=frage")
            if role not in COLUMN_ROLES:
                meant = did_you_mean(role, COLUMN_ROLES)
                problem = f"{role!r} is not a column role{meant}: there are {', '.join(COLUMN_ROLES)}"
                context = {"problem": problem, "right": _with_known_roles(value)}
                raise PydanticCustomError("value_error", "{problem}", context)
        if len({word.partition("=")[0] for word in value}) < len(value):
            raise ValueError("a role has two columns")
        return value

    @property
    def column_of(self) -> dict[str, str]:
        """The column of each role that `columns` maps."""
        return {role: column for role, _, column in (word.partition("=") for word in self.columns)}


def _with_known_roles(words: Sequence[str]) -> list[str]:
    """Return a mapping with each unknown role as the one that is meant; without those that resemble none."""
    known = {role: column for role, _, column in (word.partition("=") for word in words) if role in COLUMN_ROLES}
    for role, _, column in (word.partition("=") for word in words):
        for meant in get_close_matches(role, COLUMN_ROLES, n=1):
            known.setdefault(meant, column)
    return [f"{role}={column}" for role, column in known.items() if column.strip()]
