"""The base of what services return."""

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """Frozen, printable, JSON-able; holds no tensors."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=False)
