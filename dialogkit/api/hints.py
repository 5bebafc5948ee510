"""Renders hints in Python: settings become overrides, verbs become calls."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dialogkit.api.shell import is_notebook
from dialogkit.cli import hints as of_commands
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.hints import Call, Change, Either, Hint, Shell, Then

_VERBS = {
    "generate": ("generate", {"prompt": "prompts", "output_dir": "output"}),
    "evaluate": ("evaluate", {"output_dir": "output", "data.dataset": "dataset"}),
    "export": ("export", {"output": "folder", "output_dir": "output"}),
    "push": ("push", {"output_dir": "output"}),
    "data inspect": ("inspect_data", {"data.dataset": "dataset"}),
    "plan": ("plan", {"train.budget_s": "budget_s", "data.dataset": "dataset"}),
    "models list": ("list_models", {"output_dir": "output"}),
}
"""Functions that do what a verb does, with the names of their parameters where they differ from its options."""


def render(hint: Hint | None, called: Collection[str] = ()) -> str:
    """Return a hint as Python, or as a command of the shell where no function does the same.

    Args:
        hint: what to do.
        called: the functions in which the error arose: some have parameters for what are settings elsewhere.
    """
    match hint:
        case None:
            return ""
        case Change():
            names = {k: v for function, given in _VERBS.values() if function in called for k, v in given.items()}
            return _change({names.get(name, name): value for name, value in hint.settings.items()})
        case Call(verb="train"):
            return _train(hint)
        case Call(verb=verb) if verb in _VERBS and not hint.options.get("help"):
            return _call(hint)
        case Either():
            return ", or: ".join(render(each, called) for each in hint.hints)
        case Then():
            return f"{render(hint.first, called)}, then: {render(hint.second, called)}"
        case str():
            return hint
        case Shell():
            return _in_shell(hint.command)
        case _:
            return _in_shell(of_commands.render(hint) or str(hint))


def _in_shell(command: str) -> str:
    """Return a command as it is typed here: a notebook passes a line with a mark to the shell."""
    return f"!{command}" if is_notebook() else command


def _value(value: Any) -> str:
    """Return a value as Python; a path as text."""
    return _text(str(value)) if isinstance(value, str | Path) else repr(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _settings(settings: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{_text(name)}: {_value(value)}" for name, value in settings.items()) + "}"


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings among options, by their dotted names, and the other options."""
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("output_dir") is not None and str(given["output_dir"]) == DEFAULT_OUTPUT:
        del given["output_dir"]
    settings = {k: v for k, v in given.items() if "." in k or k == "name"}  # a run's name is in no section
    return settings, {k: v for k, v in given.items() if k not in settings}


def _change(settings: Mapping[str, Any]) -> str:
    """Return a change as the arguments that make it."""
    dotted, others = _split(settings)
    parts = [f"overrides={_settings(dotted)}"] if dotted else []
    return ", ".join([*parts, *_keywords(others)])


def _keywords(options: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_value(value)}" for name, value in options.items()]


def _call(hint: Call) -> str:
    """Return the call of a function other than `train`."""
    function, names = _VERBS[hint.verb]
    settings, others = _split(hint.options)
    options = {names.get(name, name): value for name, value in {**settings, **others}.items()}
    if any("." in name for name in options):
        return _in_shell(of_commands.render(hint) or str(hint))
    arguments = list(map(_text, hint.arguments))
    if len(arguments) > 1 and hint.verb != "push":
        arguments = [f"[{', '.join(arguments)}]"]
    if arguments and "prompts" in options:
        arguments.append(_value(options.pop("prompts")))
    return f"{function}({', '.join([*arguments, *_keywords(options)])})"


_OF_SETTINGS = {
    "dataset": "data.dataset",
    "method": "train.method",
    "fit_batch": "train.fit_batch",
    "name": "name",
    "output_dir": "runtime.output_dir",
}
"""Options of `train` by the settings that they give, where Python has the setting alone."""


def _train(hint: Call) -> str:
    """Return the call that trains or resumes, with the settings that it needs."""
    settings, others = _split(hint.options)
    if "resume" in others:
        run, output = others.pop("resume"), others.pop("output_dir", None)
        if others.keys() <= {"force"}:
            others |= {"output": output} if output else {}
            changes = [f"changes={_settings(settings)}"] if settings else []
            return f"resume({', '.join([_text(str(run)), *changes, *_keywords(others)])})"
        return _in_shell(of_commands.render(hint) or str(hint))
    start = others.pop("from", None)
    settings |= {_OF_SETTINGS[name]: others.pop(name) for name in list(others) if name in _OF_SETTINGS}
    if others.keys() - {"preset"}:
        return _in_shell(of_commands.render(hint) or str(hint))
    model = _text(hint.arguments[0]) if hint.arguments else "..."
    parts = [model, *_keywords(others), *([f"overrides={_settings(settings)}"] if settings else [])]
    config = "config" if start is not None and parts == ["..."] else f"load_run_config({', '.join(parts)})"
    return f"train({config}{'' if start is None else f', from_run={_text(str(start))}'})"
