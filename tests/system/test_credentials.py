"""Server and key of W&B come from one source, and no file makes a key of another place go to its server."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.tracking import TrackingConfig
from dialogkit.errors import UnavailableError
from dialogkit.system.credentials import DEFAULT_SERVER, find_credentials, server_problem
from dialogkit.tracking.wandb_run import decide, open_wandb
from tests.forks import run_forked
from tests.wandb_server import WandbServer

OURS, THEIRS = "0urs" * 10, "7he1r5" * 7
OWN, STRANGE = "https://own.example", "https://strange.example"
DEFAULT = DEFAULT_SERVER

SOURCES = ("environment", ".env", "wandb/settings", "user")
FILES = SOURCES[1:]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a working folder of their own, and nothing of W&B in the environment."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    os.environ.update(HOME=str(home), NETRC=str(home / ".netrc"))
    monkeypatch.chdir(work)
    yield home
    os.environ.clear()
    os.environ.update(before)


def say(source: str, *, key: str | None = None, server: str | None = None, entity: str | None = None) -> None:
    """Have a source name what is given."""
    if source == "netrc":
        with Path(os.environ["NETRC"]).open("a") as file:
            file.write(f"machine {(server or DEFAULT).partition('//')[2]} login user password {key}\n")
        return
    said = {"api_key": key, "base_url": server, "entity": entity}
    said = {name: value for name, value in said.items() if value is not None}
    if source == "environment":
        os.environ.update({f"WANDB_{name.upper()}": value for name, value in said.items() if value is not None})
    elif source == ".env":
        Path(".env").write_text("".join(f"WANDB_{name.upper()}={value}\n" for name, value in said.items()))
        Path(".env").chmod(0o600)
    else:
        path = Path("wandb/settings") if source == "wandb/settings" else Path.home() / ".config/wandb/settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[default]\n" + "".join(f"{name} = {value}\n" for name, value in said.items()))


@pytest.mark.parametrize("key_of", [*SOURCES, "netrc"])
@pytest.mark.parametrize("server_of", FILES)
def test_a_server_in_a_file_gets_no_key_of_another_source(key_of: str, server_of: str) -> None:
    if key_of == server_of:
        say(key_of, key=OURS, server=STRANGE)
        found = find_credentials(Path.cwd())
        assert (found.key, found.server, found.notes) == (OURS, STRANGE, ())
        assert found.key_from == found.server_from
        return
    say(key_of, key=OURS)
    say(server_of, server=STRANGE)
    found = find_credentials(Path.cwd())
    assert (found.key, found.server, found.server_from) == (OURS, DEFAULT, "default")
    (note,) = found.notes
    assert STRANGE in note
    assert OURS not in note


@pytest.mark.parametrize("key_of", [*FILES, "netrc"])
def test_the_environment_s_server_goes_before_all_and_gets_only_a_key_that_is_no_other_server_s(
    key_of: str,
) -> None:
    say("environment", server=OWN)
    say(key_of, key=THEIRS, server=STRANGE)
    assert find_credentials(Path.cwd()).key is None
    assert find_credentials(Path.cwd()).server == OWN
    say(key_of, key=OURS, server=OWN)
    assert find_credentials(Path.cwd()).key == OURS
    say("environment", key=THEIRS)
    assert (find_credentials(Path.cwd()).key, find_credentials(Path.cwd()).server) == (THEIRS, OWN)


def test_a_pair_in_a_file_does_not_take_the_place_of_the_environment_s_key() -> None:
    say("environment", key=OURS, entity="us")
    say(".env", key=THEIRS, server=STRANGE, entity="them")
    found = find_credentials(Path.cwd())
    assert (found.key, found.server, found.entity) == (OURS, DEFAULT, "us")
    assert STRANGE in found.notes[0]
    del os.environ["WANDB_ENTITY"]
    assert find_credentials(Path.cwd()).entity is None  # that of the other server's


@pytest.mark.parametrize("server_of", FILES)
def test_netrc_gives_a_key_to_the_host_that_it_names_and_never_its_default(server_of: str, home: Path) -> None:
    say(server_of, server=STRANGE)
    Path(os.environ["NETRC"]).write_text(f"default login user password {OURS}\n")
    assert find_credentials(Path.cwd()).key is None
    say("netrc", key=OURS, server=STRANGE)
    found = find_credentials(Path.cwd())
    assert (found.key, found.server, found.key_from) == (OURS, STRANGE, "netrc")
    for other in ("http://strange.example", "https://strange.example:8443", "https://strange.example.org"):
        say(server_of, server=other)
        assert find_credentials(Path.cwd()).key is None, other


def test_a_key_that_goes_over_a_network_unencrypted_is_reported() -> None:
    say("environment", key=OURS, server="http://wandb.corp:8080")
    assert find_credentials(Path.cwd()).notes == ("the W&B key goes to http://wandb.corp:8080 unencrypted",)
    for loopback in ("http://localhost:8080", "http://127.0.0.1:80", "http://[::1]:80", OWN):
        say("environment", server=loopback)
        assert find_credentials(Path.cwd()).notes == ()


WRONG = (
    *(
        "file:///etc/passwd",
        "ftp://host",
        "host",
        "://",
        "https://",
        "http://[",
        "https://host:port",
        "https://a b",
    ),
    *(
        "https://user:c4nary@host",
        "https://c4nary@host",
        "http://u:c4nary@",
        "x:c4nary@host",
        "https://u:c4@nary@h",
    ),
    *(
        "https://a b",
        "https://host/?api_key=c4nary",
        "https://host#c4nary=1",
        "https://h\x1b[2J",
        "https://h\u202ehost",
        "\\\\h",
    ),
    "https://" + "h" * 5000,
)


@pytest.mark.parametrize("server", WRONG)
@pytest.mark.parametrize("source", ["environment", ".env"])
def test_a_server_that_is_no_plain_address_gets_nothing(server: str, source: str) -> None:
    assert server_problem(server) is not None
    say(source, key=OURS, server=server)
    found = find_credentials(Path.cwd())
    assert (found.key, found.server) == (None, DEFAULT)
    (note,) = found.notes
    assert [part for part in ("c4nary", "nary@", OURS, "\x1b", "\u202e") if part in note] == []
    assert len(note) < 400
    if source == "environment":
        assert decide(TrackingConfig(wandb="auto"), Path.cwd()).mode == "offline"
        with pytest.raises(UnavailableError, match="names the W&B server"):
            decide(TrackingConfig(wandb="online"), Path.cwd())


@pytest.mark.parametrize(
    "server", [DEFAULT, "http://localhost:8080", "https://host/wandb", "https://[2001:db8::1]:1"]
)
def test_a_plain_address_is_one(server: str) -> None:
    assert server_problem(server) is None


# Files that are none


def pipe(path: Path) -> None:
    os.mkfifo(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


STRANGE_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": pipe,
    "huge": huge,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "latin": lambda path: path.write_bytes(b"# caf\xe9\n[x]\nWANDB_ENTITY=a\n"),
    "no section": lambda path: path.write_text("base_url = x\n"),
    "twice": lambda path: path.write_text("[default]\na=1\na=2\n"),
}


@pytest.mark.parametrize("kind", STRANGE_FILES)
@pytest.mark.parametrize("name", [".env", "wandb/settings", "~/.config/wandb/settings", "~/.netrc"])
def test_a_file_that_is_none_is_passed_over_at_once(kind: str, name: str) -> None:
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    STRANGE_FILES[kind](path)
    began = time.monotonic()
    assert find_credentials(Path.cwd()).key is None
    os.environ["WANDB_API_KEY"] = OURS
    found = find_credentials(Path.cwd())
    assert (found.key, found.server) == (OURS, DEFAULT)
    assert time.monotonic() - began < 10
    if kind in ("pipe", "huge", "device", "folder") and name != "~/.netrc":
        assert len(found.notes) == 1
        assert "nothing in that file is used" in found.notes[0]


def test_a_dotenv_in_utf_16_is_read() -> None:
    Path(".env").write_text(f"WANDB_API_KEY={OURS}\n", encoding="utf-16")
    assert find_credentials(Path.cwd()).key == OURS


# Against a server


@pytest.fixture
def server() -> Iterator[WandbServer]:
    started = WandbServer("accept")
    yield started
    started.vanish()


def logged(mode: str) -> dict[str, Any]:
    """Open a W&B run as `train` does and log a point. Runs in a separate process."""
    warnings: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger("dialogkit").addHandler(Listen())
    config, here = TrackingConfig(wandb=mode), Path.cwd()  # type: ignore[arg-type]
    decision = decide(config, here)
    run = open_wandb(config, decision, name="n", tags=[], folder=here / "models", settings={})
    run.log(1, {"train/loss": 1.0})
    run.finish(exit_code=0)
    return {"mode": run.mode, "warnings": warnings, "here": str(Path.cwd()) == str(here)}


def run(mode: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    environment |= {name: os.environ[name] for name in ("HOME", "NETRC")}
    result: dict[str, Any] = run_forked(logged, mode, folder=Path.cwd(), timeout=60, **environment)
    return result


@pytest.mark.parametrize(
    "place", [".env", *(pytest.param(place, marks=pytest.mark.faults) for place in ("wandb/settings", "user"))]
)
def test_no_request_to_a_file_s_server_carries_the_environment_s_key(place: str, server: WandbServer) -> None:
    own = WandbServer("accept")
    try:
        say(place, server=server.url)
        say("environment", key=OURS, server=own.url)
        reported = run("online")
        assert (reported["mode"], reported["here"]) == ("online", True)
        assert own.keys == {f"api:{OURS}"}
        assert (server.asked, server.keys) == ([], set())
    finally:
        own.vanish()


@pytest.mark.parametrize("place", [".env", "wandb/settings", "user"])
def test_a_file_s_server_gets_the_key_of_the_same_file(place: str, server: WandbServer) -> None:
    say(place, server=server.url, key=THEIRS)
    assert run("auto")["mode"] == "online"
    assert server.keys == {f"api:{THEIRS}"}


@pytest.mark.faults
@pytest.mark.parametrize("setting", ["http_proxy", "https_proxy", "x_extra_http_headers", "root_dir", "mode"])
def test_w_and_b_takes_no_setting_from_the_working_folder(
    setting: str, server: WandbServer, tmp_path: Path
) -> None:
    own = WandbServer("accept")
    values = {"root_dir": str(tmp_path / "away"), "mode": "disabled", "x_extra_http_headers": '{"a": "b"}'}
    Path("wandb").mkdir()
    Path("wandb/settings").write_text(f"[default]\n{setting} = {values.get(setting, server.url)}\n")
    try:
        say("environment", key=OURS, server=own.url)
        assert run("online")["mode"] == "online"
        assert own.history
        assert server.asked == []
        assert not (tmp_path / "away").exists()
    finally:
        own.vanish()


@pytest.mark.faults
@pytest.mark.parametrize("name", [".env", "wandb/settings", "~/.config/wandb/settings", "~/.netrc"])
def test_a_pipe_holds_up_no_run(name: str, server: WandbServer) -> None:
    path = Path(name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    assert run("offline")["mode"] == "offline"
    say("environment", key=OURS, server=server.url)
    assert run("online")["mode"] == "online"
