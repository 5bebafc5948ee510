"""Find W&B's server and key. Both come from one source, so that no file can send another source's key elsewhere.

A key of the environment goes to the environment's server or to W&B's own, and a key in a file to the server in
that file, else to the environment's or W&B's own. A key in netrc goes to the server that its entry names.
"""

import configparser
import ipaddress
import logging
import netrc
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dialogkit.errors import UnavailableError, os_reason
from dialogkit.hints import Hint, Shell
from dialogkit.redaction import redact, remember
from dialogkit.text import lines_of, read_small, sanitize, wide_encoding

logger = logging.getLogger(__name__)

DEFAULT_SERVER = "https://api.wandb.ai"
_ENVIRONMENT = "the environment"
_LARGEST_FILE = 1_000_000
_KEY = re.compile(r"[!-~]{1,1024}")
_SETTINGS = {"WANDB_API_KEY": "api_key", "WANDB_ENTITY": "entity", "WANDB_BASE_URL": "base_url"}


@dataclass(frozen=True)
class Credentials:
    """Server, key and entity; the key itself is never logged or stored."""

    key: str | None
    server: str
    entity: str | None = None
    key_from: str | None = field(default=None, compare=False)
    """Source of the key: the environment, a file, or None."""
    server_from: str = field(default="default", compare=False)
    problem: str | None = field(default=None, compare=False)
    """Why the settings of the environment cannot be used."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Settings that were not used as possibly intended, and dangers."""

    def require_key(self, *, hint: Hint | None = None) -> str:
        """Return the key. Raises: UnavailableError without one."""
        if self.key is None:
            raise UnavailableError(
                self.problem
                or "W&B needs a key, and WANDB_API_KEY is neither set nor in .env, nor is one in netrc",
                hint=hint or Shell("wandb login"),
            )
        return self.key

    def warn(self) -> None:
        """Log a warning for each note."""
        for note in self.notes:
            logger.warning("%s", note)

    def __repr__(self) -> str:
        return f"Credentials(key={'set' if self.key else None}, server={self.server!r}, entity={self.entity!r})"


@dataclass(frozen=True)
class _Source:
    """Settings of one source; only its own server may get its key, if it names one."""

    name: str
    server: str | None = None
    key: str | None = None
    entity: str | None = None


def find_credentials(folder: Path) -> Credentials:
    """Return server and key from the environment, files in `folder`, the user's W&B settings, or netrc."""
    notes: list[str] = []
    try:
        environment = _source(_ENVIRONMENT, {short: os.environ.get(name) for name, short in _SETTINGS.items()})
    except ValueError as error:
        return Credentials(None, DEFAULT_SERVER, problem=str(error), notes=(str(error),))
    files = []
    for name, path in _files(folder):
        try:
            files.append(_read(name, path))
        except ValueError as error:
            notes.append(f"{error}; nothing in that file is used for W&B")
    key, key_from, server, server_from = _match(environment, files)
    for source in files:
        if source.server not in (None, server):
            used = f"the key from {key_from} goes to {server}" if key else "there is no key"
            its = "the key beside it" if source.key else "a key from the same file"
            notes.append(f"{source.name} names the W&B server {source.server}, which only gets {its}; {used}")
    if key is not None and not _is_private(server):
        notes.append(f"the W&B key goes to {server} unencrypted")
    sources = [environment, *files]
    entity = next((s.entity for s in sources if s.entity and s.server in (None, server)), None)
    return Credentials(key, server, entity, key_from, server_from, notes=tuple(notes))


def _match(environment: _Source, files: list[_Source]) -> tuple[str | None, str | None, str, str]:
    """Return a key with its source, and the server it may be sent to with that one's source."""
    default = environment if environment.server else _Source("default", DEFAULT_SERVER)
    assert default.server is not None
    for source in (environment, *files):
        if source.key and environment.server and source.server not in (None, environment.server):
            continue  # the environment names the server, and this key belongs to another
        if source.key:
            named = source if source.server else default
            return source.key, source.name, named.server or DEFAULT_SERVER, named.name
    for source in (default,) if environment.server else (*files, default):
        mine = source is environment
        if source.server and (mine or _is_private(source.server)) and (key := _netrc_key(source.server, mine)):
            return key, "netrc", source.server, source.name
    return None, None, default.server, default.name


