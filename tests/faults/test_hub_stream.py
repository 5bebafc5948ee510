"""A hub dataset is read as a stream with the hub's own libraries, from a server that answers as the hub does."""

import json
from pathlib import Path

import pytest

from tests.conftest import SMALL, run_process
from tests.hub import served_dataset


@pytest.mark.faults
def test_a_hub_dataset_is_fetched_file_by_file_and_streamed(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {number}.", "response": f"{number}!"} for number in range(90)]
    lines = [json.dumps(row) + "\n" for row in rows]
    files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "data/train-00000-of-00002.jsonl": "".join(lines[:50]).encode(),
        "data/train-00001-of-00002.jsonl": "".join(lines[50:]).encode(),
    }
    settings = {name: value for name, value in SMALL.items() if name != "data.samples"}
    settings |= {"data.streaming": True, "runtime.workers": 1, "train.max_steps": 60, "train.batch_size": 2}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    with served_dataset("someone/dialogs", files) as address:
        done = run_process(
            *("train", "custom-nano", "--dataset", "someone/dialogs", "--name", "it", *words),
            cwd=tmp_path,
            HF_ENDPOINT=address,
            HF_HOME=str(tmp_path / "hub"),
            HF_HUB_OFFLINE="0",
            HF_DATASETS_OFFLINE="0",
        )
        assert done.code == 0, done.err
    data = json.loads((tmp_path / "models/runs/it/run.json").read_text())["data"]
    assert (data["rows"], data["train_dialogs"], data["eval_dialogs"]) == (90, 88, 2)
    done = run_process(
        *("train", "custom-nano", "--dataset", "someone/dialogs", *words),
        cwd=tmp_path,
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="0",
    )
    assert (done.code, "only the hub knows the files" in done.err) == (2, True)
