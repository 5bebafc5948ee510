"""Corrects a mistyped command to the one that was meant, keeping the typed values."""

import glob
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from dialogkit.cli import complete
from dialogkit.cli.aliases import (
    COMMANDS,
    DEVICE,
    FLAGS,
    GIVE,
    GROUPS,
    LISTS,
    VERBS,
    WITHOUT_VALUE,
    is_data,
    is_model,
    is_number,
    is_trained,
    plain,
)
from dialogkit.cli.hints import Command, Option, click_command, command_tree, verb_of
from dialogkit.config.paths import shipped_names
from dialogkit.errors import DialogKitError
from dialogkit.hints import word_of


@dataclass
class Part:
    """A flag with its value, or a word without a flag."""

    flag: str | None
    value: str | None

    @property
    def words(self) -> list[str]:
        """The words to type."""
        return [word for word in (self.flag, self.value) if word is not None]


def line_for(words: Sequence[str]) -> str | None:
    """Return the command that was most likely meant; None if nothing better is known."""
    if (found := repaired(words)) is not None:
        return _on_device(words) + _line(found)
    files = [word for word in words if is_data(word) and os.path.isfile(word)]
    endings = {Path(file).suffix for file in files}
    if len(files) < 2 or len(endings) > 1 or (ending := endings.pop()) not in _JOINED:
        return None
    others, target = [word for word in words if word not in files], f"together{ending}"
    others = [word for word in others if word not in ("--dataset", "-d")]
    found = [*others, target] if verb_of(words) == "data inspect" else [*others, "--dataset", target]
    found = repaired(found) or found
    if os.path.lexists(target) or not _is_taken(found):
        return None
    return f"awk {_JOINED[ending]} {shlex.join(files)} > {target} && {_line(found)}"


def _on_device(words: Sequence[str]) -> str:
    """Return the CUDA_VISIBLE_DEVICES prefix for the GPU that was asked for; none for the first one."""
    chosen = re.search(r"(?:^| )--?([\w-]+)[ =](?:cuda:)?([1-9]\d*)(?: |$)", " ".join(words))
    return f"CUDA_VISIBLE_DEVICES={chosen[2]} " if chosen and plain(chosen[1]) in DEVICE else ""


_JOINED = {
    **dict.fromkeys((".jsonl", ".ndjson"), "1"),
    **dict.fromkeys((".csv", ".tsv"), "'NR == 1 || FNR > 1'"),
}
"""awk programs that concatenate files: they terminate the last line and drop repeated header rows."""


def line_for_error(error: DialogKitError, words: Sequence[str]) -> str | None:
    """Return the command that was most likely meant if it corrects what the error is about, else None."""
    files = [file for word in words for file in (_matches(word) if repr(word) in error.message else [word])]
    if error.exit_code == 2 and files != list(words):
        return line_for(files) or (_line(files) if _is_taken(files) else None)
    if error.exit_code != 2 or (found := repaired(words)) is None:
        line = line_for(words) if error.exit_code == 2 else None
        return line if line and any(repr(word) in error.message for word in words) else None
    pairs = set(pairwise(found))
    changed = [words[n] for n in range(len(words)) if n and (words[n - 1], words[n]) not in pairs]
    pieces = {piece for word in changed for piece in (word, word.partition("=")[0], word[2:]) if piece}
    return _line(found) if any(repr(piece) in error.message for piece in pieces) else None


def repaired(words: Sequence[str]) -> list[str] | None:
    """Return the words of the command that was most likely meant; None if nothing better is known.

    What is returned has commands, flags and a number of words that the command line takes.
    """
    begun = _command(list(words))
    if begun is None:
        return None
    verb = verb_of(begun)
    rest = begun[len(verb.split()) :]
    if verb.startswith("launch ") and "--" in rest:
        place = rest.index("--") + 1
        inner = repaired(rest[place:])
        found = [*verb.split(), *rest[:place], *(inner or rest[place:])]
    else:
        found = [*verb.split(), *_arguments(verb, rest)] if verb else begun
    return found if found != list(words) and _is_taken(found) else None


