"""Finds the places in the package that make a hint, and records which of them made the hints that were printed."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import dialogkit
from dialogkit import errors, hints
from dialogkit.cli import hints as rendering
from dialogkit.cli import output

PACKAGE = Path(dialogkit.__file__).resolve().parent
KINDS = (hints.Change, hints.Call, hints.Shell, hints.Either, hints.Then, hints.Through)
_NAMES = {kind.__name__ for kind in KINDS}


class Site(NamedTuple):
    """A place that makes a hint.

    Attributes:
        name: the file, the functions around the place, and its number there: `services/chat.py:Chat/save:2`.
        call: the call that makes the hint, or that is given it as `hint=`.
        file: the path of the file.
        at_import: whether it is made when its module is imported.
    """

    name: str
    call: ast.Call
    file: str
    at_import: bool


@cache
def sites() -> dict[tuple[Any, ...], Site]:
    """Return the places that make a hint, by a class of hints or by words as `hint=`, by where they are.

    A hint inside another belongs to the outer one, and a name that is passed as `hint=` to where it was made.
    """
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "cli/hints.py":  # it only renders
            continue
        counts: dict[str, int] = {}
        for name, call, at_import in _calls(ast.parse(path.read_text(encoding="utf-8")), (), None):
            counts[name] = counts.get(name, 0) + 1
            number = f":{counts[name]}" if counts[name] > 1 else ""
            site = Site(f"{path.relative_to(PACKAGE)}:{name}{number}", call, str(path), at_import)
            found[str(path), call.lineno, call.end_lineno, call.col_offset, call.end_col_offset] = site
    return found


def _calls(
    node: ast.AST, inside: tuple[str, ...], function: ast.FunctionDef | None
) -> Iterator[tuple[str, ast.Call, bool]]:
    """Yield the calls below a node that are such places, with the functions and classes around them."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        inside = (*inside, node.name)
        function = node if isinstance(node, ast.FunctionDef) else function
    if isinstance(node, ast.Call):
        if _is_hint(node):
            yield "/".join(inside), node, function is None
            return
        if any(keyword.arg == "hint" and _is_own(keyword.value, function) for keyword in node.keywords):
            yield "/".join(inside), node, False
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, inside, function)


def _is_hint(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NAMES


def _is_own(value: ast.expr, function: ast.FunctionDef | None) -> bool:
    """Return whether what is passed as `hint=` is no hint that another place makes."""
    if isinstance(value, ast.Name) and value.id.islower() and function is not None:
        return not any(
            _is_hint(node) or (isinstance(node, ast.arg) and node.arg == value.id) for node in ast.walk(function)
        )
    if isinstance(value, ast.Attribute) or (isinstance(value, ast.Constant) and value.value is None):
        return False
    return not any(map(_is_hint, ast.walk(value)))


class Recorder:
    """Notes the places that made what was printed as a hint.

    Attributes:
        printed: the names of these places.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.printed: set[str] = set()
        for kind in KINDS:
            monkeypatch.setattr(kind, "__init__", _marking(kind.__init__))
        monkeypatch.setattr(errors.DialogKitError, "__init__", _noting(errors.DialogKitError.__init__))
        render, print_error = rendering.render, output.Output.error

        def rendered(hint: Any) -> str | None:
            self._note(hint)
            self.printed |= _being_called(sys._getframe(1))
            return render(hint)

        def printed(out: output.Output, error: errors.DialogKitError) -> None:
            own, places = getattr(error, "made", (None, set()))
            self.printed |= places if own is error.hint else set()
            print_error(out, error)

        monkeypatch.setattr(rendering, "render", rendered)
        monkeypatch.setattr(output.Output, "error", printed)

    def _note(self, hint: Any) -> None:
        if not isinstance(hint, KINDS):
            return
        self.printed |= {getattr(hint, "made", None) or _made_at_import(hint)} - {""}
        for inner in (
            *getattr(hint, "hints", ()),
            *(getattr(hint, name, None) for name in ("first", "second", "call")),
        ):
            self._note(inner)


def _marking(original: Any) -> Any:
    def init(hint: Any, *args: Any, **options: Any) -> None:
        original(hint, *args, **options)
        object.__setattr__(hint, "made", _site_of(sys._getframe(1)))

    return init


def _noting(original: Any) -> Any:
    def init(error: Any, *args: Any, **options: Any) -> None:
        original(error, *args, **options)
        error.made = (error.hint, _being_called(sys._getframe(1)))

    return init


def _site_of(frame: FrameType) -> str:
    """Return the name of the place whose call a frame is in; an empty text for none."""
    first, last, *columns = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    site = sites().get((frame.f_code.co_filename, first, last, *columns))
    return site.name if site else ""


def _being_called(frame: FrameType | None) -> set[str]:
    """Return the places whose calls are not over."""
    found = set()
    while frame is not None:
        if frame.f_code.co_filename.startswith(str(PACKAGE)):
            found.add(_site_of(frame))
        frame = frame.f_back
    return found - {""}


def _made_at_import(hint: Any) -> str:
    for site in sites().values():
        module = ".".join(Path(site.file).relative_to(PACKAGE.parent).with_suffix("").parts)
        if site.at_import and module in sys.modules:
            made = eval(compile(ast.Expression(site.call), site.file, "eval"), vars(sys.modules[module]))
            if made == hint:
                return site.name
    return ""
