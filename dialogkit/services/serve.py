"""Serves models over HTTP: OpenAI's chat API, and a page to chat on."""

import asyncio
import inspect
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.config.problems import require_number
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError, UnavailableError, os_reason
from dialogkit.hints import Call, Change, Either, Shell
from dialogkit.services.inference import hints_for, names_of, sampling_of
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.services.serving.guard import is_loopback
from dialogkit.system.compute_lock import alone
from dialogkit.system.signals import handled_by

if TYPE_CHECKING:
    from types import FrameType

_P = ParamSpec("_P")

PORT, AT_ONCE, QUEUE, TIME_LIMIT_S = 8000, 32, 128, 300.0
DRAIN_S = 30
"""Seconds that replies have to end after a signal to stop."""
KEY_VARIABLE = "DIALOGKIT_API_KEY"


class Server:
    """Models that are loaded, and a port that is taken for them.

    Attributes:
        url: where it answers.
        models: the names that requests may give.
        notes: what was used of the models' own sampling settings, if `use_model_settings` is on, and what their
            chat templates do not take as it is.
    """

    def __init__(
        self,
        model: str | Path | Sequence[str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        output: str | Path = DEFAULT_OUTPUT,
        device: str = "auto",
        at_once: int = AT_ONCE,
        queue: int = QUEUE,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Load the models and take the port; see `serve`."""
        _require_packages()
        api_key = api_key or os.environ.get(KEY_VARIABLE) or None
        if api_key is None and not is_loopback(host):
            raise ConfigError(
                f"other machines reach the host {host!r}, and there is no API key",
                hint=Either(f"set the environment variable {KEY_VARIABLE}", Change({"host": "127.0.0.1"})),
            )
        require_number("port", port, least=0, most=65_535, usual=PORT)
        require_number("at_once", at_once, least=1, most=1024, usual=AT_ONCE)
        require_number("queue", queue, least=1, most=100_000, usual=QUEUE)
        require_number("time_limit_s", time_limit_s, least=0.1, usual=TIME_LIMIT_S, whole=False)
        config = config or GenerateConfig()
        typed = names_of(model or None)
        chosen = [resolve_model(name, output=output) for name in typed]
        names = [loadable.display_name for loadable in chosen]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"the model {twice[0]!r} is given twice", hint=Call("serve", twice[0]))
        settings, self.notes = sampling_of(chosen, config, verb="serve", output=output)
        self._socket = _listen(host, port)
        try:
            self._server = self._load(
                list(zip(names, chosen, typed, settings, strict=True)),
                is_seeded="seed" in config.model_fields_set,
                device=device,
                api_key=api_key,
                at_once=at_once,
                queue=queue,
                time_limit_s=time_limit_s,
            )
        except BaseException:
            self._socket.close()
            raise
        self.models = names
        self._thread: threading.Thread | None = None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

    @alone()
    def _load(
        self,
        models: Sequence[tuple[str, Any, str | None, GenerateConfig]],
        *,
        is_seeded: bool,
        device: str,
        api_key: str | None,
        at_once: int,
        queue: int,
        time_limit_s: float,
    ) -> Any:
        """Load the models, start their engine, and return the HTTP server."""
        import uvicorn

        from dialogkit.services.runs.loading import load_for_replies
        from dialogkit.services.serving.app import Limits, Offered, make_app
        from dialogkit.services.serving.connections import Connection
        from dialogkit.services.serving.engine import Engine

        loaded, offered = {}, []
        for name, loadable, typed, config in models:
            with hints_for(loadable):
                loaded[name] = load_for_replies(loadable, device=device)
            changes = loaded[name].tokenizer.changes([Message("system", "-"), Message("user", "-")])
            self.notes += [f"{name}: {change}" for change in changes]
            aliases = () if typed in (None, name) else (typed,)
            offered.append(Offered(name, config, is_seeded, aliases, int(time.time())))
        self._engine = Engine(loaded, at_once=at_once, queue=queue)
        app = make_app(self._engine, offered, limits=Limits(reply_s=time_limit_s), api_key=api_key)
        options = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            http=Connection,
            timeout_graceful_shutdown=DRAIN_S,
        )
        return uvicorn.Server(options)

    def run(self) -> int | None:
        """Answer requests until `stop` is called or a signal arrives; return the signal's number.

        Replies that were asked for are finished first, for up to 30 seconds; a second Ctrl-C ends them.
        """
        noted: list[int] = []

        def note(number: int, frame: "FrameType | None") -> None:
            noted.append(number)

        with self._socket, handled_by(note):  # the HTTP server passes signals on when it has ended
            try:
                asyncio.run(self._server.serve(sockets=[self._socket]))
            except KeyboardInterrupt:
                noted.append(signal.SIGINT)
            finally:
                self._engine.close()
        return noted[0] if noted else None

    def start(self) -> None:
        """Answer requests in a thread until `stop` is called."""
        self._thread = threading.Thread(target=self.run, daemon=True, name="dialogkit-server")
        self._thread.start()

    def stop(self) -> None:
        """End `run`, from any thread, and wait for what `start` began."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _with_parameters_of(
    make: Callable[_P, Server],
) -> Callable[[Callable[..., Server]], Callable[_P, Server]]:
    """Return a decorator that gives a function the parameters of another one, which alone declares them."""

    def give(function: Callable[..., Server]) -> Callable[_P, Server]:
        parameters = inspect.signature(make).replace(return_annotation=Server)
        function.__signature__ = parameters  # type: ignore[attr-defined]
        return function

    return give


@_with_parameters_of(Server)
def serve(*args: Any, **options: Any) -> Server:  # noqa: D417 (documented are the parameters it is given)
    """Serve models over HTTP in a thread; return the server, whose `stop` ends it, as does the end of a `with`.

    Args:
        model: catalogue name, run, folder or hub id, or several of them; None is the newest finished run.
        host: address to listen on. Other machines reach it unless it is loopback, and then a key is needed.
        port: port to listen on; 0 is any free one.
        api_key: key that requests must give; None takes the environment variable DIALOGKIT_API_KEY.
        config: sampling settings where a request gives none. Without a seed there, each request without one gets
            another.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.
        at_once: most replies of a model that are generated together.
        queue: most replies that wait; more are refused.
        time_limit_s: seconds that a reply may take, waiting included.

    Raises: ModelError, UnavailableError, ConfigError.
    """
    server = Server(*args, **options)
    server.start()
    return server


def _require_packages() -> None:
    """Raise UnavailableError without the packages of the server."""
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"a server needs the package {error.name}", hint=Shell("pip install 'dialogkit[serve]'")
        ) from None
    del starlette


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port. Raises: UnavailableError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(128)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        other = Change({"port": port + 1 if port < 65_535 else PORT})
        raise UnavailableError(
            f"port {port} of {host!r} cannot be used: {os_reason(error)}",
            hint=Change({"host": "127.0.0.1"}) if isinstance(error, socket.gaierror) else other,
        ) from None
    return listening