def _line(words: Sequence[str]) -> str:
    return shlex.join(["dialogkit", *words])


def _matches(word: str) -> list[str]:
    """Return the files of a pattern that the shell left as it is, such as a quoted one; any other word itself."""
    found = sorted(glob.glob(word)) if re.search(r"[*?[]", word) and not os.path.lexists(word) else []
    return found or [word]


# Commands


def _command(words: list[str]) -> list[str] | None:
    """Return the words with the command that they mean; None if they mean none."""
    words = words[1:] if words[:1] == ["dialogkit"] else words
    if not words:
        return None
    first, *rest = words
    for flag, verb in LISTS.items():
        if any(plain(word) == flag for word in words):
            return verb.split()
    if first in ("help", "-h"):
        return [*verb_of(rest).split(), "--help"]
    if "-h" in rest and click_command(verb_of(words)) is not None:
        return [*verb_of(words).split(), "--help"]
    tree = command_tree()
    if first in tree:
        inner = tree[first]
        if rest == ["help"]:
            return [first, "--help"]
        return [first, *_verb(rest, inner)] if inner and rest else words
    if first in GROUPS and rest and (rest[0] in tree[GROUPS[first]] or rest[0] in VERBS):
        return _command([GROUPS[first], *rest])
    group = GROUPS.get(rest[0], rest[0]) if rest else ""
    if tree.get(group) and VERBS.get(first, first) in tree[group]:  # `list models`
        return [group, VERBS.get(first, first), *rest[1:]]
    groups = [name for name, inner in tree.items() if first in inner]
    if len(groups) == 1:
        return [groups[0], *words]
    if first in COMMANDS:
        return [*COMMANDS[first].split(), *rest]
    return _by_what_it_is(first, rest) or _near(words, tree)


def _verb(rest: list[str], known: Sequence[str]) -> list[str]:
    """Return the words after a group, with the command of the group that they mean."""
    first, *others = rest
    if first in known or first.startswith("-"):
        return rest
    if first == "help":
        return ["--help"]
    if VERBS.get(first) in known:
        return [VERBS[first], *others]
    near = get_close_matches(first, known, n=1)
    if near:
        return [near[0], *others]
    if "inspect" in known and is_data(first):
        return ["inspect", *rest]
    if len(known) == 1:
        return [*known, *rest]
    return ["show", *rest] if "show" in known and not others else rest


def _by_what_it_is(first: str, rest: list[str]) -> list[str] | None:
    """Return the command for a word that is no command, but a model, a run or data."""
    if first in shipped_names("models") or (first.endswith(".json") and not is_data(first)):
        return ["train", first, *rest]
    if is_data(first):
        return ["train", "--dataset", first, *rest]
    if first in complete.DATASETS:
        return ["train", "--dataset", first, *rest]
    if is_trained(first):
        return ["generate", first, *rest]
    if first.startswith("-") and plain(first) in ("model", "dataset", "epochs", "preset"):
        return ["train", first, *rest]
    return None


def _near(words: list[str], tree: Mapping[str, Any]) -> list[str] | None:
    near = get_close_matches(words[0], tree, n=1, cutoff=0.7)
    return _command([near[0], *words[1:]]) if near else None


# Flags and words


def _arguments(verb: str, words: list[str]) -> list[str]:
    """Return the words after a command, with the flags that they mean."""
    command = Command(verb)
    parts = [new for part in _parts(command, words) for new in _known(command, part)]
    return [word for part in _placed(command, parts) for word in part.words]