def server_problem(url: str) -> str | None:
    """Return a server address, without its password, and what is wrong with it; None if it is valid."""
    start, at, end = url.rpartition("@")
    scheme = f"{start.partition('://')[0]}://" if "://" in start else ""
    shown = repr(sanitize(redact(re.split("[?#]", f"{scheme}***@{end}" if at else url)[0]))[:200])
    if not re.fullmatch(r"[!-~]{1,2048}", url) or "\\" in url:
        return f"{shown}, which holds characters that no address has"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return f"{shown}, which is not an address"
    if at:
        return f"{shown}, and an address must not hold a user or a password"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{shown}, which does not begin with https:// and a host"
    if parts.query or parts.fragment:
        return f"{shown}, which has more than a host and a path"
    return None


def _source(name: str, said: dict[str, str | None]) -> _Source:
    """Return the settings of a source. Raises: ValueError with a sentence for an invalid address or key."""
    server = (said.get("base_url") or "").strip().rstrip("/") or None
    key = (said.get("api_key") or "").strip() or None
    if key is not None:
        remember(key)
    if server is not None and (problem := server_problem(server)):
        raise ValueError(f"{name} names the W&B server {problem}")
    if key is not None and not _KEY.fullmatch(key):
        raise ValueError(f"the W&B key in {name} holds characters that no key has")
    return _Source(name, server, key, (said.get("entity") or "").strip() or None)


def user_settings() -> Path:
    """Return the path of the user's W&B settings, which `wandb login` writes for another host."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.join("~", ".config", "wandb")
    return Path(os.path.expanduser(folder), "settings")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    yield ".env", folder / ".env"
    yield os.path.join("wandb", "settings"), folder / "wandb" / "settings"
    yield "W&B's settings of the user", user_settings()


def _read(name: str, path: Path) -> _Source:
    """Return the settings of a file; empty if it does not exist. Raises: ValueError with a sentence."""
    text = _text(name, path)
    if path.name == ".env":
        return _source(name, {short: _dotenv(text).get(long) for long, short in _SETTINGS.items()})
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error:
        raise ValueError(f"{name} cannot be understood") from None
    return _source(name, dict(parser.items("default")) if parser.has_section("default") else {})


def _text(name: str, path: Path) -> str:
    try:
        content = read_small(path, _LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {os_reason(error)}") from None
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"{name} is larger than 1 MB")
    return content.decode(wide_encoding(content[:4096]) or "utf-8-sig", "replace").removeprefix("\ufeff")


def read_dotenv(path: Path) -> dict[str, str]:
    """Return the W&B settings of a `.env` file: `NAME=value` lines of known names; others are ignored."""
    with suppress(ValueError):
        return _dotenv(_text(path.name, path))
    return {}


def _dotenv(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in lines_of(text):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and name.strip() in _SETTINGS:
            values[name.strip()] = value.strip().strip("\"'")
    return values


def is_open_dotenv(path: Path) -> bool:
    """Return whether other users can read a `.env` that holds the key. Raises: OSError."""
    return bool(path.stat().st_mode & 0o077) and "WANDB_API_KEY" in read_dotenv(path)


def warn_of_open_dotenv(path: Path) -> None:
    """Warn if other users can read a `.env` that holds the key."""
    with suppress(OSError):
        if is_open_dotenv(path):
            logger.warning(
                "%s holds a key and other users can read it; protect it: chmod 600 %s", path.name, path.name
            )


def _netrc_key(server: str, any_port: bool) -> str | None:
    """Return the key of the entry for a server's host; `default` does not count.

    Args:
        server: address.
        any_port: also accept an entry without the port of the address.
    """
    parts = urlsplit(server)
    hosts = [parts.netloc, *([parts.hostname] if any_port or parts.port is None else [])]
    named = os.environ.get("NETRC")
    places = [Path(os.path.expanduser(named))] if named else [Path.home() / name for name in (".netrc", "_netrc")]
    with suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        path = next(place for place in (*places, places[0]) if place.exists() or place is places[0])
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return None
        entries = netrc.netrc(path).hosts
        for host in hosts:
            if host in entries and host != "default" and (key := entries[host][2]) and _KEY.fullmatch(key):
                return remember(key)
    return None


def _is_private(server: str) -> bool:
    """Return whether nobody between here and a server can read along."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
