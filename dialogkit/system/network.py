"""Time limits for servers, in one place: the libraries themselves wait and retry for minutes, or forever.

Four limits hold for every request to the Hugging Face hub, each a constant here. An answer must begin within
`ANSWER_S`, including redirects and retries; the slow answers of one loading may take `ANSWERS_S` in total. A file
must deliver `STALL_BYTES` every `STALL_S`, so a slow download continues as long as it progresses, and a trickle
ends. A file whose connection breaks is resumed at most `BREAKS` times. The first failure ends the loading: the
cached copy is used, with one warning, or one sentence says what the server did.

Every request runs in its own thread: no socket timeout covers name lookup, or a server that sends a byte now and
then. So the caller's wait can always be interrupted.
"""

import logging
import os
import queue
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from importlib import import_module
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from dialogkit.errors import DialogKitError, UnavailableError
from dialogkit.hints import Hint
from dialogkit.system.signals import ended_by_signals

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_S = 2.0
"""Longest wait for a connection when only checking that a server exists."""
ANSWER_S = 10.0
"""Longest wait for an answer to begin; HF_HUB_ETAG_TIMEOUT overrides it."""
SLOW_S, ANSWERS_S = 3.0, 60.0
"""Seconds from which an answer counts as slow, and the longest total wait for slow answers of one loading."""
STALL_S, STALL_BYTES = 30.0, 16 * 1024
"""A file that delivers fewer bytes in this time has stalled; HF_HUB_DOWNLOAD_TIMEOUT overrides the seconds."""
BREAKS = 5
"""How often a file is resumed after its connection broke."""
REMEMBERED_S = 60.0
"""How long the result of a check is reused."""
NEWS_S = 3.0, 10.0
"""Seconds until a wait is first reported, and between later reports."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_QUEUED = 32
"""Most chunks of a file that wait in the queue."""


_known: dict[str, tuple[float, str | None]] = {}
"""When each server was checked, and what was wrong with it."""
_noted: set[str] = set()
_loading: "_Loading | None" = None
_one_at_a_time = threading.RLock()
"""Held while the limits apply to the libraries, whose settings are process-wide."""


def _seconds(variable: str, otherwise: float) -> float:
    with suppress(ValueError):
        if (given := float(os.environ.get(variable, ""))) > 0:
            return given
    return otherwise


def answer_limit() -> float:
    """Return the seconds within which an answer must begin."""
    return _seconds("HF_HUB_ETAG_TIMEOUT", ANSWER_S)


def stall_limit() -> float:
    """Return the seconds within which a file must deliver `STALL_BYTES`."""
    return _seconds("HF_HUB_DOWNLOAD_TIMEOUT", STALL_S)


def hub_url() -> str:
    """Return the address of the Hugging Face hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_on(value: str) -> bool:
    """Return whether the value of an environment variable of the hub's libraries means yes."""
    return value.strip().upper() in {"1", "ON", "YES", "TRUE"}


def hub_forbidden() -> bool:
    """Return whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` forbids requests to the hub."""
    return is_on(os.environ.get("HF_HUB_OFFLINE", "") or os.environ.get("TRANSFORMERS_OFFLINE", ""))


# Checks whether a server answers


def forget() -> None:
    """Forget all results, so that every server is checked again."""
    _known.clear()
    _noted.clear()


def problems(urls: Sequence[str]) -> list[str | None]:
    """Check in parallel whether servers answer HTTP, with any status.

    Returns: for each, None if it answers, else the rest of a sentence such as `did not answer within 10 s`.
    """
    limit = answer_limit()
    deadline = time.monotonic() + limit
    answers: dict[str, queue.SimpleQueue[str | None]] = {}
    for url in dict.fromkeys(urls):
        at, _ = _known.get(url, (-REMEMBERED_S, None))
        if time.monotonic() - at >= REMEMBERED_S:
            answers[url] = queue.SimpleQueue()
            _begin(lambda url=url: answers[url].put(_problem(url, limit)))  # type: ignore[misc]
    for url, answer in answers.items():
        try:
            found = _get(answer, deadline, Wait(f"waiting for {plain_url(url)}, at most {limit:g} s"))
        except TimeoutError:
            found = f"did not answer within {limit:g} s"
        _known[url] = time.monotonic(), found
    return [_known[url][1] for url in urls]


