"""Ends a process by a signal that comes while a library waits in C, where Python's own handlers do not run."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dialogkit.errors import InterruptedRunError

PATIENCE_S = 1.5
"""How long Python has to handle a signal by itself."""


def name_of(number: int) -> str:
    """Return what a signal is called in what is told of it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stopped_by(number: int) -> InterruptedRunError:
    """Return the error of a training that a signal stopped."""
    return InterruptedRunError(f"stopped by {name_of(number)}", exit_code=128 + number)


@contextmanager
def ended_by_signals(end: Callable[[int], object], handled: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Have Ctrl-C, and SIGTERM where Python handles it, end this process also while the main thread waits in C.

    Args:
        end: called in another thread with the number of a signal that is not handled in time; does not return.
        handled: whether the handler has run; leaving the context, as by an exception, tells it as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()

    def watch() -> None:
        while came := os.read(reading, 1):
            if came[0] in (signal.SIGINT, signal.SIGTERM) and not over.wait(PATIENCE_S) and not handled():
                end(came[0])
        os.close(reading)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True, name="dialogkit-signals").start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)
