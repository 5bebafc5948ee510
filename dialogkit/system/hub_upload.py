"""Send to the Hugging Face hub within time limits: its own library waits and retries without an end.

An answer must begin within `ANSWER_S`, and each piece of a file must be taken within `TAKEN_S`. A busy server is
asked again after the time that it names, unless that is more than `PATIENCE_S`. A file whose connection breaks is
sent again. The upload ends with its failure number `TRIES`.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from dialogkit.redaction import remember
from dialogkit.system.hub import (
    BUSY,
    PAGE,
    hub_name,
    is_for_hub,
    is_of_client,
    is_page,
    limited,
    said_by,
    server_of,
)

logger = logging.getLogger(__name__)

ANSWER_S, TAKEN_S = 60.0, 30.0
"""Longest wait for an answer, which a commit of many files may take, and for a piece of a file to be taken."""
TRIES, PATIENCE_S, PAUSE_S = 4, 60.0, 1.0
"""Failures that end an upload, the longest wait that a server may ask for, and the wait where it asks for none."""


class Refusal(NamedTuple):
    """Why the hub did not do what it was asked.

    Attributes:
        sentence: what it did, as the beginning of a sentence.
        status: its status; None if it did not answer, or was not asked any more.
        message: its own words, in one line; may be empty.
    """

    sentence: str
    status: int | None = None
    message: str = ""


class Uploading:
    """The requests of one upload.

    Attributes:
        stop: set by a signal that the main thread could not handle.
        sent: bytes of files that were sent, those of attempts that failed too.
    """

    def __init__(self, on_sent: Callable[[int], None]) -> None:
        self.stop = threading.Event()
        self.sent = 0
        self._on_sent = on_sent
        self._failures = 0
        self._failure: str | None = None

    def send(self, send: Callable[..., Any], request: Any, *, stream: bool, **options: Any) -> Any:
        """Send a request, again if its server is busy or lost the connection; count its bytes if it is a file."""
        timeout = {"connect": TAKEN_S, "pool": TAKEN_S, "write": TAKEN_S, "read": ANSWER_S}
        request.extensions = {**request.extensions, "timeout": timeout}
        is_file = request.method == "PUT"  # the library begins it anew, as what was sent of it is gone
        if not is_file and (not is_for_hub(request) or "/telemetry/" in request.url.path):
            return send(request, stream=stream, **options)  # of another thread, and not of this upload
        if is_file:
            request.stream = _counted(request.stream, self)
        while True:
            if self._failure is not None:  # of another thread of the library
                _end(self._failure)
            try:
                response = send(request, stream=stream, **options)
            except Exception as error:
                if not is_of_client(error):
                    raise
                # Whether a commit was made is unknown if its answer is lost; making it twice would be wrong.
                self._fail(request, said_by(error), is_last="/commit/" in str(request.url))
                if is_file:
                    raise
                wait = PAUSE_S
            else:
                if is_page(request, response):
                    self._fail(request, PAGE, is_last=True)
                if response.status_code not in BUSY:
                    return response
                reason, wait = _busy(response)
                self._fail(request, reason, is_last=wait > PATIENCE_S)
                if is_file:
                    return response
            self.stop.wait(wait)

    def count(self, size: int) -> None:
        """Count bytes that are sent, unless a signal came."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.sent += size
        self._on_sent(self.sent)

    def _fail(self, request: Any, reason: str, *, is_last: bool) -> None:
        """Count a failure; end the upload with the last one."""
        self._failures += 1
        if is_last or self._failures >= TRIES or reason.startswith("cannot be reached"):
            self._failure = f"{server_of(request)} {reason}"
            _end(self._failure)
        logger.warning("%s %s; trying again ...", server_of(request), reason)


@contextmanager
def uploading(on_sent: Callable[[int], None]) -> Iterator[Uploading]:
    """Apply the limits to what the hub's library sends, without its progress bars.

    Args:
        on_sent: receives the number of bytes of files that were sent so far.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    if shown:
        disable_progress_bars()
    try:
        with limited(Uploading(on_sent)) as requests:
            yield requests
    finally:
        if shown:
            enable_progress_bars()


def refusal(error: BaseException) -> Refusal | None:
    """Return why the hub did not do what it was asked, given an error of its library; None for another error."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if (status := getattr(response, "status_code", None)) is not None:
            reason = " ".join(str(getattr(seen, "server_message", None) or "").split()).rstrip(".")
            return Refusal(f"{hub_name()} answered {_named(int(status))}", int(status), reason[:300])
        if type(seen).__name__ == "OfflineModeIsEnabled":  # also what `_end` raises
            return Refusal(str(seen))
        if is_of_client(seen):
            return Refusal(f"{hub_name()} {said_by(seen)}")
        seen = seen.__cause__ or seen.__context__
    return None


def hub_token() -> str | None:
    """Return the token of the hub, which is redacted from now on; None without one."""
    from huggingface_hub import get_token

    token = get_token()
    return None if token is None else remember(token)


def _busy(response: Any) -> tuple[str, float]:
    """Return what a busy server answered, and the seconds that it asks to wait."""
    reason, wait = f"answered {_named(response.status_code)}", PAUSE_S
    with suppress(ValueError):
        wait = float(response.headers.get("Retry-After", ""))
        reason += f" and asks to wait {wait:g} s"
    return reason, wait


def _named(status: int) -> str:
    with suppress(ValueError):
        return f"{status} ({HTTPStatus(status).phrase.lower()})"
    return str(status)


def _end(failure: str) -> NoReturn:
    from huggingface_hub.errors import OfflineModeIsEnabled

    raise OfflineModeIsEnabled(failure)  # on this error the library neither retries nor waits


def _counted(stream: Any, requests: Uploading) -> Any:
    """Return the body of a request as one that counts what is taken of it."""

    class Body(import_module(_library(stream)).SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                requests.count(len(piece))
                yield piece

        def close(self) -> None:
            with suppress(AttributeError):
                stream.close()

    return Body()


def _library(stream: Any) -> str:
    """Return the name of the library of a request's body, httpx or its successor."""
    return type(stream).__module__.partition(".")[0]
