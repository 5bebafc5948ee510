"""Every command that may wait for a server ends within the limit, in one sentence, and at once at Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SMALL
from tests.failing_hub import FILES, LATER, WHOLE, FailingHub, failing_hub
from tests.hub import write_gpt2
from tests.wandb_server import WandbServer

LIMIT_S = 3
"""Limit that the processes are given, for an answer as for a file that stalls."""
MARGIN_S = 20.0
"""Seconds that a process on a busy machine may take besides."""
KEY = "c4na12y" * 6
RAW = (
    "Traceback",
    "Retrying",
    "HTTP Error",
    "thrown while",
    "httpx",
    "Error while downloading",
    "Max retries",
    "wandb:",
)

SETTINGS = {name: value for name, value in SMALL.items() if name not in ("data.samples", "tracking.wandb")}
SET = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
HUB = "someone/thing"
MODEL = {
    "generate": ["generate", HUB, "--prompt", "Hello!", "--max-new-tokens", "2"],
    "chat": ["chat", HUB],
    "evaluate": ["evaluate", HUB, "--samples", "2"],
    "train": ["train", HUB, "--wandb", "disabled", *SET],
    "dry run": ["train", HUB, "--dry-run", "--wandb", "disabled", *SET],
}
TRAIN = ["train", "custom-nano", "--wandb", "disabled", "--dataset", HUB, *SET]
DATA = {
    "data inspect": ["data", "inspect", HUB],
    "train on a dataset": TRAIN,
    "train on a stream": [*TRAIN, "--set", "data.streaming=true"],
}


class Running:
    """A command in a separate process."""

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_"))}
        kept |= {"PYTHONPATH": str(REPOSITORY), "HOME": str(folder), "HF_HOME": str(folder / "hub"), **environment}
        kept.pop("TRANSFORMERS_OFFLINE", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dialogkit", *words],
            cwd=folder,
            env=kept,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupt(self, within_s: float) -> None:
        """Send Ctrl-C, and check that the command ends with it in so many seconds, without raw lines."""
        self.process.send_signal(signal.SIGINT)
        start = time.monotonic()
        code, _, err = self.end(60)
        assert code == 130, err
        assert time.monotonic() - start < within_s
        assert [mark for mark in RAW if mark in err] == []

    def end(self, timeout: float = 300) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        finally:
            self.process.kill()
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small model."""
    folder = write_gpt2(tmp_path_factory.mktemp("hub"), HUB)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def data_files() -> dict[str, bytes]:
    """The files of a dataset."""
    rows = [json.dumps({"prompt": f"Say {number}.", "response": f"{number}!"}) + "\n" for number in range(90)]
    return {"README.md": b"---\nlicense: mit\n---\n", "train.jsonl": "".join(rows).encode()}


def check_sentence(err: str, url: str) -> None:
    assert [mark for mark in RAW if mark in err] == []
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: the hub at {url} ")
    assert re.search(r"^try: (dialogkit|--dataset) ", err, re.MULTILINE)


@pytest.mark.faults
@pytest.mark.parametrize("way", [*WHOLE, *LATER, *FILES])
@pytest.mark.parametrize("command", [*MODEL, *DATA])
def test_a_hub_that_fails_ends_a_command_within_the_limit(
    command: str, way: str, tmp_path: Path, model_files: dict[str, bytes], data_files: dict[str, bytes]
) -> None:
    words = MODEL.get(command) or DATA[command]
    with failing_hub(way, HUB, model_files if command in MODEL else data_files) as hub:
        limits = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), str(LIMIT_S))
        code, _, err = Running(words, tmp_path, HF_ENDPOINT=hub.url, **limits).end()
        assert hub.first is not None
        assert time.monotonic() - hub.first < 2 * LIMIT_S + MARGIN_S
    assert code == 2, err
    check_sentence(err, hub.url)


