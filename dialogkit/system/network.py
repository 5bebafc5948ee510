"""Check whether servers answer, within a few seconds and in threads of their own.

No socket timeout covers name lookup, or a server that sends a byte now and then. So every request runs in its own
thread, and the caller's wait can always be interrupted.
"""

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_S = 2.0
"""Longest wait for a connection when only checking that a server exists."""
ANSWER_S = 10.0
"""Longest wait for an answer to begin; HF_HUB_ETAG_TIMEOUT overrides it."""
REMEMBERED_S = 60.0
"""How long the result of a check is reused."""
NEWS_S = 3.0, 10.0
"""Seconds until a wait is first reported, and between later reports."""

_known: dict[str, tuple[float, str | None]] = {}
"""When each server was checked, and what was wrong with it."""


def seconds_of(variable: str, otherwise: float) -> float:
    """Return the seconds that an environment variable gives, or `otherwise`."""
    with suppress(ValueError):
        if (given := float(os.environ.get(variable, ""))) > 0:
            return given
    return otherwise


def answer_limit() -> float:
    """Return the seconds within which an answer must begin."""
    return seconds_of("HF_HUB_ETAG_TIMEOUT", ANSWER_S)


def hub_url() -> str:
    """Return the address of the Hugging Face hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_on(value: str) -> bool:
    """Return whether the value of an environment variable of the hub's libraries means yes."""
    return value.strip().upper() in {"1", "ON", "YES", "TRUE"}


def hub_forbidden() -> bool:
    """Return whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` forbids requests to the hub."""
    return is_on(os.environ.get("HF_HUB_OFFLINE", "") or os.environ.get("TRANSFORMERS_OFFLINE", ""))


def forget() -> None:
    """Forget all results, so that every server is checked again."""
    _known.clear()


def remember(url: str, problem: str | None) -> None:
    """Reuse a result for `REMEMBERED_S`."""
    _known[url] = time.monotonic(), problem


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
            begin(lambda url=url: answers[url].put(_problem(url, limit)))  # type: ignore[misc]
    for url, answer in answers.items():
        try:
            found = take(answer, deadline, Wait(f"waiting for {plain_url(url)}, at most {limit:g} s"))
        except TimeoutError:
            found = f"did not answer within {limit:g} s"
        remember(url, found)
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
        return unreachable(error.reason)
    except http.client.RemoteDisconnected:
        return "closed the connection without an answer"
    except TimeoutError:
        return f"did not answer within {limit:g} s"
    except (http.client.HTTPException, OSError, ValueError) as error:
        return unreachable(error)


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
        return unreachable(error)


def unreachable(error: object) -> str:
    """Return the rest of a sentence about a server to which no connection opens."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot be reached: {str(reason).splitlines()[0][:200].lower()}"


def plain_url(url: str) -> str:
    """Return an address without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


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


def begin(work: Callable[[], object]) -> None:
    """Work in a thread that need not be joined."""
    threading.Thread(target=work, name="dialogkit-network", daemon=True).start()


def take(
    source: "queue.SimpleQueue[T] | queue.Queue[T]",
    deadline: float,
    news: Wait,
    stop: threading.Event | None = None,
) -> T:
    """Take from a queue. Raises: TimeoutError; KeyboardInterrupt once `stop` is set."""
    while stop is None or not stop.is_set():
        try:
            return source.get(timeout=max(0.0, min(0.25, deadline - time.monotonic())))
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            news.tick()
    raise KeyboardInterrupt
