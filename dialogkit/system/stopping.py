"""A request to stop the computation of this process, which any of its threads can make."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dialogkit.errors import InterruptedRunError

STOPPED = "stop()"
"""What a run was stopped by, for messages."""

_running = threading.Event()
_asked = threading.Event()


@contextmanager
def stoppable() -> Iterator[None]:
    """Let `ask_to_stop` reach what runs inside; only one thread may be inside."""
    _asked.clear()
    _running.set()
    try:
        yield
    finally:
        _running.clear()
        _asked.clear()


def ask_to_stop() -> bool:
    """Ask what is running to stop; return whether anything is."""
    if _running.is_set():
        _asked.set()
    return _asked.is_set()


def stop_was_called() -> bool:
    """Return whether `stop()` was called for what is running."""
    return _asked.is_set()


def raise_if_asked() -> None:
    """Raise InterruptedRunError if what is running was asked to stop."""
    if stop_was_called():
        raise InterruptedRunError(f"stopped by {STOPPED}", exit_code=130)