@pytest.mark.faults
@pytest.mark.parametrize("way", ["silent", "silent-after-root", "drip-file", "503-after-root"])
@pytest.mark.parametrize("command", [*MODEL, *DATA, "doctor"])
def test_ctrl_c_ends_a_wait_at_once(
    command: str, way: str, tmp_path: Path, model_files: dict[str, bytes], data_files: dict[str, bytes]
) -> None:
    words = MODEL.get(command) or DATA.get(command) or ["doctor", "--network"]
    files = model_files if command in MODEL else data_files
    if command == "doctor" and way != "silent":
        pytest.skip("only whether the hub answers is asked")
    limits = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), "120")
    with failing_hub(way, HUB, files) as hub:
        running = Running(words, tmp_path, HF_ENDPOINT=hub.url, **limits)
        wait_for_requests(hub)
        running.interrupt(within_s=MARGIN_S)


def wait_for_requests(hub: FailingHub) -> None:
    """Return when the hub has been asked, and nothing new for two seconds."""
    seen, since = 0, time.monotonic()
    while not seen or time.monotonic() - since < 2:
        if len(hub.asked) != seen:
            seen, since = len(hub.asked), time.monotonic()
        assert time.monotonic() - since < 200
        time.sleep(0.1)


@pytest.mark.faults
@pytest.mark.parametrize("way", ["silent", "silent-after-root", "429", "html"])
def test_what_is_in_the_cache_needs_no_hub(
    way: str, tmp_path: Path, model_files: dict[str, bytes], data_files: dict[str, bytes]
) -> None:
    for words, files in ((MODEL["generate"], model_files), (DATA["train on a dataset"], data_files)):
        with failing_hub("good", HUB, files) as hub:
            limits = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), str(LIMIT_S))
            code, _, err = Running(words, tmp_path, HF_ENDPOINT=hub.url, **limits).end()
            assert code == 0, err
            assert "the copy in its cache is used" not in err
            hub.way, hub.first = way, None
            code, _, err = Running(words, tmp_path, HF_ENDPOINT=hub.url, **limits).end()
        assert code == 0, err
        assert err.count("the copy in its cache is used") == 1
        assert [mark for mark in RAW if mark in err] == []


# W&B


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    """A folder with a run that W&B has offline."""
    words = ["train", "custom-nano", *SET, "--set", "data.samples=8", "--wandb", "offline"]
    code, _, err = Running(words, tmp_path).end()
    assert code == 0, err
    return tmp_path


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A W&B server."""
    made = WandbServer("accept")
    yield made
    made.vanish()


@pytest.mark.faults
@pytest.mark.parametrize(
    "kind", ["hang", "vanish", "500", "503", "429", "401", "html", "hang-api", "circle", "drip"]
)
def test_an_upload_ends_whatever_the_server_does(kind: str, server: WandbServer, offline: Path) -> None:
    server.behaviour = kind
    start = time.monotonic()
    running = Running(["runs", "sync"], offline, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    code, out, err = running.end(240)
    assert code in (1, 2)
    assert time.monotonic() - start < 150
    assert "0 of 1 offline run uploaded" in out or "none of 1 offline run uploaded" in err
    assert KEY not in out + err
    assert [mark for mark in RAW if mark in err] == []


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["hang", "hang-api", "500"])
def test_ctrl_c_ends_an_upload(kind: str, server: WandbServer, offline: Path) -> None:
    server.behaviour = kind
    running = Running(["runs", "sync"], offline, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    while not server.asked:
        time.sleep(0.1)
    time.sleep(2)
    running.interrupt(within_s=10)


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["start", "end"])
def test_ctrl_c_ends_a_run_that_waits_for_wandb(moment: str, server: WandbServer, tmp_path: Path) -> None:
    if moment == "start":
        server.behaviour = "hang-api"
    else:
        server.behaviour, server.then = "accept", "hang"
    words = ["train", "custom-nano", *SET, "--set", "data.samples=8", "--wandb", "online", "--name", "it"]
    running = Running(words, tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    record = tmp_path / "models/runs/it/run.json"
    while not (server.asked if moment == "start" else record.exists() and '"completed"' in record.read_text()):
        assert running.process.poll() is None
        time.sleep(0.1)
    time.sleep(1.5)
    running.interrupt(within_s=MARGIN_S)
    if moment == "end":
        assert json.loads(record.read_text())["status"] == "completed"
