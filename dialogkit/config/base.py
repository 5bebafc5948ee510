"""The bases of settings sections and of what services return."""

import ast
import inspect
from collections.abc import Iterable, Iterator, Sized
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema, PydanticCustomError

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
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema with the docstrings of the settings: pydantic would read the source at each import."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)["properties"]
        for name, text in _docstrings(cls):
            described[name]["description"] = text
        return schema

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


def _docstrings(section: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class that have a docstring below them, with it."""
    (body,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(body, ast.ClassDef)
    for field, below in pairwise(body.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)


_LONGEST_REPR, _LONGEST_VALUE = 180, 40


class Result(BaseModel):
    """Frozen, printable, JSON-able; holds no tensors."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=False)

    def repr_fields(self) -> Iterable[tuple[str, Any]]:
        """Return what `repr` shows of the result, the most important first."""
        return ((name, getattr(self, name)) for name in type(self).model_fields)

    def __repr__(self) -> str:
        """Return one short line; `model_dump` has everything."""
        shown = ""
        for name, value in self.repr_fields():
            if value is None or (isinstance(value, Sized) and not len(value)):
                continue
            word = f"{name}={_brief(value)}"
            if len(shown) + len(word) > _LONGEST_REPR - len(type(self).__name__):
                shown += ", ..."
                break
            shown += f", {word}" if shown else word
        return f"{type(self).__name__}({shown})"

    __str__ = __repr__


def _brief(value: Any) -> str:
    """Return a value in a few characters: the length of what is long."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 3]}...")
    if isinstance(value, Result):
        return f"{type(value).__name__}(...)"
    if isinstance(value, Sized):
        return f"<{len(value):,}>"
    return repr(value)
