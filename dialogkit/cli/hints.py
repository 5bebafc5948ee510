"""Renders hints and messages for the command that was typed: settings become its flags, verbs become commands."""

import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.cli.options import Sets, sets_of
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.hints import Call, Change, Either, Hint, Shell, Then, Through, word_of

if TYPE_CHECKING:
    from dialogkit.tracking.run_dir import RunDir

_typed: Sequence[str] = ()


def remember(words: Sequence[str]) -> None:
    """Keep the words that were typed after `dialogkit`."""
    global _typed
    _typed = tuple(words)


def typed() -> list[str]:
    """Return the command that was typed."""
    return ["dialogkit", *_typed]


def render(hint: Hint | None) -> str | None:
    """Render a hint as a command; changes that the command has no flag for become prose."""
    return None if hint is None else _render(hint) or str(hint)


def _render(hint: Hint) -> str | None:
    """Render a hint as a command; None if the typed command cannot take the change."""
    match hint:
        case Change():
            return _change(hint.settings)
        case Call() if hint.verb.startswith("chat "):
            return " ".join([f"/{hint.verb.removeprefix('chat ')}", *hint.arguments])  # is typed in a dialog
        case Call():
            return _call(Command(hint.verb), hint.arguments, hint.options)
        case Shell():
            return hint.command
        case Either():
            return ", or: ".join(_alternatives(hint)) or None
        case Then():
            first, then = _render(hint.first), hint.second
            # The first hint rewrites the data, so what was typed for the old data fits the new.
            second = _change(then.settings, keeps=True) if isinstance(then, Change) else _render(then)
            if first and second:
                second = _whole(second)
            return f"{first} && {second}" if first and second else first
        case Through():
            return f"{hint.launcher} {_render(hint.call)}"
        case _:
            return hint


def _alternatives(hint: Either) -> list[str]:
    """Return the hints that the typed command can take; if one change of it is a whole command, all are."""
    rendered = {text: isinstance(each, Change) for each in hint.hints if (text := _render(each))}
    whole = any(is_change and text.startswith("dialogkit ") for text, is_change in rendered.items())
    return [_whole(text) if whole and is_change else text for text, is_change in rendered.items()]


def _whole(words: str) -> str:
    """Return the typed command with flags that a hint adds; a command as it is."""
    if words.startswith("dialogkit ") or not _typed:
        return words
    flags = {word for word in shlex.split(words) if word.startswith("--") and word != "--set"}
    for command in _typed_commands():
        flags.update(*(option.parameter.opts for option in command.options if option.flag in flags))
    return f"dialogkit {shlex.join(without(_typed, flags))} {words}"


def in_flags(message: str, setting: str) -> str:
    """Return a message that begins with a setting in terms of the flag with which the setting was typed.

    A setting that was typed otherwise, by `--set` or in a file, keeps its name.
    """
    place = re.sub(r"\.\d+$", "", setting)  # each word of an option that repeats has a number
    for command in _typed_commands():
        option = command.option(place)
        if option is not None and message.startswith(f"{setting}:") and (option.sets is None or option.was_typed):
            return f"{option.flag}{message.removeprefix(setting)}"
    return message


def name_of(setting: str) -> str:
    """Return the flag that gives a setting to the typed command, or the setting's name."""
    options = (command.option(setting) for command in _typed_commands())
    return next((option.flag for option in options if option is not None), setting)


class Option:
    """An option of a command, or one of its arguments, and the setting that it gives."""

    def __init__(self, parameter: Any, sets: Sets | None) -> None:
        self.parameter = parameter
        self.sets = sets

    @property
    def is_argument(self) -> bool:
        """Whether it is a word of its own, without a flag."""
        return bool(self.parameter.param_type_name == "argument")

    @property
    def flag(self) -> str:
        """The long form."""
        return str(next((flag for flag in self.parameter.opts if flag.startswith("--")), self.parameter.opts[0]))

    @property
    def was_typed(self) -> bool:
        """Whether it is among the words that were typed."""
        short = tuple(flag for flag in self.parameter.opts if not flag.startswith("--"))
        return any(
            word.split("=")[0] == self.flag or (word.startswith(short) and not word.startswith("--"))
            for word in _typed
        )

    def gives(self, name: str, value: Any) -> bool:
        """Return whether it can give a value, or for `...` any value, to a setting or a parameter of that name."""
        if self.sets is not None and self.sets.setting == name:
            return value is ... or self.sets.to in (None, value)
        return name in (self.parameter.name, self.flag.removeprefix("--").replace("-", "_"))

    def words(self, value: Any) -> list[str]:
        """Return the words that give a value."""
        if getattr(self.parameter, "is_flag", False):
            return [self.flag] if value is not False or self.sets is not None else []
        values = value if isinstance(value, list | tuple) else [value]
        write = self.sets.write if self.sets is not None else word_of
        written = [shlex.quote(item if isinstance(item, str) else write(item)) for item in values]
        return written if self.is_argument else [word for item in written for word in (self.flag, item)]


