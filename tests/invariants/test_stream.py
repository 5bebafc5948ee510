"""A run on a stream that was stopped and resumed is the one that was not, whatever the workers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.data import shards
from dialogkit.errors import ConfigError, DataError
from dialogkit.services.train import resume, train
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL, Finished, typed
from tests.invariants.test_resume import KillAt, Killed, digests, history

ROWS = 90


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards, of several blocks each."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 400)
    Path("shards").mkdir()
    for shard in range(3):
        rows = [
            {"prompt": f"Count to {n}.", "response": " ".join(map(str, range(1 + n % 40)))}
            for n in range(shard * ROWS // 3, (shard + 1) * ROWS // 3)
        ]
        Path(f"shards/{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path("shards")


def config_of(run: str, **more: Any) -> Any:
    settings = {
        **SMALL,
        "model.architecture": "gpt2",
        "train.dropout": 0.2,
        "data.dataset": "shards",
        "data.streaming": True,
        "data.samples": None,
        "data.shuffle_dialogs": 30,
        "train.batch_size": 10,
        "train.accumulation_steps": 2,
        "train.max_steps": 11,
        "train.eval_every_steps": 3,
        "train.log_every_steps": 2,
        "name": run,
    }
    return load_run_config("custom-nano", overrides={**settings, **more})


def test_a_stream_continues_at_the_very_dialog_with_workers_and_without() -> None:
    train(config_of("whole"))
    with pytest.raises(Killed):
        train(config_of("stopped", **{"runtime.workers": 1}), reporter=KillAt(8))
    run = RunDir(Path("models/runs/stopped"))
    assert json.loads((run.path / "checkpoint-6/stream-0.json").read_text())["offset"] > 0
    assert resume(run, changes={"runtime.workers": 0}) is not None
    assert digests("stopped") == digests("whole")
    assert history("stopped") == history("whole")
    data = run.read().data
    assert data == RunDir(Path("models/runs/whole")).read().data
    assert (data.rows, data.kept, (data.train_dialogs or 0) + (data.eval_dialogs or 0)) == (ROWS, ROWS, ROWS)
    passes = [point["train/epoch"] for _, point in history("whole") if "train/epoch" in point]
    assert passes == sorted(passes)
    assert 1 < passes[-1] < 1.5


def test_a_stream_whose_files_changed_is_not_resumed() -> None:
    with pytest.raises(Killed):
        train(config_of("stopped"), reporter=KillAt(4))
    with Path("shards/1.jsonl").open("a") as file:
        file.write('{"prompt": "And now?", "response": "Another one."}\n')
    with pytest.raises(ConfigError, match="data revision was"):
        resume(RunDir(Path("models/runs/stopped")))


def test_a_stream_without_a_length_takes_steps_or_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialogkit.data.stream_setup.SAMPLE_DIALOGS", 8)
    unknown = {"data.eval_fraction": 0.3, "data.eval_min_dialogs": 2, "data.eval_max_dialogs": 4}
    with pytest.raises(ConfigError, match="cannot convert epochs to steps") as refused:
        train(config_of("endless", **unknown, **{"train.max_steps": None}))
    assert typed(refused.value) == "--set train.max_steps=1000, or: --budget 1h"
    assert not Path("models/runs/endless").exists()


def test_a_malformed_row_ends_a_run_that_reports_what_it_had_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.data.stream_setup.SAMPLE_DIALOGS", 8)
    (folder / "1.jsonl").write_text((folder / "1.jsonl").read_text() + "{\n")
    settings = {"data.eval_fraction": 0.3, "data.eval_max_dialogs": 2, "data.shuffle_dialogs": 5}
    with pytest.raises(DataError, match=r"^1.jsonl:31: not valid JSON"):
        train(config_of("bad", **settings, **{"train.max_steps": 30, "runtime.workers": 1}))
    record = RunDir(Path("models/runs/bad")).read()
    assert (record.status, (record.data.rows or 0) > 0) == ("failed", True)


def test_the_command_line_evaluates_what_it_streamed(dialogkit: Callable[..., Finished]) -> None:
    settings = {name: value for name, value in SMALL.items() if name != "data.samples"}
    settings |= {"data.streaming": True, "train.max_steps": 2}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    done = dialogkit("train", "custom-nano", "--dataset", "shards", *words)
    assert done.code == 0, done.err
    assert f"shards: read as a stream, at most {ROWS - 2} dialogs to train on" in " ".join(done.err.split())
    assert "rows so far, " in done.err
    done = dialogkit("evaluate", "custom-nano", "--quick", "--json")
    assert done.code == 0, done.err
    assert [row["dialogs"] for row in done.json["data"]["rows"]] == [2]
    done = dialogkit("train", "custom-nano", "--dataset", "shards", *words, "--dry-run")
    assert done.code == 0, done.err
    done = dialogkit("train", "custom-nano", "--dataset", "shards")
    assert done.err.splitlines()[-2:] == [
        "error: 'shards' is a folder, not a file",
        "try: --dataset shards --set data.streaming=true",
    ]
