"""Limits on what untrusted files can make a library do: time, memory, and how it fails."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from dialogkit.system.memory import address_space_bytes

_lock = threading.RLock()


def _forked() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # the thread that holds it does not exist in the child
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after a time; only in the main thread, on systems with alarms."""

    def stop(*_: object) -> None:
        raise TimeoutError

    try:
        before = signal.signal(signal.SIGALRM, stop)
    except (ValueError, AttributeError):  # another thread, Windows
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Raise MemoryError in code that takes more than `more` further bytes; Linux only."""
    try:
        import resource

        if (taken := address_space_bytes()) is None:  # macOS
            raise OSError
        before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        bounds = [limit for limit in (taken + more, soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    except (ImportError, OSError, ValueError):  # Windows
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def panics_raised(*, quietly: bool = True) -> Iterator[None]:
    """Raise a panic of a Rust library as ValueError, without the lines that Rust writes to stderr.

    In Python such a panic is no Exception. Rust writes to the file descriptor of stderr, which is therefore
    redirected meanwhile; on systems without files in memory the lines stay.

    Args:
        quietly: redirect stderr; False while progress is reported.
    """
    aside = _stderr_aside() if quietly else nullcontext(lambda: None)
    with _lock, aside as forget:
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            forget()
            raise ValueError(f"{str(error).strip()} (a panic of the library)") from None


@contextmanager
def _stderr_aside() -> Iterator[Callable[[], None]]:
    """Hold back what is written to stderr until the end; the yielded function discards it."""
    kept = None
    with suppress(OSError, AttributeError):  # no stderr; no files in memory
        aside = os.memfd_create("stderr")
        kept = os.dup(2)
    if kept is None:
        yield lambda: None
        return
    _flush()
    os.dup2(aside, 2)
    try:
        yield lambda: os.truncate(aside, 0)
    finally:
        _flush()
        os.dup2(kept, 2)
        os.close(kept)
        with suppress(OSError), open(aside, "rb", buffering=0) as said:
            said.seek(0)
            while part := said.read(2**16):
                os.write(2, part)


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
