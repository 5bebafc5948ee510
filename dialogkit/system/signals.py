"""End a process on a signal that arrives while a library waits in C, where Python's handlers do not run."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dialogkit.errors import InterruptedRunError

PATIENCE_S = 1.5
"""Seconds that Python has to handle a signal itself."""


def name_of(number: int) -> str:
    """Return the name of a signal for messages."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def stopped_by(number: int) -> InterruptedRunError:
    """Return the error of a run that a signal stopped."""
    return InterruptedRunError(f"stopped by {name_of(number)}", exit_code=128 + number)


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM with a function; outside the main thread, nothing changes."""
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def ended_by_signals(end: Callable[[int], object], handled: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let Ctrl-C, and SIGTERM if Python handles it, end this process even while the main thread waits in C.

    Args:
        end: called in another thread with the number of a signal that is not handled in time; does not return.
        handled: whether the handler has run; leaving the context, as by an exception, also counts as handled.
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
