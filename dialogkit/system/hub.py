"""Load from the Hugging Face hub within time limits: its own libraries wait and retry for minutes, or forever.

Four limits hold for every request to the hub, each a constant here. An answer must begin within `ANSWER_S`,
including redirects and retries; the slow answers of one loading may take `ANSWERS_S` in total. A file must deliver
`STALL_BYTES` every `STALL_S`, so a slow download continues as long as it progresses, and a trickle ends. A file
whose connection breaks is resumed at most `BREAKS` times. The first failure ends the loading: the cached copy is
used, with one warning, or one sentence says what the server did.
"""

import logging
import os
import queue
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from importlib import import_module
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from dialogkit.errors import DialogKitError, UnavailableError
from dialogkit.hints import Hint
from dialogkit.system import network
from dialogkit.system.network import Wait, answer_limit, hub_forbidden, hub_url, plain_url, problems, take
from dialogkit.system.signals import ended_by_signals

logger = logging.getLogger(__name__)
T = TypeVar("T")

SLOW_S, ANSWERS_S = 3.0, 60.0
"""Seconds from which an answer counts as slow, and the longest total wait for slow answers of one loading."""
STALL_S, STALL_BYTES = 30.0, 16 * 1024
"""A file that delivers fewer bytes in this time has stalled; HF_HUB_DOWNLOAD_TIMEOUT overrides the seconds."""
PAGE = "answered with a web page, such as the sign-in page of a network"
"""The rest of a sentence about such a page."""
BREAKS = 5
"""How often a file is resumed after its connection broke."""
BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of a server that may answer later."""
_QUEUED = 32
"""Most chunks of a file that wait in the queue."""

_noted: set[str] = set()
_requests: "Requests | None" = None
_one_at_a_time = threading.RLock()
"""Held while the limits apply to the libraries, whose settings are process-wide."""


def stall_limit() -> float:
    """Return the seconds within which a file must deliver `STALL_BYTES`."""
    return network.seconds_of("HF_HUB_DOWNLOAD_TIMEOUT", STALL_S)


def _forked() -> None:
    global _requests, _one_at_a_time
    _requests, _one_at_a_time = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def from_hub(load: Callable[[bool], T], *, lacking: str, hint: Hint) -> T:
    """Load something from the hub, or from its cache on disk if the hub is forbidden, unreachable or fails.

    Args:
        load: calls the hub's libraries; receives whether they may contact the hub.
        lacking: the end of the sentence that says what is missing, such as `'gpt2' is not in its cache`.
        hint: what to do about it.

    Raises: UnavailableError if the hub fails and the cache is not enough; else whatever `load` raises.
    """
    with limited(_Loading(_known_failure())) as loading:
        failure = loading.failure
        if failure is None:
            try:
                result = load(True)
            except Exception as error:
                loading.raise_stop()
                failure = loading.failure = loading.failure or loading.problem(error)
                if failure is None:
                    raise
            else:
                loading.raise_stop()
                # A failure that a library ignored may leave the result incomplete.
                if (failure := loading.failure) is None:
                    return result
            network.remember(hub_url(), failure.removeprefix(f"{hub_name()} "))
        try:
            result = load(False)
        except (OSError, ValueError) as error:  # other errors come from a damaged copy
            loading.raise_stop()
            raise UnavailableError(f"{failure}, and {lacking}", hint=hint) from error
        loading.raise_stop()
        if result is not None and not hub_forbidden() and failure not in _noted:
            _noted.add(failure)
            logger.warning("%s; the copy in its cache is used", failure)
        return result


def _known_failure() -> str | None:
    """Return why the hub cannot be asked, without asking it; None if it may answer."""
    if hub_forbidden():
        return "HF_HUB_OFFLINE forbids asking the hub"
    problem = problems([hub_url()])[0]
    return problem and f"{hub_name()} {problem}"


class Requests(Protocol):
    """What decides about each request of the hub's libraries, and has an event that a signal sets."""

    stop: threading.Event

    def send(self, send: Callable[..., Any], request: Any, *, stream: bool, **options: Any) -> Any:
        """Send a request by the library's own function, and return the response."""


R = TypeVar("R", bound=Requests)


@contextmanager
def limited(requests: R) -> Iterator[R]:
    """Apply limits to the hub's libraries, one caller at a time, and silence the libraries."""
    with _one_at_a_time, _in_place_of_theirs(requests):
        yield requests


