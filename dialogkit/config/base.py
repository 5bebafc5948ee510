"""The base of every settings section."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

NOT_TOGETHER = "not_together"
"""Kind of the error of settings that are sound by themselves."""


def not_together(problem: str, remedy: str) -> PydanticCustomError:
    """Return the error of settings that do not go together, and the `name=value` that mends it."""
    return PydanticCustomError(NOT_TOGETHER, "{problem}: set {remedy}", {"problem": problem, "remedy": remedy})


class Section(BaseModel):
    """Frozen and strict: an unknown key, a wrong type or an infinite number is an error, never a guess."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
