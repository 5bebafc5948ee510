"""Renders hints as the command line has them: flags of the command that was typed, or the next command."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dialogkit.hints import Call, Change, Either, Hint, Shell
from dialogkit.text import duration_word

FLAGS = {
    "data.samples": "--samples",
    "data.dataset": "--dataset",
    "data.max_bad_rows": "--max-bad-rows",
    "tracking.project": "--project",
    "tracking.wandb": "--wandb",
    "tracking.tags": "--tag",
    "tracking.trackers": "--tracker",
    "tracking.log_model": "--log-model",
    "name": "--name",
    "runtime.output_dir": "--output-dir",
    "runtime.devices": "--devices",
    "train.budget_s": "--budget",
    "train.fit_batch": "--fit-batch",
    "train.method": "--method",
}
"""The flags of settings whose names differ, in every command that has them."""

DURATIONS = {"--budget", "--older-than"}
"""Flags whose values are times; their settings are seconds."""

_typed: Sequence[str] = ()


def remember(words: Sequence[str]) -> None:
    """Keep the words that were typed: a hint that changes settings is given in flags of their command."""
    global _typed
    _typed = tuple(words)


def render(hint: Hint | None) -> str | None:
    """Return a hint as what to type; None for none."""
    match hint:
        case None:
            return None
        case Change():
            return _flags(_command_of(_typed), hint.settings)
        case Call():
            words = [shlex.quote(word) for word in hint.arguments]
            flags = list(filter(None, [_flags(hint.verb, hint.options)]))
            # Behind the flags of a launcher follow the words of the training that it launches.
            words = [*flags, "--", *words] if hint.verb.startswith("launch ") else [*words, *flags]
            return " ".join(["dialogkit", *hint.verb.split(), *words])
        case Shell():
            return hint.command
        case Either():
            return ", or: ".join(filter(None, map(render, hint.hints)))
        case _:
            return hint


def _command_of(words: Sequence[str]) -> str:
    """Return the command with which words begin, such as `runs list`."""
    command, path = _root(), []
    for word in words:
        if (command := getattr(command, "commands", {}).get(word)) is None:
            break
        path.append(word)
    return " ".join(path)


def _root() -> Any:
    import typer.main

    from dialogkit.cli.app import app

    return typer.main.get_command(app)


def _options_of(verb: str) -> dict[str, Any]:
    """Return the options of a command by each of their flags."""
    command = _root()
    for word in verb.split():
        command = getattr(command, "commands", {}).get(word)
    found = getattr(command, "params", [])
    return {flag: option for option in found for flag in (*option.opts, *option.secondary_opts)}


def _flags(verb: str, settings: Any) -> str:
    options = _options_of(verb)
    return " ".join(word for name, value in settings.items() for word in _words(options, name, value))


def _words(options: dict[str, Any], name: str, value: Any) -> Iterator[str]:
    """Yield the words that give one setting to a command with these options."""
    last = name.rpartition(".")[2].replace("_", "-")
    if name == "help":  # every command has it, and none lists it among its options
        yield "--help"
        return
    flag = next((flag for flag in (FLAGS.get(name), f"--{last}") if flag in options), None)
    if flag is None and value is False and f"--no-{last}" in options:
        yield f"--no-{last}"
    elif flag is None and "--set" in options and "." in name:
        yield f"--set {shlex.quote(f'{name}={_plain(value)}')}"
    elif flag is None:
        yield f"{name}={_plain(value)}"
    elif value is True and options[flag].is_flag:
        yield flag
    elif isinstance(value, list | tuple):
        for item in value:
            yield f"{flag} {shlex.quote(_plain(item))}"
    elif flag in DURATIONS and isinstance(value, int | float):
        yield f"{flag} {duration_word(value)}"
    else:
        yield f"{flag} {shlex.quote(_plain(value))}"


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
