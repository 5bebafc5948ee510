"""Ctrl-C and SIGTERM outside training steps, which have their own handler."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dialogkit.distributed.rank import is_asked_to_stop
from dialogkit.errors import DialogKitError, ProcessLostError
from dialogkit.system.signals import stopped_by


@contextmanager
def signals_stop() -> Iterator[Callable[[], None]]:
    """Raise an error that a run can record on Ctrl-C or SIGTERM; training steps have their own handler.

    Yields a function that raises it again, as a library that catches all exceptions may have swallowed it.
    """
    stops: list[DialogKitError] = []

    def stop(number: int, _: Any) -> None:
        if not is_asked_to_stop():
            stops.append(ProcessLostError("another rank of this training ended"))
        else:
            stops.append(stopped_by(number))
        raise stops[-1]

    def raise_missed() -> None:
        if stops:
            raise stops[-1]

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, stop)
        yield raise_missed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
