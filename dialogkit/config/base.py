"""The bases of settings sections and of what services return."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dialogkit.redaction import secret_in

CONFLICT = "conflict"
"""Kind of the error of settings that are valid one by one, but not together."""


def conflict(problem: str, setting: str, value: str) -> PydanticCustomError:
    """Return the error of settings that exclude each other, with one setting and the value that resolves it."""
    context = {"problem": problem, "setting": setting, "value": value}
    return PydanticCustomError(CONFLICT, "{problem}: set {setting}={value}", context)


class Section(BaseModel):
    """A frozen, strict model: unknown keys, wrong types and infinite numbers are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_secrets(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse secrets, as settings are recorded, printed and uploaded."""
        # The hash of a commit looks like a key, and a prompt may contain `password=...`.
        name = info.field_name or ""
        texts = [text for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str)]
        found = [secret_in(text, named=name != "test_prompts") for text in texts if name != "revision"]
        if secret := next(filter(None, found), None):
            raise ValueError(f"must not hold {secret}: settings are recorded and shown")
        return value


class Result(BaseModel):
    """Frozen, printable, JSON-able; holds no tensors."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=False)