def hub_reachable() -> bool:
    """Return whether requests to the Hugging Face hub are allowed and it answers."""
    return not hub_forbidden() and problems([hub_url()]) == [None]


def _problem(url: str, limit: float) -> str | None:
    import http.client
    import urllib.request
    from urllib.error import HTTPError, URLError

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None  # a redirect counts as an answer

    try:
        if (reason := _refusal(url)) is not None:
            return reason
        opener = urllib.request.build_opener(Stay)
        with opener.open(urllib.request.Request(plain_url(url), method="HEAD"), timeout=limit):
            return None
    except HTTPError:
        return None
    except URLError as error:
        import ssl

        if isinstance(error.reason, ssl.SSLCertVerificationError):
            return None  # the libraries may trust other authorities than this interpreter
        return _unreachable(error.reason)
    except http.client.RemoteDisconnected:
        return "closed the connection without an answer"
    except TimeoutError:
        return f"did not answer within {limit:g} s"
    except (http.client.HTTPException, OSError, ValueError) as error:
        return _unreachable(error)


def _refusal(url: str) -> str | None:
    """Return what is wrong if no connection to the host of `url`, or its proxy, opens within `CONNECT_S`."""
    from urllib.request import getproxies, proxy_bypass

    scheme = urlsplit(url).scheme or "https"
    host = urlsplit(url).hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    target = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}" if proxy else url)
    if not target.hostname:
        return "cannot be reached: its address names no server"
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        with socket.create_connection((target.hostname, port), timeout=CONNECT_S):
            return None
    except OSError as error:
        return _unreachable(error)


def _unreachable(error: object) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be reached: {str(reason).splitlines()[0][:200].lower()}"


def plain_url(url: str) -> str:
    """Return an address without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


# Interruptible waits, in threads that need not be joined


class Wait:
    """Logs what is waited for, at the intervals of `NEWS_S`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._start = time.monotonic()
        self._next = self._start + NEWS_S[0]

    def tick(self) -> None:
        """Log the wait if a report is due."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + NEWS_S[1]
            logger.info("%s (%.0f s so far) ...", self.text, time.monotonic() - self._start)


def _begin(work: Callable[[], object]) -> None:
    threading.Thread(target=work, name="dialogkit-network", daemon=True).start()


def _get(source: "queue.SimpleQueue[T] | queue.Queue[T]", deadline: float, news: Wait | None = None) -> T:
    """Take from a queue. Raises: TimeoutError."""
    while True:
        try:
            return source.get(timeout=max(0.0, min(0.25, deadline - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            if news is not None:
                news.tick()


# The limits, applied to the hub's own libraries


def _forked() -> None:
    global _loading, _one_at_a_time
    _loading, _one_at_a_time = None, threading.RLock()


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
    with _one_at_a_time:
        return _from_hub(load, lacking, hint)


def _from_hub(load: Callable[[bool], T], lacking: str, hint: Hint) -> T:
    address = f"the hub at {plain_url(hub_url())}"
    if hub_forbidden():
        failure: str | None = "HF_HUB_OFFLINE forbids asking the hub"
    elif (problem := problems([hub_url()])[0]) is not None:
        failure = f"{address} {problem}"
    else:
        failure = None
    with _limited(failure) as loading:
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
            _known[hub_url()] = time.monotonic(), failure.removeprefix(f"{address} ")
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


@contextmanager
def _limited(failure: str | None) -> "Iterator[_Loading]":
    """Apply the limits to the hub's libraries, and silence them."""
    global _loading
    import huggingface_hub
    from huggingface_hub.utils import logging as hub_logging

    client = huggingface_hub.get_session()
    if not hasattr(client, "dialogkit_limits"):
        # Wraps the client in use, so that its proxy and certificates stay.
        client.send = _sending(client.send)  # type: ignore[method-assign]
        client.dialogkit_limits = True  # type: ignore[attr-defined]
    before, _loading = _loading, _Loading(failure)
    loading = _loading
    verbosity, xet = hub_logging.get_verbosity(), huggingface_hub.constants.HF_HUB_DISABLE_XET
    hub_logging.set_verbosity(logging.CRITICAL)
    if "HF_HUB_DISABLE_XET" not in os.environ:
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True  # it ignores these limits
    try:
        # A library may wait for its own threads, which a signal does not reach.
        with ended_by_signals(lambda _: loading.stop.set()), warnings.catch_warnings():
            # For example of a full disk, which writing the file reports again.
            warnings.filterwarnings("ignore", module="huggingface_hub")
            yield loading
    finally:
        _loading = before
        hub_logging.set_verbosity(verbosity)
        huggingface_hub.constants.HF_HUB_DISABLE_XET = xet


