"""Ctrl-C and SIGTERM outside training steps, which have their own handler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dialogkit.distributed.rank import signal_came_from_user
from dialogkit.errors import DialogKitError, ProcessLostError
from dialogkit.system.signals import handled_by, stopped_by


@contextmanager
def signals_stop() -> Iterator[Callable[[], None]]:
    """Raise an error that a run can record on Ctrl-C or SIGTERM.

    During training steps `StopAtSignal` replaces this handler, and gives a second signal back to it.

    Yields a function that raises it again, as a library that catches all exceptions may have swallowed it.
    """
    stops: list[DialogKitError] = []

    def stop(number: int, _: Any) -> None:
        lost = ProcessLostError("another rank of this run ended")
        stops.append(stopped_by(number) if signal_came_from_user() else lost)
        raise stops[-1]

    def raise_missed() -> None:
        if stops:
            raise stops[-1]

    with handled_by(stop):
        yield raise_missed
