"""Hints that several errors about data share."""

from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from itertools import islice
from pathlib import Path

from dialogkit.config.paths import files_beside, nearest_file
from dialogkit.errors import DataError
from dialogkit.hints import Change, Either, Shell, Then

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Endings of data files; `.gz` may follow each."""

WORLD_FILES = (".yaml", ".yml", ".json")
"""Endings of the files of a world."""

USE_STARTER = Change({"data.dataset": "starter"})
AS_ROWS = 'write it as JSONL, one {"prompt": "...", "response": "..."} per line'
FIX_LINE = Either("fix that line", USE_STARTER)
FIX_ROWS = Either("fix the rows", USE_STARTER)
USE_SMALLTALK = Change({"data.dataset": "smalltalk"})
DETECT_FORMAT = Change({"data.format": "auto"})
READ_INTO_MEMORY = Change({"data.streaming": False})


_MOST_TRIED = 10
"""Files that are tried."""
_MOST_READ = 2_000
"""Rows of each that are read."""
_looking_beside: ContextVar[bool] = ContextVar("looking_beside", default=False)


def dataset_beside(path: Path) -> Path | None:
    """Return the dataset beside `path` that was likely meant: one of a similar name, or the only one there is."""
    near = nearest_file(path, SUFFIXES)
    likely = datasets_of([near] if near else files_beside(path, SUFFIXES), most=2)
    return likely[0] if len(likely) == 1 else None


def use_another_file(path: Path) -> Change:
    """Return the hint to use the dataset beside `path` that was likely meant, else starter."""
    other = dataset_beside(path)
    return Change({"data.dataset": str(other)}) if other else USE_STARTER


def datasets_of(files: Sequence[Path], *, most: int = 3) -> list[Path]:
    """Return the first of some files that can be trained on, as far as a few are tried."""
    return list(islice(filter(_holds_dialogs, files[:_MOST_TRIED]), most))


def use_rewritten(command: str, target: Path) -> Then:
    """Return the hint to run a shell command that writes a dataset, and to use that."""
    return Then(Shell(command), Change({"data.dataset": str(target)}))


def _holds_dialogs(path: Path) -> bool:
    """Return whether a file is worth suggesting: it has enough dialogs to train on, and no malformed row."""
    from dialogkit.data.readers import read_rows
    from dialogkit.data.row_parser import RowParser
    from dialogkit.data.turns import RowError

    if _looking_beside.get():  # the error of a file that was tried suggests nothing
        return False
    token, parser, dialogs = _looking_beside.set(True), RowParser(), 0
    try:
        for _, row, problem in islice(read_rows(path), _MOST_READ):
            if problem is not None:
                return False
            with suppress(RowError):
                dialogs += bool(parser.expects_trees(row) or parser.parse(row))
    except DataError:
        return False
    finally:
        _looking_beside.reset(token)
    return dialogs > 1  # one to train on, one to evaluate