def _sending(send: Callable[..., Any]) -> Callable[..., Any]:
    def limited(request: Any, *, stream: bool = False, **options: Any) -> Any:
        loading = _loading
        if loading is None:
            return send(request, stream=stream, **options)
        return loading.send(send, request, stream=stream, **options)

    return limited


class _Loading:
    """The requests of one loading.

    Attributes:
        failure: the start of a sentence that says what the hub did wrong; afterwards it gets no more requests.
        stop: set by a signal that the main thread could not handle.
    """

    def __init__(self, failure: str | None = None) -> None:
        self.failure = failure
        self.stop = threading.Event()
        self._stopped: DialogKitError | None = None
        self._waited = 0.0
        self._breaks: Counter[str] = Counter()

    def raise_stop(self) -> None:
        """Raise the error of a signal that stopped the loading again, in case a library caught it."""
        if self._stopped is not None:
            raise self._stopped

    def problem(self, error: BaseException) -> str | None:
        """Return what the hub did wrong if it caused a library's error, else None."""
        seen: BaseException | None = error
        while seen is not None:
            package = type(seen).__module__.partition(".")[0]
            if package in ("httpx", "httpx2", "httpcore", "httpcore2"):
                return f"the hub at {plain_url(hub_url())} {_said(seen)}"
            if type(seen).__name__ == "FileMetadataError":
                return f"the server at {plain_url(hub_url())} answered, but not as a hub does"
            seen = seen.__cause__ or seen.__context__
        return None

    def send(self, send: Callable[..., Any], request: Any, *, stream: bool, **options: Any) -> Any:
        """Send a request. Returns: the response, to whose body the limits apply too."""
        request.extensions = {**request.extensions, "dialogkit_file": stream}
        try:
            limit = answer_limit()
            start = time.monotonic()
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
        name = _name(request)
        news = Wait(f"waiting for {name}, at most {limit:g} s")
        for attempt in range(10):
            self._require_active(request)
            pump = _Pump(send, request, options)
            wait, asked = float(2**attempt), ""
            try:
                response = self.take(pump.answer, end, news)
            except TimeoutError:
                pump.abandon()
                if ANSWERS_S - self._waited < limit:
                    self.fail(request, f"answered so slowly that {ANSWERS_S:g} s were waited in all")
                self.fail(request, f"did not answer within {limit:g} s")
            except BaseException:
                pump.abandon()
                raise
            if isinstance(response, BaseException):
                package = type(response).__module__.partition(".")[0]
                if not package.startswith(("httpx", "httpcore")):
                    raise response
                said = _said(response)
                if "closed" not in said:
                    self.fail(request, said)
            elif response.status_code in _BUSY and _of_hub(request):
                pump.abandon()
                status = int(response.status_code)
                said = f"answered {status} ({HTTPStatus(status).phrase.lower()})"
                with suppress(ValueError):
                    wait = float(response.headers.get("Retry-After", ""))
                    asked = f" and asks to wait {wait:g} s"
            else:
                if _is_page(request, response):
                    pump.abandon()
                    self.fail(request, "answered with a web page, such as the sign-in page of a network")
                response.extensions["dialogkit_pump"] = pump
                return response
            if time.monotonic() + wait >= end:
                self.fail(request, said + asked)
            news.tick()
            self.stop.wait(wait)
        self.fail(request, said)

    def take(self, source: Any, deadline: float, news: Wait) -> Any:
        """Take from a queue of a pump. Raises: TimeoutError."""
        while True:
            if self.stop.is_set():
                raise KeyboardInterrupt
            with suppress(TimeoutError):
                return _get(source, min(deadline, time.monotonic() + 0.25))
            if time.monotonic() >= deadline:
                raise TimeoutError
            news.tick()

    def _require_active(self, request: Any) -> None:
        self.raise_stop()
        if self.stop.is_set():
            raise KeyboardInterrupt
        if self.failure is not None:
            self._raise(self.failure)

    def broke(self, request: Any, error: BaseException) -> NoReturn:
        """Raise the error of a body that broke off, so that the library resumes it, or give up."""
        self._breaks[str(request.url)] += 1
        if self._breaks[str(request.url)] > BREAKS:
            self.fail(request, f"broke off {_file(request)} {BREAKS + 1} times")
        raise error

    def fail(self, request: Any, said: str) -> NoReturn:
        """End the loading, or only the request if it is neither for the hub nor a file, such as telemetry."""
        failure = f"{_name(request)} {said}"
        if _of_hub(request) or request.extensions.get("dialogkit_file"):
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
        request.extensions = {
            **request.extensions,
            "timeout": dict.fromkeys(("connect", "read", "write", "pool"), seconds),
        }
        _begin(lambda: self._run(send, request, options))

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
    total = (
        int(response.headers.get("Content-Length", "0"))
        if response.headers.get("Content-Length", "").isdigit()
        else 0
    )

    class Body(import_module(type(response).__module__.partition(".")[0]).SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            news = Wait("")
            taken, window, left = 0, 0, limit
            while True:
                so_far = f"{taken / 1e6:,.1f} of {total / 1e6:,.1f} MB" if total else f"{taken / 1e6:,.1f} MB"
                news.text = f"fetching {_file(request)} from {_name(request)}: {so_far}"
                news.tick()
                start = time.monotonic()
                try:
                    piece = loading.take(pump.pieces, start + left, news)
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


def _of_hub(request: Any) -> bool:
    return str(request.url.host) == urlsplit(hub_url()).hostname


def _name(request: Any) -> str:
    if _of_hub(request):
        return f"the hub at {plain_url(hub_url())}"
    return f"the hub's server {request.url.host}"


def _file(request: Any) -> str:
    """Return what a request is for, as a word for a sentence."""
    path = unquote(str(request.url.path))
    return repr(path.partition("/resolve/")[2].partition("/")[2] or path.rpartition("/")[2] or "/")


def _is_page(request: Any, response: Any) -> bool:
    kind = response.headers.get("Content-Type", "")
    return (
        response.status_code == 200
        and _of_hub(request)
        and kind.startswith("text/html")
        and "X-Repo-Commit" not in response.headers
    )


def _said(error: BaseException) -> str:
    """Return what a server did, given an error of httpx."""
    kind = type(error).__name__
    if kind == "TooManyRedirects":
        return "redirects in a circle"
    if kind in ("RemoteProtocolError", "ReadError", "WriteError", "CloseError"):
        return "closed the connection without an answer"
    if "Timeout" in kind:
        return "did not answer in time"
    return _unreachable(error)
