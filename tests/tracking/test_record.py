"""A record is typed, reads records of other versions, and loses nothing of them when it is written back."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialogkit.errors import ModelError
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Trained

EARLIER = {
    "name": "old",
    "created": "2026-01-01T00:00:00+00:00",
    "runtime": {"device": "cpu", "precision": "fp32"},
    "model": {"name": "custom-nano", "parameters": 4_788_096},
    "data": {"dataset": "starter", "rows": 354},
    "resumed": [{"time": "2026-01-02T00:00:00+00:00", "step": 10}],
}


def written(folder: Path, **sections: Any) -> RunDir:
    """A run whose record has these sections."""
    run = RunDir.create(folder, "old")
    run.record_path.write_text(json.dumps(EARLIER | sections))
    return run


def rewritten(run: RunDir) -> dict[str, Any]:
    """The JSON of a record after it was read and written back."""
    run.write(run.read())
    content: dict[str, Any] = json.loads(run.record_path.read_text())
    return content


def test_the_record_of_a_run_is_the_same_byte_for_byte_after_a_round_trip(trained: Trained) -> None:
    run = RunDir(Path(trained.result.run_dir))
    before = run.record_path.read_bytes()
    run.write(run.read())
    assert run.record_path.read_bytes() == before


def test_the_record_of_an_earlier_version_has_none_for_what_it_lacks(tmp_path: Path) -> None:
    record = written(tmp_path).read()
    assert (record.runtime.processes, record.model.layers, record.data.kept) == (None, None, None)
    assert (record.resumed[0].step, record.resumed[0].told_step) == (10, -1)
    assert (record.environment.git, record.schedule.total_steps, record.wandb.id) == (None, None, None)


def test_what_is_missing_is_not_written(tmp_path: Path) -> None:
    content = rewritten(written(tmp_path))
    assert {name: content[name] for name in EARLIER} == EARLIER
    assert (content["environment"], content["schedule"], content["wandb"]) == ({}, {}, {})


def test_fields_of_a_later_version_are_kept(tmp_path: Path) -> None:
    later = {
        "runtime": {"device": "cpu", "interconnect": {"nodes": 2}},
        "environment": {"git": {"commit": "abc", "tag": "v1"}, "gpu": {"name": "x", "clock": 1.5}},
        "resumed": [{"step": 3, "reason": "a lost process"}],
        "energy": {"joules": 7},
        "train_loss": "a name that the details of a run have too",
    }
    content = rewritten(written(tmp_path, **later))
    assert {name: content[name] for name in later} == later


@pytest.mark.parametrize(
    ("section", "damaged"),
    [
        ("runtime", {"device_name": 5, "processes": "two", "device": "cpu"}),
        ("environment", {"git": "main", "memory_bytes": None, "folder": ["x"]}),
        ("data", {"rows": "many", "kept": 3.5, "dataset": "starter"}),
        ("wandb", {"mode": 1, "id": {}}),
        ("model", {"adapter_base": "somewhere", "name": "a"}),
    ],
)
def test_a_damaged_value_reads_as_none_and_stays_in_the_file(
    tmp_path: Path, section: str, damaged: dict[str, Any]
) -> None:
    run = written(tmp_path, **{section: damaged})
    read = getattr(run.read(), section)
    known = {name: getattr(read, name) for name in damaged}
    assert known == {name: value if value in ("cpu", "starter", "a") else None for name, value in damaged.items()}
    assert rewritten(run)[section] == damaged


def test_a_new_value_replaces_a_damaged_one(tmp_path: Path) -> None:
    run = written(tmp_path, runtime={"processes": "two"})
    record = run.read()
    record.runtime.processes = 3
    run.write(record)
    assert json.loads(run.record_path.read_text())["runtime"] == {"processes": 3}


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"model": {"parameters": "many"}}, r"model\.parameters: must be a valid integer"),
        ({"data": {"dataset": 4}}, r"data\.dataset: must be a valid string"),
        ({"schedule": {"total_steps": "x"}}, r"schedule\.total_steps: must be a valid integer, .+"),
        ({"runtime": 5}, "runtime: must be a JSON object"),
        ({"resumed": [1]}, r"resumed\.0: must be a JSON object"),
        ({"config": {"train": {}, "data": []}}, "config: data has the wrong type"),
    ],
)
def test_a_value_that_others_rely_on_makes_the_record_unreadable(
    tmp_path: Path, sections: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ModelError, match=rf"is damaged \({problem}\)"):
        written(tmp_path, **sections).read()


def test_records_share_no_section() -> None:
    RunRecord(name="a", created="").schedule.total_steps = 5
    assert RunRecord(name="b", created="").schedule.total_steps is None