@contextmanager
def _in_place_of_theirs(requests: Requests) -> Iterator[None]:
    global _requests
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    client = huggingface_hub.get_session()
    if not hasattr(client, "dialogkit_limits"):
        # Wraps the client in use, so that its proxy and certificates stay.
        client.send = _sending(client.send)  # type: ignore[method-assign]
        client.dialogkit_limits = True  # type: ignore[attr-defined]
    before, _requests = _requests, requests
    verbosity, xet = hub_logging.get_verbosity(), huggingface_hub.constants.HF_HUB_DISABLE_XET
    hub_logging.set_verbosity(logging.CRITICAL)
    if "HF_HUB_DISABLE_XET" not in os.environ:
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True  # it ignores these limits
    try:
        # A library may wait for its own threads, which a signal does not reach.
        with ended_by_signals(lambda _: requests.stop.set()), warnings.catch_warnings():
            # For example of a full disk, which writing the file reports again.
            warnings.filterwarnings("ignore", module="huggingface_hub")
            yield
    finally:
        _requests = before
        hub_logging.set_verbosity(verbosity)
        huggingface_hub.constants.HF_HUB_DISABLE_XET = xet


def _sending(send: Callable[..., Any]) -> Callable[..., Any]:
    def limited(request: Any, *, stream: bool = False, **options: Any) -> Any:
        if (requests := _requests) is None:
            return send(request, stream=stream, **options)
        return requests.send(send, request, stream=stream, **options)

    return limited


class _Loading:
    """The requests of one loading.

    Attributes:
        failure: the start of a sentence that says what the hub did wrong; afterwards it gets no more requests.
        stop: set by a signal that the main thread could not handle.
    """

    def __init__(self, failure: str | None) -> None:
        self.failure = failure
        self.stop = threading.Event()
        self._stopped: DialogKitError | None = None
        self._waited = 0.0
        self._breaks: Counter[str] = Counter()

    def raise_stop(self) -> None:
        """Raise the error of a signal that stopped the loading again, in case a library caught it."""
        if self._stopped is not None:
            raise self._stopped

    @staticmethod
    def problem(error: BaseException) -> str | None:
        """Return what the hub did wrong if it caused a library's error, else None."""
        seen: BaseException | None = error
        while seen is not None:
            if is_of_client(seen):
                return f"{hub_name()} {said_by(seen)}"
            if type(seen).__name__ == "FileMetadataError":
                return f"the server at {plain_url(hub_url())} answered, but not as a hub does"
            seen = seen.__cause__ or seen.__context__
        return None

    def send(self, send: Callable[..., Any], request: Any, *, stream: bool, **options: Any) -> Any:
        """Send a request. Returns: the response, to whose body the limits apply too."""
        request.extensions = {**request.extensions, "dialogkit_file": stream}
        try:
            limit, start = answer_limit(), time.monotonic()
            end = start + max(0.0, min(limit, ANSWERS_S - self._waited))
            try:
                response = self._answer(send, request, options, end, limit)
            finally:
                if (waited := time.monotonic() - start) >= SLOW_S:
                    self._waited += waited
            response.stream = _body(self, response, request, stall_limit() if stream else limit)
            if not stream:
                response.read()
            return response
        except DialogKitError as error:  # a signal, which no library may swallow
            self._stopped = error
            raise

    def _answer(
        self, send: Callable[..., Any], request: Any, options: dict[str, Any], end: float, limit: float
    ) -> Any:
        news = Wait(f"waiting for {server_of(request)}, at most {limit:g} s")
        for attempt in range(10):
            self.raise_stop()
            if self.stop.is_set():
                raise KeyboardInterrupt
            if self.failure is not None:
                self._raise(self.failure)
            pump = _Pump(send, request, options)
            wait = float(2**attempt)
            try:
                response = take(pump.answer, end, news, self.stop)
            except BaseException as error:
                pump.abandon()
                if not isinstance(error, TimeoutError):
                    raise
                if ANSWERS_S - self._waited < limit:
                    self.fail(request, f"answered so slowly that {ANSWERS_S:g} s were waited in all")
                self.fail(request, f"did not answer within {limit:g} s")
            wait = float(2**attempt)
            if isinstance(response, BaseException):
                if not is_of_client(response):
                    raise response
                said = said_by(response)
                if "closed" not in said:
                    self.fail(request, said)
            elif response.status_code in BUSY and is_for_hub(request):
                pump.abandon()
                status = int(response.status_code)
                said = f"answered {status} ({HTTPStatus(status).phrase.lower()})"
                with suppress(ValueError):
                    wait = float(response.headers.get("Retry-After", ""))
                    said += f" and asks to wait {wait:g} s"
            else:
                if is_page(request, response):
                    pump.abandon()
                    self.fail(request, PAGE)
                response.extensions["dialogkit_pump"] = pump
                return response
            if time.monotonic() + wait >= end:
                self.fail(request, said)
            news.tick()
            self.stop.wait(wait)
        self.fail(request, said)

    def broke(self, request: Any, error: BaseException) -> NoReturn:
        """Raise the error of a body that broke off, so that the library resumes it, or give up."""
        self._breaks[str(request.url)] += 1
        if self._breaks[str(request.url)] > BREAKS:
            self.fail(request, f"broke off {_file(request)} {BREAKS + 1} times")
        raise error

    def fail(self, request: Any, said: str) -> NoReturn:
        """End the loading, or only the request if it is neither for the hub nor a file, such as telemetry."""
        failure = f"{server_of(request)} {said}"
        if is_for_hub(request) or request.extensions.get("dialogkit_file"):
            self.failure = self.failure or failure
        self._raise(failure)

    @staticmethod
    def _raise(failure: str) -> NoReturn:
        from huggingface_hub.errors import OfflineModeIsEnabled

        raise OfflineModeIsEnabled(failure)  # on this error the libraries neither retry nor wait


