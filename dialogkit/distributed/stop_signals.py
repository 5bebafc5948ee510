"""What Ctrl-C and SIGTERM do to a training outside its steps, which have a way of their own."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dialogkit.distributed.rank import is_asked_to_stop
from dialogkit.errors import DialogKitError, ProcessLostError
from dialogkit.system.signals import stopped_by


@contextmanager
def signals_stop() -> Iterator[Callable[[], None]]:
    """Leave by an exception that a run can record; training steps have their own way.

    Yields what raises it again: a library that was interrupted where it catches all exceptions has lost it.
    """
    stops: list[DialogKitError] = []

    def stop(number: int, _: Any) -> None:
        if not is_asked_to_stop():
            stops.append(ProcessLostError("another process of this training ended"))
        else:
            stops.append(stopped_by(number))
        raise stops[-1]

    def raise_lost() -> None:
        if stops:
            raise stops[-1]

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, stop)
        yield raise_lost
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
