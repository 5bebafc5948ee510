"""Reads YAML with the line of each value, so that an error can name it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

from dialogkit.errors import DataError, did_you_mean, os_reason, shortened
from dialogkit.text import read_small

_LONGEST = 4 * 2**20
"""Most bytes of a file."""
_DEEPEST = 40

# libyaml is ten times faster; PyYAML is not always built with it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_QUOTES = ("'", '"', "|", ">")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,15})?")


class Written(float):
    """A number that is shown as it was written, such as 2.50."""

    def __new__(cls, text: str) -> Self:
        """Return the number that a text is."""
        number = super().__new__(cls, text)
        number._text = text
        return number

    _text: str

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True)
class Node:
    """A value of a YAML file and its place.

    Attributes:
        file: the file.
        line: its line, from 1.
        where: its place in words, such as `exchange 2`; empty at the top.
        value: text, number, truth value, None, a list of nodes, or a dict of nodes by their names.
    """

    file: Path
    line: int
    where: str
    value: Any

    def wrong(self, problem: str) -> DataError:
        """Return the error of this value."""
        where = f"{self.where}: " if self.where else ""
        return DataError(f"{self.file.name}:{self.line}: {where}{problem}", hint=_edit(self.file, self.line))

    def fields(self, known: Sequence[str], required: Sequence[str] = ()) -> "dict[str, Node]":
        """Return the values by their names. Raises: DataError for an unknown name, or one that lacks."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"{self.shown} where {', '.join(known)} are expected")
        for name, node in self.value.items():
            if name not in known:
                meant = did_you_mean(name, known)
                problem = f"unknown key {name!r}{meant}; known are {', '.join(known)}"
                raise replace(node, where=self.where).wrong(problem)
        for name in required:
            if name not in self.value:
                raise self.wrong(f"{name!r} is missing")
        return {name: replace(node, where=_joined(self.where, name)) for name, node in self.value.items()}

    def items(self) -> "list[Node]":
        """Return the values of a list that is not empty. Raises: DataError."""
        if not isinstance(self.value, list):
            raise self.wrong(f"{self.shown} where a list is expected")
        if not self.value:
            raise self.wrong("the list is empty")
        return self.value

    def texts(self) -> "list[Node]":
        """Return the texts of a list of texts, or the one that stands alone. Raises: DataError."""
        nodes = self.items() if isinstance(self.value, list) else [self]
        for number, node in enumerate(nodes, 1):
            if not isinstance(node.value, str) or not node.value.strip():
                where = self.where if node is self else _joined(self.where, f"text {number}")
                raise replace(node, where=where).wrong(f"{node.shown} where a text is expected")
        return nodes

    def text(self) -> str:
        """Return the text. Raises: DataError."""
        if isinstance(self.value, list):
            raise self.wrong(f"{self.shown} where a text is expected")
        return str(self.texts()[0].value)

    def flag(self) -> bool:
        """Return the truth value. Raises: DataError."""
        if not isinstance(self.value, bool):
            raise self.wrong(f"{self.shown} is neither true nor false")
        return self.value

    @property
    def shown(self) -> str:
        """The value as an error shows it."""
        match self.value:
            case list():
                return "a list"
            case dict():
                return "named values (a text with a colon, or that begins with a brace, needs quotes)"
            case None:
                return "nothing"
            case bool():
                return f"{str(self.value).lower()} (a text needs quotes)"
            case str():
                return shortened(repr(self.value), 60) if self.value.strip() else "an empty text"
            case _:
                return str(self.value)

    def plain(self) -> Any:
        """Return the value without places."""
        match self.value:
            case list():
                return [node.plain() for node in self.value]
            case dict():
                return {name: node.plain() for name, node in self.value.items()}
            case value:
                return value


def _edit(path: Path, line: int | None = None) -> str:
    """Return the hint to edit a file."""
    return f"edit {path}" if line is None else f"edit line {line} of {path}"


def _joined(where: str, name: str) -> str:
    return f"{where}, {name}" if where else name


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a world. Raises: DataError if it cannot be read, or is too long."""
    try:
        content = read_small(path, _LONGEST)
    except OSError as error:
        hint = f"make {path} a file that can be read, or move it out of the folder"
        raise DataError(f"{str(path)!r} cannot be read: {os_reason(error)}", hint=hint) from None
    if len(content) > _LONGEST:
        raise DataError(f"{path.name} is longer than {_LONGEST // 2**20} MiB", hint=f"split {path} into topics")
    return content


def read_yaml(path: Path) -> Node:
    """Return the content of a YAML or JSON file. Raises: DataError with the line."""
    name, content = path.name, read_bytes(path)
    try:
        # Events instead of nodes: libyaml composes deeply nested nodes until the stack overflows.
        events = yaml.parse(content.decode("utf-8-sig"), Loader=_LOADER)
        found = [next(events), next(events)]
        if isinstance(found[1], yaml.StreamEndEvent):
            raise DataError(f"{name} is empty", hint=f"write a topic into {path}, or delete it")
        root = _node(events, next(events), path, 0)
        found = [next(events), next(events)]
        if not isinstance(found[1], yaml.StreamEndEvent):
            raise Node(path, found[1].start_mark.line + 1, "", None).wrong("a second document")
        return root
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text", hint=f"save {path} as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        number = mark.line + 1 if mark is not None else None
        line = f":{number}" if number else ""
        quotes = "; in a list on one line, texts with braces or colons need quotes"
        problem = f"{name}{line}: not valid YAML: {error.problem or error.context}{quotes}"
        raise DataError(problem, hint=_edit(path, number)) from None
    except yaml.YAMLError as error:  # a control character
        problem = f"{name}: not valid YAML: {str(error).splitlines()[0]}"
        raise DataError(problem, hint=_edit(path)) from None


def _node(events: Iterator[Any], event: Any, file: Path, depth: int) -> Node:
    """Return the value that an event begins."""
    here = Node(file, event.start_mark.line + 1, "", None)
    if isinstance(event, yaml.AliasEvent):
        raise here.wrong("an alias; write the value again")
    if event.tag not in (None, "!"):
        raise here.wrong(f"the tag {event.tag!r}; only texts, numbers, lists and named values are read")
    if depth > _DEEPEST:
        raise here.wrong("nested too deep")
    if isinstance(event, yaml.ScalarEvent):
        return replace(here, value=_scalar(event.value, quoted=event.style in _QUOTES))
    if isinstance(event, yaml.SequenceStartEvent):
        values = _until(events, yaml.SequenceEndEvent)
        return replace(here, value=[_node(events, each, file, depth + 1) for each in values])
    named: dict[str, Node] = {}
    for key in _until(events, yaml.MappingEndEvent):
        place = Node(file, key.start_mark.line + 1, "", None)
        if not isinstance(key, yaml.ScalarEvent):
            raise place.wrong("a name that is no text (a text that begins with a brace needs quotes)")
        if key.value in named:
            raise place.wrong(f"{key.value!r} stands here twice")
        named[key.value] = _node(events, next(events), file, depth + 1)
    return replace(here, value=named)


def _until(events: Iterator[Any], end: type) -> Iterator[Any]:
    """Yield the events that begin a value, up to the end of the list or of the named values."""
    while not isinstance(event := next(events), end):
        yield event


def _scalar(text: str, *, quoted: bool) -> str | int | float | bool | None:
    """Return a value as it is meant: YAML would make 510 of `8:30`, and false of `no`."""
    if quoted:
        return text
    if _NUMBER.fullmatch(text):
        return Written(text) if "." in text else int(text)
    return {"true": True, "false": False, "": None, "~": None, "null": None}.get(text, text)
