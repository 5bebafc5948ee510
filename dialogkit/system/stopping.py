"""A request to stop the computation of this process, which any of its threads can make."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dialogkit.errors import InterruptedRunError

STOPPED = "stop()"
"""What a run was stopped by, for messages."""

_running = threading.Event()
_asked = threading.Event()
_lock = threading.RLock()
_beginning: set[int] = set()
"""Threads that begin: they load libraries, or wait for their turn."""
_asked_early = threading.Event()
"""Whether one of these was asked to stop."""


@contextmanager
def beginning() -> Iterator[None]:
    """Let `ask_to_stop` reach what is begun inside before it enters `stoppable`."""
    _beginning.add(threading.get_ident())
    try:
        yield
    finally:
        _begun()


def _begun() -> None:
    """Note that this thread runs now, or will not."""
    with _lock:
        _beginning.discard(threading.get_ident())
        if not _beginning:
            _asked_early.clear()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let `ask_to_stop` reach what runs inside; only one thread may be inside."""
    with _lock:
        _asked.clear()
        if _asked_early.is_set():
            _asked_early.clear()
            _asked.set()
        _running.set()
        _begun()
    try:
        yield
    finally:
        _running.clear()
        _asked.clear()


def ask_to_stop() -> bool:
    """Ask what is running, or else what begins, to stop; return whether anything does."""
    with _lock:
        if _running.is_set():
            _asked.set()
        elif _beginning:
            _asked_early.set()
    return _asked.is_set() or _asked_early.is_set()


def stop_was_called() -> bool:
    """Return whether `stop()` was called for what is running."""
    return _asked.is_set()


def raise_if_asked() -> None:
    """Raise InterruptedRunError if what is running was asked to stop."""
    if stop_was_called():
        raise InterruptedRunError(f"stopped by {STOPPED}", exit_code=130)
