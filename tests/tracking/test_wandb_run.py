"""What is logged can be read back from W&B's own files, and W&B never stops or changes a run."""

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dialogkit.config.tracking import TrackingConfig
from dialogkit.errors import StorageError, UnavailableError
from dialogkit.system.credentials import Credentials, find_credentials
from dialogkit.system.network import forget
from dialogkit.tracking import wandb_run
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun, decide, open_wandb, resolve_mode
from tests.conftest import typed
from tests.wandb_log import history, only_offline_run, records, values

REPOSITORY = Path(__file__).resolve().parents[2]

KEY = "c4na12y" * 6
"""Looks like a key, and is found wherever it is written."""


@pytest.fixture(autouse=True)
def nothing_known_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


class Server(NamedTuple):
    url: str
    asked: list[str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that answers every request by 401."""
    asked: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(self.path)
            self.send_response(401)
            self.end_headers()

        do_GET = do_POST = refuse

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield Server(f"http://127.0.0.1:{listening.server_port}", asked)
        listening.shutdown()


@pytest.fixture(scope="module")
def dead_server() -> str:
    """The address of a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closing:
        return f"http://127.0.0.1:{closing.getsockname()[1]}"


def opened(folder: Path, **settings: Any) -> WandbRun:
    config = TrackingConfig(**{"wandb": "offline", **settings})
    run: dict[str, Any] = {"name": "a-run", "tags": ["one", "two"], "settings": {"train/seed": 42}}
    return open_wandb(config, decide(config, Path.cwd()), folder=folder, **run)


# Where the key comes from


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (f"WANDB_API_KEY={KEY}", KEY),
        (f"export WANDB_API_KEY = '{KEY}'", KEY),
        (f'\ufeffWANDB_API_KEY="{KEY}"\r', KEY),
        (f"# WANDB_API_KEY={KEY}", None),
        ("WANDB_API_KEY=", None),
        (f"MY_WANDB_API_KEY={KEY}", None),
        ("no equals sign", None),
    ],
)
def test_a_key_is_read_from_dotenv(tmp_path: Path, line: str, key: str | None) -> None:
    (tmp_path / ".env").write_text(f"{line}\nOTHER=1\n", encoding="utf-8")
    assert find_credentials(tmp_path).key == key
    assert "OTHER" not in os.environ


def test_the_environment_goes_before_dotenv_and_dotenv_before_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine wandb.example login user password from-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert find_credentials(tmp_path) == Credentials("from-netrc", "https://wandb.example")
    (tmp_path / ".env").write_text("WANDB_API_KEY=from-dotenv\nWANDB_ENTITY=team")
    assert find_credentials(tmp_path) == Credentials("from-dotenv", "https://wandb.example", "team")
    monkeypatch.setenv("WANDB_API_KEY", "from-environment")
    assert find_credentials(tmp_path).key == "from-environment"