class Command:
    """A command of the command line by its verb, such as `runs show`."""

    def __init__(self, verb: str) -> None:
        self.verb = verb

    @cached_property
    def options(self) -> list[Option]:
        """Its options and arguments; of a group or an unknown verb none."""
        command = click_command(self.verb)
        if getattr(command, "callback", None) is None:
            return []
        sets = sets_of(command.callback)
        return [Option(parameter, sets.get(parameter.name)) for parameter in command.params]

    def option(self, name: str, value: Any = ...) -> Option | None:
        """Return the option that gives a value, or for `...` any value, to a setting or a parameter."""
        return next((option for option in self.options if option.gives(name, value)), None)

    def words(self, name: str, value: Any, *, by_flag: bool = True) -> list[str] | None:
        """Return the words that give a setting, by its flag or `--set`; None if the command takes neither."""
        option = self.option(name, value)
        if option is not None and (by_flag or option.sets is None):
            return option.words(value)
        if "." in name and self.option("sets") is not None:
            return ["--set", shlex.quote(f"{name}={_as_json(value)}")]
        return None


def _change(settings: Mapping[str, Any], *, keeps: bool = False) -> str | None:
    """Return what to add to the typed command; the whole command where an argument of it has to change.

    With `keeps`, that command has all else that was typed.
    """
    words, begins, of_job = [], [], {}
    for name, value in settings.items():
        # A flag does not override what the typed command gives by `--set`.
        by_flag = not any(word.removeprefix("--set=").startswith(f"{name}=") for word in _typed)
        found = ((command, command.words(name, value, by_flag=by_flag)) for command in _typed_commands())
        command, given = next(((each, given) for each, given in found if given is not None), (None, None))
        if command is None or given is None:
            return None
        option = command.option(name, value)
        if option is not None and option.is_argument:
            begins = _with_argument(command, given) if keeps else ["dialogkit", command.verb, *given]
        elif command.verb.startswith("launch ") and given[0] not in _of_training():
            of_job[given[0]] = given
        else:
            words += given
    return " ".join([*([job_line(of_job)] if of_job else begins), *words])


def _with_argument(command: Command, given: Sequence[str]) -> list[str]:
    """Return the typed command with other words in place of its argument."""
    begin = at = len(command.verb.split())
    while at < len(_typed) and _typed[at].startswith("-"):
        option = next((each for each in command.options if _typed[at] in each.parameter.opts), None)
        at += 1 if option is None or getattr(option.parameter, "is_flag", False) else 2
    before, behind = shlex.join(_typed[begin:at]), shlex.join(_typed[at + 1 :])
    return ["dialogkit", command.verb, *filter(None, [before]), *given, *filter(None, [behind])]


def _of_training() -> set[str]:
    """Return the flags that were typed for the training of a job."""
    behind = _typed[_typed.index("train") :] if "train" in _typed else []
    return {word.partition("=")[0] for word in behind if word.startswith("-")}


def job_line(
    options: Mapping[str, Sequence[str]], training: Sequence[str] | None = None, *, misplaced: Collection[str] = ()
) -> str:
    """Return the typed `launch` with these options, by their flags, before the training, which may be another."""
    end = next((_typed.index(word) for word in ("--", "train") if word in _typed), len(_typed))
    of_job = list(_typed[:end])
    if end == len(_typed):  # the training's words stand among those of the job, behind `launch slurm`
        of_job[2:] = [word for word in of_job[2:] if word not in misplaced]
    before = shlex.join(["dialogkit", *without(of_job, options)])
    words = [word for word in _typed[end:] if word != "--"] if training is None else training
    return " ".join([before, *chain.from_iterable(options.values()), "--", shlex.join(words)])


