"""What to do about an error, independent of how the user gives commands.

An error carries one of these. The command line renders it as flags of the command that was typed
(`dialogkit.cli.hints`); everything below it speaks of verbs and settings alone.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Change:
    """Repeat the request with these settings, by their dotted names: `Change({"train.batch_size": 4})`.

    Options of a verb that are no settings go by the name of their parameter: `Change({"force": True})`.
    """

    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return "set " + ", ".join(f"{name}={word_of(value)}" for name, value in self.settings.items())


@dataclass(frozen=True, init=False)
class Call:
    """Call a verb: `Call("runs show", "my-run")`, `Call("train", "custom-tiny", preset="test")`.

    Settings by dotted names go into `settings`: `Call("train", settings={"model.name": "mine"})`.
    """

    verb: str
    arguments: tuple[str, ...]
    options: Mapping[str, Any]

    def __init__(
        self, verb: str, *arguments: object, settings: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        object.__setattr__(self, "verb", verb)
        object.__setattr__(self, "arguments", tuple(map(str, arguments)))
        object.__setattr__(self, "options", {**options, **(settings or {})})

    def __str__(self) -> str:
        words = [self.verb, *map(shlex.quote, self.arguments)]
        return " ".join([*words, *(f"{name}={word_of(value)}" for name, value in self.options.items())])


@dataclass(frozen=True)
class Shell:
    """Run a command of another program: `Shell("pip install peft")`. Its words are quoted already."""

    command: str

    def __str__(self) -> str:
        return self.command


@dataclass(frozen=True, init=False)
class Either:
    """Any one of several hints, the best first; plain text is advice."""

    hints: "tuple[Hint, ...]"

    def __init__(self, *hints: "Hint") -> None:
        object.__setattr__(self, "hints", hints)

    def __str__(self) -> str:
        return ", or: ".join(map(str, self.hints))


@dataclass(frozen=True)
class Then:
    """One hint after another."""

    first: "Hint"
    second: "Hint"

    def __str__(self) -> str:
        return f"{self.first}, then: {self.second}"


@dataclass(frozen=True)
class Through:
    """A call that another program starts: `Through("torchrun --nproc-per-node 2 -m", Call("train"))`."""

    launcher: str
    call: Call

    def __str__(self) -> str:
        return f"{self.launcher} {self.call}"


Hint = Change | Call | Shell | Either | Then | Through | str
"""Plain text is advice, such as `rename the columns`; it names no command and no flag."""


def word_of(value: Any) -> str:
    """Return the word that gives a value to an option: text as it is, all else as JSON."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
