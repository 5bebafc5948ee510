"""What the shell offers after the Tab key. Light, as it runs at each key press: it opens no run and no model."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from dialogkit.config.paths import DEFAULT_OUTPUT, NEWEST, shipped_names, shipped_schema

DATASETS = ("starter", "smalltalk", "smalltalk-core", "alpaca-gpt4")
"""Datasets with a short name; their module takes too long to import here."""


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Return the completion of an option that takes one of a few values."""

    def complete(incomplete: str) -> list[str]:
        return list(_begun(values, incomplete))

    return complete


def presets(incomplete: str) -> list[str]:
    """Return the presets."""
    return list(_begun(shipped_names("presets"), incomplete))


def base_models(incomplete: str) -> list[str]:
    """Return what training can start from: the catalogue, and model files and folders."""
    return [*_begun(shipped_names("models"), incomplete), *_files(incomplete, (".json", ".gguf"))]


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return models that can be loaded: published ones, runs, the catalogue, and GGUF files and folders."""
    from dialogkit.tracking.publishing import published_dirs

    published = [folder.name for folder in published_dirs(_output(ctx))]
    known = dict.fromkeys([*published, *_runs(ctx), *shipped_names("models")])
    return [*_begun(known, incomplete), *_files(incomplete, (".gguf",))]


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the runs, the newest first."""
    return list(_begun(_runs(ctx), incomplete))


def resumable(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the runs, and the word for the newest unfinished one."""
    return list(_begun([NEWEST, *_runs(ctx)], incomplete))


def datasets(incomplete: str) -> list[str]:
    """Return the datasets with a short name, and data files and folders."""
    from dialogkit.data.hints import SUFFIXES

    endings = [*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES)]
    return [*_begun(DATASETS, incomplete), *_files(incomplete, endings)]


def worlds(incomplete: str) -> list[str]:
    """Return the shipped world, and folders."""
    return [*_begun(("smalltalk", "smalltalk-core"), incomplete), *_files(incomplete, ())]


def settings(incomplete: str) -> list[str]:
    """Return each setting with each of its values, or an example of one."""
    schema = shipped_schema()
    found = []
    for section, place in schema["properties"].items():
        fields = schema["$defs"].get(place.get("$ref", "").rpartition("/")[2], {}).get("properties", {})
        for name, field in fields.items():
            found += [f"{section}.{name}={value}" for value in _values(field)]
    return list(_begun(found, incomplete))


def _values(field: dict[str, Any]) -> list[str]:
    """Return the values of a setting by its schema: all of a choice, else an example."""
    if "enum" in field:
        return [str(value) for value in field["enum"]]
    if field.get("type") == "boolean":
        return ["true", "false"]
    value = (field.get("examples") or [field.get("default")])[0]
    return ["" if value is None or isinstance(value, list | dict) else str(value)]


def _begun(words: Iterable[str], incomplete: str) -> Iterator[str]:
    return (word for word in words if word.startswith(incomplete))


def _output(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("output_dir") or DEFAULT_OUTPUT)


def _runs(ctx: typer.Context) -> list[str]:
    """Return the names of the folders of runs, the last changed first."""
    found = []
    with suppress(OSError), os.scandir(_output(ctx) / "runs") as entries:
        found = [(entry.stat().st_mtime, entry.name) for entry in entries if not entry.name.startswith(".")]
    return [name for _, name in sorted(found, reverse=True)]


def _files(incomplete: str, endings: Iterable[str]) -> list[str]:
    """Return the folders, with a slash, and the files with one of the endings that a path begins."""
    folder, begun = os.path.split(incomplete)
    found = []
    with suppress(OSError), os.scandir(os.path.expanduser(folder) or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(begun) or (entry.name.startswith(".") and not begun):
                continue
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                found.append(f"{path}/")
            elif entry.name.lower().endswith(tuple(endings)):
                found.append(path)
    return found