def without(words: Sequence[str], flags: Collection[str], *, value: str = "") -> list[str]:
    """Return words without some flags, each of which has a value, or only those whose value begins like this."""
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, given = word.partition("=")
        if flag not in flags or not (given if equals else "".join(rest[:1])).startswith(value):
            kept.append(word)
        elif not equals:
            rest = rest[1:]
    return kept


def _call(command: Command, arguments: Iterable[str], options: Mapping[str, Any]) -> str:
    """Return a command; an option that it does not have, or whose value is its default, is left out."""
    options = {**options, **_typed_folder(command, options)}
    given = [(name, value) for name, value in options.items() if value is not None]
    flags = [
        word
        for name, value in given
        if name != "help" and not _is_default(command.option(name, value), value)
        for word in command.words(name, value) or []
    ]
    flags += ["--help"] if options.get("help") else []
    words = [shlex.quote(argument) for argument in arguments]
    if command.verb.startswith("launch ") or any(word.startswith("-") for word in words):
        words = [*flags, "--", *words] if words else flags
    else:
        words = [*words, *flags]
    return " ".join(["dialogkit", command.verb, *words])


def _typed_folder(command: Command, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the folder of models and runs that was typed, if a command takes it and the hint names none."""
    if command.option("output_dir") is None or not {"output_dir", "runtime.output_dir"}.isdisjoint(options):
        return {}
    words = [word.removeprefix("--set=") for word in _typed]
    assigned = (word.partition("=") for word in words)
    given = [
        value for name, equals, value in assigned if equals and name in ("--output-dir", "runtime.output_dir")
    ]
    given += [value for flag, value in pairwise(words) if flag == "--output-dir"]
    return {"output_dir": given[-1]} if given else {}


def _is_default(option: Option | None, value: Any) -> bool:
    """Return whether an option need not be given to have a value."""
    if option is None:
        return False
    if option.flag == "--output-dir":
        return Path(str(value)) == Path(DEFAULT_OUTPUT)
    turns_on = option.sets is not None and option.sets.to is not None  # its default says nothing of the setting
    return bool(option.parameter.default == value and not option.is_argument and not turns_on)


def _as_json(value: Any) -> str:
    """Return a value as `--set` reads it: JSON, or text that is no JSON."""
    if not isinstance(value, str | Path):
        return json.dumps(value)
    try:
        json.loads(str(value))
    except ValueError:
        return str(value)
    return json.dumps(str(value))


def _typed_commands() -> list[Command]:
    """Return the command that was typed, and behind `launch` the training that it launches."""
    verb = verb_of(_typed)
    return [Command(verb), Command("train")] if verb.startswith("launch ") else [Command(verb)]


def verb_of(words: Sequence[str]) -> str:
    """Return the command with which words begin, such as `runs list`; an empty text for none."""
    command, path = command_line(), []
    for word in words:
        if (command := getattr(command, "commands", {}).get(word)) is None:
            break
        path.append(word)
    return " ".join(path)


def click_command(verb: str) -> Any:
    """Return a command as Click has it; None for a verb that does not exist."""
    command = command_line()
    for word in verb.split():
        command = getattr(command, "commands", {}).get(word)
    return command


def command_tree() -> dict[str, tuple[str, ...]]:
    """Return the commands, and for each group the commands inside it."""
    return {name: tuple(getattr(each, "commands", ())) for name, each in command_line().commands.items()}


@cache
def command_line() -> Any:
    """Return the command `dialogkit` as Click has it; it takes long to make."""
    import typer.main

    from dialogkit.cli.app import app

    return typer.main.get_command(app)


def output_option(output: str | Path) -> str:
    """Return the end of a command for this folder of models and runs; empty for the default folder."""
    return "" if Path(output) == Path(DEFAULT_OUTPUT) else f" --output-dir {shlex.quote(str(output))}"


def run_argument(run: "RunDir") -> str:
    """Return a run as it is typed in a command: its name, or its path if the name would not be found."""
    from dialogkit.config.model import NAME_PATTERN

    if run.output is None or not re.match(NAME_PATTERN, run.name):
        return shlex.quote(str(run.path))
    return f"{run.name}{output_option(run.output)}"
