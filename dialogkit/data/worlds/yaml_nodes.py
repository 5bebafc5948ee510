"""Reads YAML with the line of each value, so that an error can name it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

from dialogkit.data.hints import FIX_WORLD
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
        file: name of the file.
        line: its line, from 1.
        where: its place in words, such as `exchange 2`; empty at the top.
        value: text, number, truth value, None, a list of nodes, or a dict of nodes by their names.
    """

    file: str
    line: int
    where: str
    value: Any

    def wrong(self, problem: str) -> DataError:
        """Return the error of this value."""
        where = f"{self.where}: " if self.where else ""
        return DataError(f"{self.file}:{self.line}: {where}{problem}", hint=FIX_WORLD)

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
                return "named values"
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


def _joined(where: str, name: str) -> str:
    return f"{where}, {name}" if where else name


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of a world. Raises: DataError if it cannot be read, or is too long."""
    try:
        content = read_small(path, _LONGEST)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {os_reason(error)}", hint=FIX_WORLD) from None
    if len(content) > _LONGEST:
        raise DataError(f"{path.name} is longer than {_LONGEST // 2**20} MiB", hint=FIX_WORLD)
    return content


def read_yaml(path: Path) -> Node:
    """Return the content of a YAML or JSON file. Raises: DataError with the line."""
    name, content = path.name, read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
        loader = _LOADER(text)
        try:
            root = loader.get_single_node()
            if root is None:
                raise DataError(f"{name} is empty", hint=FIX_WORLD)
            return _node(root, name, set(), 0)
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text", hint=FIX_WORLD) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise DataError(
            f"{name}{line}: not valid YAML: {error.problem or error.context}", hint=FIX_WORLD
        ) from None
    except yaml.YAMLError as error:  # a control character
        raise DataError(f"{name}: not valid YAML: {str(error).splitlines()[0]}", hint=FIX_WORLD) from None
    except RecursionError:
        raise DataError(f"{name}: not valid YAML: nested too deep", hint=FIX_WORLD) from None


def _node(node: Any, file: str, seen: set[int], depth: int) -> Node:
    line = node.start_mark.line + 1
    here = Node(file, line, "", None)
    if id(node) in seen:
        raise here.wrong("an alias; write the value again")
    seen.add(id(node))
    if depth > _DEEPEST:
        raise here.wrong("nested too deep")
    if isinstance(node, yaml.SequenceNode):
        value: Any = [_node(each, file, seen, depth + 1) for each in node.value]
    elif isinstance(node, yaml.MappingNode):
        value = dict(_pairs(node, file, seen, depth))
    else:
        value = _scalar(node.value, quoted=node.style in _QUOTES)
    return Node(file, line, "", value)


def _scalar(text: str, *, quoted: bool) -> str | int | float | bool | None:
    """Return a value as it is meant: YAML would make 510 of `8:30`, and false of `no`."""
    if quoted:
        return text
    if _NUMBER.fullmatch(text):
        return Written(text) if "." in text else int(text)
    return {"true": True, "false": False, "": None, "~": None, "null": None}.get(text, text)


def _pairs(node: Any, file: str, seen: set[int], depth: int) -> Iterator[tuple[str, Node]]:
    names: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if not isinstance(key, yaml.ScalarNode):
            raise Node(file, key.start_mark.line + 1, "", None).wrong("a name that is no text")
        if name in names:
            raise Node(file, key.start_mark.line + 1, "", None).wrong(f"{name!r} stands here twice")
        names.add(name)
        yield name, _node(value, file, seen, depth + 1)
