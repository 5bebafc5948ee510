"""Connections of the server: how many are open, and how long one may wait before it asks for something."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 512
"""Twice the requests that may be open at once, so that even then a new one gets an answer."""
HEAD_S = 10.0
"""Seconds in which the head of a request has to arrive."""

logger = logging.getLogger("dialogkit.serving.connections")
logger.setLevel(logging.ERROR)  # not a line for each request that is no HTTP: anyone could fill the log


class Connection(H11Protocol):
    """A connection that is closed if it does not ask for anything in time.

    uvicorn waits without end for the head of a request. Clients that send a byte now and then could so take all
    connections. If too many are open, the one goes that has waited longest without asking.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._is_dropped = False
        self.logger = logger

    def connection_made(self, transport: Any) -> None:
        """Begin to wait; close another connection, or this one, if too many are open."""
        super().connection_made(transport)
        self._watch()
        open_ones = [each for each in self.connections if isinstance(each, Connection) and not each._is_dropped]
        if len(open_ones) > MOST_CONNECTIONS:
            waiting = [each for each in open_ones if each._timer is not None]
            min(waiting, key=lambda each: each._timer.when() if each._timer else 0.0)._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what the client has sent."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Wait unless a request is being answered; what arrives in between does not extend the time."""
        if self._is_dropped:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._drop)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self) -> None:
        self._is_dropped = True
        self._stop_waiting()
        self.transport.abort()  # to close would wait for a client that does not read
