"""Which run is the best, and whether that is more than chance."""

from pathlib import Path
from typing import Any

import pytest

from dialogkit.services.runs.listing import best_runs
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir

Interval = tuple[float, float]


def finished(name: str, bits: float, interval: Interval | None, revision: str = "one") -> None:
    content: dict[str, Any] = {
        "name": name,
        "created": f"2026-11-30T00:00:0{name[-1]}+00:00",
        "status": "completed",
        "metrics": {"final/bits_per_byte": bits},
        "data": {"revision": revision, "eval_dialogs": 8},
    }
    if interval is not None:
        content["intervals"] = {"final/bits_per_byte": interval}
    RunDir.create(Path("models"), name).write(RunRecord.model_validate(content))


@pytest.mark.parametrize(
    ("best", "other", "tied"),
    [
        ((2.6, 2.9), (3.0, 3.3), []),
        ((2.6, 3.05), (3.0, 3.3), ["run-2"]),
        (None, (3.0, 3.3), ["run-2"]),  # an older version wrote none
    ],
)
def test_the_best_run_names_those_that_it_is_not_apart_from(
    best: Interval | None, other: Interval, tied: list[str]
) -> None:
    finished("run-1", 2.8, best)
    finished("run-2", 3.1, other)
    finished("run-3", 0.5, (0.4, 0.6), revision="another dataset")
    rows = {row.name: row for row in best_runs()}
    assert rows.keys() == {"run-1", "run-3"}
    assert (rows["run-1"].tied_with, rows["run-3"].tied_with) == (tied, [])
