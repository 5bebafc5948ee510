"""Hints that several errors about data share."""

from pathlib import Path

from dialogkit.config.paths import files_beside, nearest_file
from dialogkit.hints import Change, Either

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Endings of data files; `.gz` may follow each."""

USE_STARTER = Change({"data.dataset": "starter"})
FIX_LINE = Either("fix that line", USE_STARTER)
FIX_ROWS = Either("fix the rows", USE_STARTER)
DETECT_FORMAT = Change({"data.format": "auto"})
READ_INTO_MEMORY = Change({"data.streaming": False})


def use_another_file(path: Path) -> Change:
    """Return the hint to use the most similarly named data file beside `path`, else any other, else starter."""
    other = nearest_file(path, SUFFIXES) or next(iter(files_beside(path, SUFFIXES)), None)
    return Change({"data.dataset": str(other)}) if other else USE_STARTER