def _parts(command: Command, words: list[str]) -> Iterator[Part]:
    """Yield flags with their values, and other words; `--set NAME VALUE` becomes one value."""
    rest = [re.sub(r"^[\u2012-\u2015]{1,2}(?=[a-z])", "--", word) for word in words]  # of a text processor
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield from (Part(None, other) for other in rest)
            return
        if not re.match(r"--?[A-Za-z]", word):
            yield Part(None, word)
            continue
        flag, equals, value = word.partition("=")
        option = _option(command, flag)
        if option is None and (named := _option(command, f"-{flag}")) is not None:  # -epochs
            flag, option = f"-{flag}", named
        if equals:
            yield Part(flag, value)
        elif flag == "--set":
            yield Part(flag, _assignment(rest))
        elif option is not None and getattr(option.parameter, "is_flag", False):
            yield Part(flag, None)
        elif option is None and not flag.startswith("--") and _option(command, flag[:2]) is not None:
            yield Part(flag, None)  # -s5
        elif plain(flag) in GIVE or (_switch(command, flag) and not is_number(rest[:1])):
            yield Part(flag, None)
        elif rest and not re.match(r"--?[A-Za-z]", rest[0]):
            yield Part(flag, rest.pop(0))
        else:
            yield Part(flag, WITHOUT_VALUE.get(flag) if option is not None else None)


def _assignment(rest: list[str]) -> str | None:
    """Read the words after `--set` as `NAME=VALUE`, however they are written."""
    if not rest:
        return None
    name, equals, value = rest.pop(0).partition("=")
    if not equals and ":" in name:
        name, equals, value = name.partition(":")
    if not equals and rest and rest[0].startswith("="):
        equals, value = "=", rest.pop(0)[1:]
    if not value and rest and (not rest[0].startswith("-") or is_number(rest[:1])):
        value = rest.pop(0)
    if not equals and not value:
        usual = _usual(name)
        if usual is None:
            return name
        value = usual
    return f"{_setting(name) or name}={value}"


def _usual(name: str) -> str | None:
    """Return the default value of a setting as a word; None if it has none."""
    from dialogkit.config.load import default_settings

    value = default_settings().get(_setting(name) or name)
    return None if value is None else word_of(value)


def _setting(name: str, *, alike: bool = True) -> str | None:
    """Return the setting that a name means, with or without its section; `alike`: also a misspelt one."""
    from dialogkit.config.problems import known_settings, setting_of

    key = name.strip().lower().replace("-", "_")
    if key in known_settings():
        return key
    if (found := setting_of(key.rpartition(".")[2])) is not None:
        return found
    known = [setting for setting in known_settings() if "." in setting]
    near = get_close_matches(key, known, n=1, cutoff=0.8) if alike else []
    return near[0] if near else None


def _known(command: Command, part: Part) -> list[Part]:
    """Return the parts that a flag means which the command does not have; others as they are."""
    if part.flag is None:
        return [_hydra(command, part)]
    if part.flag in ("--set", "--help") or _option(command, part.flag) is not None:
        return [part]
    if not part.flag.startswith("--") and part.value is None and _option(command, part.flag[:2]) is not None:
        return [part]
    name = plain(part.flag)
    if name in GIVE and _option(command, "--set") is not None:
        flag, value = GIVE[name]
        return [Part(flag, value)]
    if name in DEVICE and command.option("runtime.device") is not None:
        return _device(command, part)
    if (option := _means(command, name)) is not None:
        return _given(option, part.value)
    flags = [flag for option in command.options for flag in option.parameter.opts if flag.startswith("--")]
    near = get_close_matches(f"--{name}", flags, n=1, cutoff=0.75)
    setting = _setting(name, alike=not near)
    if setting is not None and part.value is not None:
        option = command.option(setting)
        if option is not None and option.sets is not None:
            return [Part(option.flag, part.value)]
        return [Part("--set", f"{setting}={part.value}")] if _option(command, "--set") is not None else [part]
    return [Part(near[0], part.value)] if near else [part]


def _device(command: Command, part: Part) -> list[Part]:
    """Return what a flag for the device means: a GPU is used by itself."""
    value = (part.value or "").lower()
    if value in ("cpu", "-1", "none", "false"):
        return [Part("--no-cuda", None)]
    return [Part("--devices", "auto")] if value == "all" and _option(command, "--devices") else []


def _hydra(command: Command, part: Part) -> Part:
    """Return a word such as `train.epochs=3` as the flag that gives this setting."""
    name, equals, value = (part.value or "").partition("=")
    if not equals or _option(command, "--set") is None or os.path.exists(part.value or ""):
        return part
    if (option := command.option(name)) is not None and option.sets is None:
        return Part(None if option.is_argument else option.flag, value)
    setting = _setting(name)
    return part if setting is None else Part("--set", f"{setting}={value}")