@pytest.mark.parametrize("content", [b"machine", b"\xff\xfe", b"machine elsewhere login a password b\n"])
def test_a_netrc_that_does_not_help_is_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "netrc").write_bytes(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert find_credentials(tmp_path).key is None


def test_credentials_do_not_show_the_key() -> None:
    assert KEY not in f"{Credentials(KEY, 'server')!r} {Credentials(KEY, 'server')}"


# The mode


@pytest.mark.parametrize("request_", ["auto", "online", "offline", "disabled"])
@pytest.mark.parametrize("variable", ["", "offline", "disabled", "online"])
@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("answers", [True, False])
def test_the_mode_follows_from_request_key_and_server(
    server: Server,
    dead_server: str,
    monkeypatch: pytest.MonkeyPatch,
    request_: str,
    variable: str,
    key: str | None,
    answers: bool,
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    forget()
    credentials = Credentials(key, server.url if answers else dead_server)
    if request_ == "online" and key is None:
        with pytest.raises(UnavailableError, match="needs a key") as refused:
            resolve_mode(request_, credentials)
        assert typed(refused.value) == "--wandb offline"
        return
    expected = request_
    if request_ == "auto":
        possible = "online" if key is not None and answers else "offline"
        expected = variable if variable in ("offline", "disabled") else possible
    mode, reason = resolve_mode(request_, credentials)
    assert mode == expected
    assert (reason == "requested") == (request_ != "auto")


def test_a_disabled_run_writes_nothing_and_takes_every_call(tmp_path: Path) -> None:
    run = opened(tmp_path, wandb="disabled")
    run.log(1, {"a": 1.0})
    run.log_table("t", ["c"], [[1]], step=1)
    run.log_histograms(1, {"h": ([1], [0.0, 1.0])})
    run.log_model("m", tmp_path)
    run.update_config({"a": 1})
    run.summarize({"a": 1})
    run.finish(exit_code=0)
    assert (run.id, run.folder, run.url) == (None, None, None)
    assert list(tmp_path.iterdir()) == []


# What is recorded


def test_an_offline_run_holds_all_that_was_logged(tmp_path: Path) -> None:
    run = opened(tmp_path, project="my-project", entity="my-team", group="my-group", notes="my notes")
    folder = run.folder
    run.update_config({"model_facts": {"layers": 2}})
    run.log(1, {"train/loss": 2.5})
    run.log(2, {"train/loss": 1.5, "perf/tokens_per_s": 10.0})
    run.log_table("replies", ["prompt", "reply"], [["Hi", "où?"]], step=2)
    run.log_histograms(3, {"weights/head": ([1, 2], [0.0, 0.5, 1.0])})
    run.log(3, {"train/loss": 0.5})
    run.summarize({"final/nats_per_token": 1.25})
    run.finish(exit_code=3)

    assert folder == only_offline_run(tmp_path)
    found = records(folder)
    started = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (started.display_name, started.project, started.entity) == ("a-run", "my-project", "my-team")
    assert (started.run_group, started.notes, list(started.tags)) == ("my-group", "my notes", ["one", "two"])
    assert values(started.config.update)["train/seed"] == 42
    later = [values(record.config.update) for record in found if record.WhichOneof("record_type") == "config"]
    assert {"model_facts": {"layers": 2}} in later
    losses = [(p["_step"], p["train/step"], p["train/loss"]) for p in history(found) if "train/loss" in p]
    assert losses == [(1, 1, 2.5), (2, 2, 1.5), (3, 3, 0.5)]
    last = history(found)[-1]
    assert [last[f"weights/head/{part}"] for part in ("_type", "values", "bins")] == [
        "histogram",
        [1, 2],
        [0, 0.5, 1],
    ]
    summary: dict[str, Any] = {}
    for record in found:
        summary |= values(record.summary.update)
    assert summary["final/nats_per_token"] == 1.25
    assert found[-1].exit.exit_code == 3
    (table,) = folder.glob("files/media/table/replies_*.table.json")
    assert json.loads(table.read_text())["data"] == [["Hi", "où?"]]


def test_the_entity_of_dotenv_is_used(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WANDB_ENTITY=team-of-dotenv\n")
    run = opened(tmp_path)
    folder = run.folder
    run.finish(exit_code=0)
    assert folder is not None
    assert next(r.run.entity for r in records(folder) if r.HasField("run")) == "team-of-dotenv"


def test_a_run_is_recorded_like_its_own_record(trained: Any) -> None:
    folder = only_offline_run(trained.output)
    assert trained.result.wandb_dir == str(folder)
    record = RunDir(Path(trained.result.run_dir)).read()
    assert folder.name.endswith(str(record.wandb.id))
    found = records(folder)
    started = next(record.run for record in found if record.HasField("run"))
    assert (started.display_name, started.project) == ("shared-run", "dialog-model-training")
    assert {"custom-nano", "test", "single-model", "pipeline"} == set(started.tags)
    assert values(started.config.update)["train/learning_rate"] == 1e-2
    assert found[-1].exit.exit_code == 0

    logged: dict[int, dict[str, float]] = {}
    for point in history(found):
        logged.setdefault(point["train/step"], {}).update(point)
    for point in RunDir(Path(trained.result.run_dir)).metrics():
        figures = {name: value for name, value in point.items() if "/" in name}
        assert figures.items() <= logged[point["step"]].items()
    (table,) = folder.glob("files/media/table/replies/final_*.table.json")
    shown = json.loads(table.read_text())
    prompts = [dict(zip(shown["columns"], row, strict=True))["prompt"] for row in shown["data"]]
    assert prompts[: len(trained.result.replies)] == [reply.prompt for reply in trained.result.replies]


# What may go wrong


def test_a_place_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(StorageError, match="cannot create"):
        opened(tmp_path / "models")


def test_a_server_that_refuses_makes_the_run_an_offline_one(
    tmp_path: Path,
    isolated_home: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={KEY}\nWANDB_BASE_URL={server.url}\n")
    (tmp_path / ".env").chmod(0o600)
    before = dict(os.environ)
    run = opened(tmp_path / "models", wandb="auto")
    assert (run.mode, run.reason, run.url) == ("offline", "the server refused", None)
    assert server.asked
    folder = run.folder
    run.log(1, {"train/loss": 2.5})
    run.finish(exit_code=0)
    assert folder is not None
    assert [point["train/loss"] for point in history(records(folder))] == [2.5]
    assert [record.levelname for record in caplog.records if record.name == wandb_run.__name__] == ["WARNING"]
    assert dict(os.environ) == before
    files = [p for place in (tmp_path / "models", isolated_home) for p in place.rglob("*") if p.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.faults
def test_no_key_and_a_terminal_ask_nothing(tmp_path: Path) -> None:
    import pty

    script = (
        "from pathlib import Path\n"
        "from dialogkit.config.tracking import TrackingConfig\n"
        "from dialogkit.tracking.wandb_run import decide, open_wandb\n"
        "config, here = TrackingConfig(), Path.cwd()\n"
        "run = open_wandb(config, decide(config, here), name='n', tags=[], folder=here / 'models', settings={})\n"
        "print('mode', run.mode)\n"
        "run.finish(0)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said = b""
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(1024):
                said += piece
                if b"?" in said:
                    process.kill()  # it waits for an answer
        except OSError:  # Linux's end of a terminal
            pass
    assert process.wait() == 0
    assert said.decode().split() == ["mode", "offline"]


def weights(result: Any) -> str:
    return hashlib.sha256((Path(result.model_dir) / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def weights_without_wandb(small_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    from dialogkit.services.train import train

    output = tmp_path_factory.mktemp("disabled")
    return weights(train(small_config({"tracking.wandb": "disabled", "runtime.output_dir": str(output)})))


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("something in W&B")


@pytest.mark.parametrize(
    "failing",
    [
        None,
        "Run.log",
        *(pytest.param(name, marks=pytest.mark.faults) for name in ("init", "Run.finish", "Table", "import")),
    ],
)
def test_whatever_fails_in_wandb_training_continues_to_the_same_weights(
    small_config: Callable[..., Any],
    weights_without_wandb: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: str | None,
) -> None:
    import wandb

    from dialogkit.services.train import train

    config = small_config({"tracking.wandb": "offline"})
    with monkeypatch.context() as patch:
        if failing == "import":
            patch.setitem(sys.modules, "wandb", None)
        elif failing is not None:
            patch.setattr(f"wandb.{failing}", fail)
        result = train(config)
    if wandb.run is not None:
        wandb.finish()
    assert weights(result) == weights_without_wandb
    assert RunDir(Path(result.run_dir)).read().status == "completed"
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == (failing is not None)


def test_a_key_is_in_no_file_of_a_run(
    small_config: Callable[..., Any], isolated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dialogkit.services.train import train

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    train(small_config({"tracking.wandb": "offline"}))
    files = [path for place in (tmp_path, isolated_home) for path in place.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the service's process in /proc")
@pytest.mark.faults
def test_the_death_of_the_service_of_wandb_costs_this_run_alone(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from dialogkit.config.tracking import TrackingConfig\n"
        "from dialogkit.tracking.wandb_run import decide, open_wandb\n"
        "config, here = TrackingConfig(wandb='offline'), Path.cwd()\n"
        "run = open_wandb(config, decide(config, here), name='n', tags=[], folder=here, settings={})\n"
        "run.log(1, {'a': 1.0})\n"
        "for stat in Path('/proc').glob('[0-9]*/stat'):\n"
        "    parent = stat.read_text().rpartition(')')[2].split()[1]\n"
        "    if parent == str(os.getpid()) and b'wandb-core' in (stat.parent / 'cmdline').read_bytes():\n"
        "        os.kill(int(stat.parent.name), signal.SIGKILL)\n"
        "        os.waitpid(int(stat.parent.name), 0)\n"
        "        print('killed')\n"
        "for step in range(2, 50):\n"
        "    run.log(step, {'a': 1.0})\n"
        "run.finish(exit_code=0)\n"
        "run = open_wandb(config, decide(config, here), name='n', tags=[], folder=here, settings={})\n"
        "print('survived', run.mode)\n"
        "run.finish(exit_code=0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["killed", "survived", "offline"], done.stderr
    assert done.stderr == "W&B failed (ConnectionResetError); the run continues without it\n"
