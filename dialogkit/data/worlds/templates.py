"""Texts with slots, such as `The capital of {country} is {capital}.`, and how they are filled."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dialogkit.data.worlds.tables import Value

Facts = Mapping[str, Value]
"""A row of a table by its columns."""

OTHER = "other."
"""Begins a slot of another row."""

_SLOT = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_SENTENCE_END = re.compile(r"(?:^|[.!?]\s+|\n)[\"']?$")


@dataclass(frozen=True)
class Template:
    """A text whose parts are, in turn, plain text and the name of a slot."""

    source: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, source: str) -> "Template":
        """Return a text as a template; `{{` and `}}` stand for braces."""
        parts, start = [""], 0
        for found in _SLOT.finditer(source):
            parts[-1] += source[start : found.start()]
            start = found.end()
            if found[1] is None:
                parts[-1] += found[0][0]
            else:
                parts += [found[1].strip(), ""]
        parts[-1] += source[start:]
        return cls(source, tuple(parts))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names of its slots."""
        return self.parts[1::2]

    @cached_property
    def moves(self) -> bool:
        """Whether it speaks of another row."""
        return any(slot.startswith(OTHER) for slot in self.slots)

    def fill(self, row: Facts, other: Facts | None = None, plain: Sequence[str] | None = None) -> str:
        """Return the text with the values of a row, and of another one.

        The first letter of a sentence that begins with a slot is made a capital.

        Args:
            row: values of `{name}`.
            other: values of `{other.name}`.
            plain: plain parts to use instead of its own, as many.
        """
        texts = self.parts[::2] if plain is None else plain
        filled = texts[0]
        for slot, text in zip(self.slots, texts[1:], strict=True):
            value = value_of(slot, row, other)
            word = str(value)
            filled += word[:1].upper() + word[1:] if _SENTENCE_END.search(filled) else word
            filled += text
        return filled


def value_of(slot: str, row: Facts, other: Facts | None) -> Value:
    """Return the value of a slot."""
    if slot.startswith(OTHER):
        assert other is not None
        return other[slot.removeprefix(OTHER)]
    return row[slot]