class _Pump:
    """Sends a request and reads its body, in its own thread.

    Attributes:
        answer: receives the response or an exception.
        pieces: receives the body, then None or an exception.
    """

    def __init__(self, send: Callable[..., Any], request: Any, options: dict[str, Any]) -> None:
        self.answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.pieces: queue.Queue[Any] = queue.Queue(_QUEUED)
        self._abandoned = threading.Event()
        # The caller enforces the limits; this timeout only ends abandoned threads.
        seconds = max(answer_limit(), stall_limit()) + 5
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        request.extensions = {**request.extensions, "timeout": timeout}
        network.begin(lambda: self._run(send, request, options))

    def abandon(self) -> None:
        """Abandon the request."""
        self._abandoned.set()

    def _run(self, send: Callable[..., Any], request: Any, options: dict[str, Any]) -> None:
        try:
            response = send(request, stream=True, **options)
        except BaseException as error:
            self.answer.put(error)
            return
        body, last = response.stream, None
        self.answer.put(response)
        try:
            for piece in body:
                if not self._put(piece):
                    break
        except BaseException as error:
            last = error
        finally:
            with suppress(Exception):
                body.close()
        self._put(last)

    def _put(self, piece: Any) -> bool:
        while not self._abandoned.is_set():
            with suppress(queue.Full):
                self.pieces.put(piece, timeout=1)
                return True
        return False


def _body(loading: _Loading, response: Any, request: Any, limit: float) -> Any:
    """Return the body of a response as a stream that ends the loading if it stalls."""
    pump: _Pump = response.extensions.pop("dialogkit_pump")
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else 0

    class Body(import_module(type(response).__module__.partition(".")[0]).SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            news = Wait("")
            taken, window, left = 0, 0, limit
            while True:
                so_far = f"{taken / 1e6:,.1f} of {total / 1e6:,.1f} MB" if total else f"{taken / 1e6:,.1f} MB"
                news.text = f"fetching {_file(request)} from {server_of(request)}: {so_far}"
                news.tick()
                start = time.monotonic()
                try:
                    piece = take(pump.pieces, start + left, news, loading.stop)
                except TimeoutError:
                    piece = b""
                # Time between reads is the caller's and does not count.
                left -= time.monotonic() - start
                if piece is None:
                    return
                if isinstance(piece, BaseException):
                    loading.broke(request, piece)
                taken, window = taken + len(piece), window + len(piece)
                if left <= 0:
                    if window < STALL_BYTES:
                        least = f"sent {window:,} bytes of {_file(request)} in {limit:g} s"
                        loading.fail(request, f"{least}, and at least {STALL_BYTES:,} are due")
                    window, left = 0, limit
                if piece:
                    yield piece

        def close(self) -> None:
            pump.abandon()

    return Body()


def is_for_hub(request: Any) -> bool:
    """Return whether a request goes to the hub itself, and not to a server for its files."""
    return str(request.url.host) == urlsplit(hub_url()).hostname


def hub_name() -> str:
    """Return the hub as a sentence names it."""
    return f"the hub at {plain_url(hub_url())}"


def server_of(request: Any) -> str:
    """Return the server of a request as a sentence names it."""
    return hub_name() if is_for_hub(request) else f"the hub's server {request.url.host}"


def _file(request: Any) -> str:
    """Return what a request is for, as a word for a sentence."""
    path = unquote(str(request.url.path))
    return repr(path.partition("/resolve/")[2].partition("/")[2] or path.rpartition("/")[2] or "/")


def is_page(request: Any, response: Any) -> bool:
    """Return whether a page for people came in place of the hub's answer, as where one has to sign in first."""
    kind = response.headers.get("Content-Type", "")
    return (
        response.status_code == 200
        and is_for_hub(request)
        and kind.startswith("text/html")
        and "X-Repo-Commit" not in response.headers
    )


def is_of_client(error: BaseException) -> bool:
    """Return whether httpx, or the library below it, raised an error."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def said_by(error: BaseException) -> str:
    """Return what a server did, given an error of httpx."""
    kind = type(error).__name__
    if kind == "TooManyRedirects":
        return "redirects in a circle"
    if kind in ("RemoteProtocolError", "ReadError", "WriteError", "CloseError"):
        return "closed the connection without an answer"
    if "Timeout" in kind:
        return "did not answer in time"
    return network.unreachable(error)
