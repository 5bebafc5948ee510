"""Tests use what a module offers: no test reaches a name of the package that begins with an underscore."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PRIVATE = re.compile(r"_[a-z]\w*")
OF_OTHERS = {"_save_checkpoint", "_repr_html_", "_fields"}
"""Names that transformers' Trainer, notebooks and named tuples give."""


@cache
def texts(folder: str) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / folder).rglob("*.py"))}


@cache
def private_names_of_the_package() -> set[str]:
    return set[str]().union(*(defined(ast.parse(text)) for text in texts("dialogkit").values())) - OF_OTHERS


def defined(tree: ast.Module) -> set[str]:
    """Return the private names of functions, classes, variables and attributes that are made in a module."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if PRIVATE.fullmatch(name)}


def reached(tree: ast.Module) -> set[str]:
    """Return the private names that are imported or patched, or are attributes, also in the code of a text."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=imported) if module.startswith("dialogkit"):
                names |= {alias.name for alias in imported}
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[_, ast.Constant(value=str(name)), *_]):
                names.add(name)
            case ast.Constant(value=str(text)):
                names |= {found.removeprefix(".") for found in re.findall(r"\._[a-z]\w*", text)}
    return {name for name in names if PRIVATE.fullmatch(name)}


@pytest.mark.parametrize("folder", ["tests", "docs", "benchmarks"])
def test_only_the_package_reaches_its_private_names(folder: str) -> None:
    names, found = private_names_of_the_package(), {}
    for path, text in texts(folder).items():
        if not names.isdisjoint(re.findall(r"\b_[a-z]\w*", text)):  # most files need not be parsed
            tree = ast.parse(text)
            found[str(path)] = reached(tree) & (names - defined(tree))
    assert {name: reached for name, reached in found.items() if reached} == {}
