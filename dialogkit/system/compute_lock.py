"""A process-wide lock for computation, and guards against hanging in a forked process.

Random number generators, the thread count, library verbosity and transformers' lazy imports are process-wide.
Two threads that train at once would draw from one generator, or fail to import.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dialogkit.errors import UnavailableError
from dialogkit.hints import Change, Either

logger = logging.getLogger("dialogkit")

WAITING = "waiting for another training run, evaluation or reply in this process"
SPAWN = 'multiprocessing.get_context("spawn")'
ONE_THREAD = "this process was forked from one that had loaded torch: it computes with one thread"

_lock = threading.RLock()
_busy_at_fork = False
_forked_with_torch = False
_forked_while_busy = False


@contextmanager
def alone(note: Callable[[str], None] = logger.info) -> Iterator[None]:
    """Hold the lock, waiting until no other thread of this process computes; reentrant.

    Args:
        note: receives a line if this has to wait, or computes with one thread because of a fork.

    Raises: UnavailableError in a forked process that cannot compute.
    """
    lock = _lock  # a fork inside replaces the global one
    if not lock.acquire(blocking=False):
        note(WAITING)
        lock.acquire()
    try:
        if _forked_with_torch:
            _compute_in_fork(note)
        yield
    finally:
        lock.release()


def require_threads(threads: int | None) -> None:
    """Raise UnavailableError if several threads are requested in a forked process, where they would hang."""
    if _forked_with_torch and (threads or 1) > 1:
        raise UnavailableError(
            f"runtime.threads is {threads}, and this process was forked from one that had loaded torch, whose "
            "threads it lacks",
            hint=Either(SPAWN, Change({"runtime.threads": 1})),
        )


def forked_with_torch() -> bool:
    """Return whether this process was forked from one that had loaded torch: it must compute with one thread."""
    return _forked_with_torch


def _compute_in_fork(note: Callable[[str], None]) -> None:
    """Limit torch to one thread in a forked process: OpenMP would wait for threads that only the parent has."""
    import torch

    if _forked_while_busy or torch.cuda._is_in_bad_fork():
        used = "another thread was computing" if _forked_while_busy else "it had used the GPU"
        raise UnavailableError(
            f"this process was forked while {used}, and cannot compute; start a new process", hint=SPAWN
        )
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        note(ONE_THREAD)


def _before_fork() -> None:
    global _busy_at_fork
    _busy_at_fork = not _lock.acquire(blocking=False)
    if not _busy_at_fork:
        _lock.release()


def _in_child() -> None:
    global _lock, _forked_with_torch, _forked_while_busy
    _lock = threading.RLock()
    _forked_with_torch = _forked_with_torch or "torch" in sys.modules
    _forked_while_busy = _forked_while_busy or _busy_at_fork


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