def _means(command: Command, name: str) -> Option | None:
    """Return the option or argument that a flag of another tool means."""
    own = command.option(name.replace("-", "_"))
    if own is not None:
        return own
    metavars = [(option, str(getattr(option.parameter, "metavar", None) or "")) for option in command.options]
    for option, metavar in metavars:
        if option.is_argument and name in (metavar.lower(), f"{metavar.lower()}s"):
            return option
    found = (command.option(ours) for ours, others in FLAGS.items() if name in others)
    return next((option for option in found if option is not None), None)


def _given(option: Option, value: str | None) -> list[Part]:
    if option.is_argument:
        return [Part(None, value)] if value is not None else []
    if getattr(option.parameter, "is_flag", False):
        return [] if value in ("false", "False", "0") else [Part(option.flag, None)]
    if value is None and option.flag in WITHOUT_VALUE:
        value = WITHOUT_VALUE[option.flag]
    return [Part(option.flag, value)]


def _placed(command: Command, parts: list[Part]) -> list[Part]:
    """Return the parts with each word where it belongs: data to `--dataset`, a preset to `--preset`, and so on."""
    option, words = _option(command, "--dataset"), [part for part in parts if part.flag is None]
    if option is not None:
        parts = _with_data(parts, [part for part in words if is_data(part.value or "")])
        words = [part for part in parts if part.flag is None]
    if _option(command, "--preset") is not None and len(words) > 1:
        for part in [part for part in words if part.value in shipped_names("presets")]:
            part.flag = "--preset"
    if command.verb == "generate":
        named = words[:1] if words and is_model(words[0].value or "") else []
        texts = [part for part in words if part not in named]
        if len(words) > 1 and texts:
            prompt = Part("--prompt", " ".join(part.value or "" for part in texts))
            parts = [*(part for part in parts if part not in texts), prompt]
    return parts


def _with_data(parts: list[Part], found: list[Part]) -> list[Part]:
    """Return the parts with words that are data as values of `--dataset`."""
    if not found:
        return parts
    given = [part for part in parts if part.flag in ("--dataset", "-d")]
    others = [part for part in parts if part not in given and part not in found]
    files = [*given, *found]
    if len(files) == 1:
        return [*others, Part("--dataset", files[0].value)]
    together = _together(files)
    if len(together) == 1:
        streamed = [] if any(part.value == "data.streaming=true" for part in others) else [_STREAMED]
        return [*others, Part("--dataset", together[0].value), *streamed]
    return parts


_STREAMED = Part("--set", "data.streaming=true")


def _together(files: list[Part]) -> list[Part]:
    """Return the folder of several data files if a stream of it reads these files and no other."""
    from dialogkit.data.open_files import STREAMED, suffix_of

    paths = {Path(part.value or "") for part in files}
    folders = {path.parent for path in paths}
    if len(folders) != 1:
        return files
    folder = folders.pop()
    streamed = {path for path in folder.iterdir() if suffix_of(path) in STREAMED} if folder.is_dir() else set()
    return [Part(None, str(folder))] if paths == streamed else files


# What words are


def _option(command: Command, flag: str) -> Option | None:
    """Return the option with exactly this flag."""
    return next((option for option in command.options if flag in option.parameter.opts), None)


def _switch(command: Command, flag: str) -> bool:
    """Return whether a flag that the command does not have means one without a value."""
    option = _means(command, plain(flag)) if _option(command, flag) is None else None
    return option is not None and bool(getattr(option.parameter, "is_flag", False))


def _is_taken(words: list[str]) -> bool:
    """Return whether a command takes these words, whatever it then makes of their values."""
    from typer.exceptions import TyperException

    if not {"--help", "--version"}.isdisjoint(words):  # which print at once
        return True
    verb = verb_of(words)
    command = click_command(verb)
    if getattr(command, "callback", None) is None or hasattr(command, "commands"):
        return False
    try:
        command.make_context(f"dialogkit {verb}", list(words[len(verb.split()) :]))
    except TyperException:
        return False
    return True
