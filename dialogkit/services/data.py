"""Lists the datasets that have a short name, and makes dialogs of worlds."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dialogkit.config.base import Result
from dialogkit.errors import ConfigError, StorageError
from dialogkit.hints import Change, Either
from dialogkit.system.files import write_text


class DatasetRow(Result):
    """A dataset that has a short name."""

    name: str
    description: str
    license: str
    source: str


def list_datasets() -> list[DatasetRow]:
    """Return the datasets that have a short name; files and hub ids work as well."""
    from dialogkit.data.sources import NAMED

    return [
        DatasetRow(
            name=name,
            description=dataset.description,
            license=dataset.license,
            source=dataset.hub_id or "ships with the package",
        )
        for name, dataset in NAMED.items()
    ]


class MadeDialogs(Result):
    """A file of dialogs that were made of a world."""

    file: str
    world: str
    seed: int
    dialogs: int
    held_out: dict[str, int]
    """Held-out dialogs by what is new in them: a `phrasing`, a `pair` of phrasing and fact, or a `fact`."""
    topics: dict[str, int]
    """Dialogs by the topic of their first exchange."""
    answers: int
    checked: int
    """Answers with a check."""


def dialog_lines(world: str, *, dialogs: int, seed: int) -> Iterator[str]:
    """Return the dialogs of a world as lines of JSON, the same for the same world, number and seed.

    Args:
        world: the name of a shipped world, or a folder of topics.
        dialogs: number of dialogs.
        seed: seed of all choices.

    Raises: DataError if the world cannot be found, or a topic is wrong.
    """
    return map(_line, _rows(world, dialogs, seed))


def write_dialogs(
    world: str, output: str | Path | None = None, *, dialogs: int = 50_000, seed: int = 1, force: bool = False
) -> MadeDialogs:
    """Write dialogs of a world to a JSON Lines file, the same bytes for the same world, number and seed.

    Args:
        world: the name of a shipped world, or a folder of topics.
        output: file to write. None: the name of the world with .jsonl.
        dialogs: number of dialogs.
        seed: seed of all choices.
        force: replace an existing file.

    Raises: DataError if the world cannot be found, or a topic is wrong; ConfigError, StorageError.
    """
    path = Path(f"{Path(world).resolve().name}.jsonl" if output is None else output)
    if path.suffix not in (".jsonl", ".ndjson"):
        problem = f"{str(path)!r} does not end in .jsonl, and JSON Lines are written"
        raise ConfigError(problem, hint=Change({"output": f"{path.with_suffix('.jsonl')}"}))
    if path.exists() and not force:
        another = path.with_stem(f"{path.stem}-2")
        raise StorageError(
            f"{str(path)!r} exists", hint=Either(Change({"output": str(another)}), Change({"force": True}))
        )
    rows = _rows(world, dialogs, seed)
    topics: Counter[str] = Counter()
    held_out: Counter[str] = Counter()
    checks: Counter[bool] = Counter()

    def counted_lines() -> Iterator[str]:
        for row in rows:
            topics[row["topic"]] += 1
            held_out.update([row["new"]] if "new" in row else [])
            checks.update(check is not None for check in row["check"])
            yield _line(row)

    try:
        write_text(path, counted_lines())
    except StorageError as error:
        error.hint = Change({"output": "dialogs.jsonl"})
        raise
    return MadeDialogs(
        file=str(path),
        world=world,
        seed=seed,
        dialogs=dialogs,
        held_out=dict(sorted(held_out.items())),
        topics=dict(topics.most_common()),
        answers=checks.total(),
        checked=checks[True],
    )


def _line(row: Mapping[str, Any]) -> str:
    return f"{json.dumps(row, ensure_ascii=False)}\n"


def _rows(world: str, dialogs: int, seed: int) -> Iterator[dict[str, Any]]:
    from dialogkit.data.sources import find_world
    from dialogkit.data.worlds.dialogs import make_dialogs
    from dialogkit.data.worlds.folder import read_world

    return make_dialogs(read_world(find_world(world)), dialogs, seed)
