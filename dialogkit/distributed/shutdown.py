"""How the ranks of a run exit together, with one error and one exit code.

The first rank that fails publishes its error in the group's store. Every other rank exits with that error: by
itself when a collective call fails, or through a thread that watches the store.
"""

import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from dialogkit.distributed import process_group
from dialogkit.distributed.process_group import Group, Settled
from dialogkit.distributed.rank import launch_folder
from dialogkit.errors import DialogKitError, InterruptedRunError, ProcessLostError, exit_code_of, first_line
from dialogkit.system.memory import is_out_of_memory

RESTART = 75
"""Exit code of a rank that ended because another one did: the launcher may restart all."""
_ERROR_KEY, _CLAIMS_KEY = "error", "claims"
_WATCH_S = 0.5
_GRACE_S = 15.0
"""Seconds for a rank to exit by itself once another has published an error: rank 0 writes its record."""
_CONNECTION_ERROR = re.compile(
    r"gloo|nccl|connection closed by peer|connection reset|\b(?:tcp|prefix)?store\b", re.IGNORECASE
)
"""Words of torch's untyped errors about a lost connection; "restore" and "storage" do not match."""

_on_exit: Callable[[DialogKitError], None] | None = None


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error only means that another rank, or the connection to it, is lost."""
    from torch import distributed

    if isinstance(error, ProcessLostError | distributed.DistError | ConnectionError):
        return True
    # NCCL reports a GPU without room for its buffers in the same way; all ranks would run out of memory again.
    is_connection = isinstance(error, RuntimeError) and _CONNECTION_ERROR.search(str(error)) is not None
    return is_connection and not is_out_of_memory(error)


@contextmanager
def exit_together(on_exit: Callable[[DialogKitError], None] | None = None) -> Iterator[None]:
    """Make an error of one rank the error of all, with its message and exit code.

    Args:
        on_exit: called before this rank is ended from outside, when it waits for a device and cannot raise.
    """
    global _on_exit
    _on_exit = on_exit
    try:
        yield
    except BaseException as error:
        if (settled := settle(error)) is error:
            raise
        raise settled from None
    finally:
        _on_exit = None


def reported_by(error: BaseException) -> int | None:
    """Return the machine that prints an error that another rank published; None if it is this rank's own."""
    group = process_group.current()
    return group.settled.reported_by if group and group.settled and group.settled.error is error else None


def settle(error: BaseException) -> BaseException:
    """Return the error all ranks exit with: this one, or the one another rank published first.

    Outside a group it is this one, as it is once all ranks have settled on it.
    """
    group = process_group.current()
    if group is None:
        return error
    if group.settled is None or group.settled.error is not error:
        group.failed = True
        group.settled = _settle(group, error)
    return group.settled.error


def _settle(group: Group, error: BaseException) -> Settled:
    if is_lost_peer(error):
        return _published(group, wait_s=3.0) or Settled(_lost(error), None)
    if isinstance(error, DialogKitError) and group.rank.rank and (first := _published(group, wait_s=2.0)):
        return first  # every rank finds the same error; rank 0 knows how to resume
    with suppress(RuntimeError):
        if group.store.add(_CLAIMS_KEY, 1) > 1:
            return _published(group, wait_s=3.0) or Settled(error, None)
        published = {
            "message": str(error) or type(error).__name__,
            "code": exit_code_of(error),
            "hint": getattr(error, "hint", None),
            "machine": group.rank.machine,
        }
        group.store.set(_ERROR_KEY, pickle.dumps(published))
    return Settled(error, None)


def _lost(error: BaseException) -> ProcessLostError:
    return ProcessLostError(f"another rank of this run ended ({first_line(error)})")


def _published(group: Group, *, wait_s: float) -> Settled | None:
    until = time.monotonic() + wait_s
    while True:
        try:
            if group.store.check([_ERROR_KEY]):
                return _as_settled(group.store.get(_ERROR_KEY))
        except RuntimeError:
            return None
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def _as_settled(published: bytes) -> Settled:
    content = pickle.loads(published)  # as torch's own collectives of objects: the ranks trust each other
    error: DialogKitError
    if content["code"] > 128:
        error = InterruptedRunError(content["message"], exit_code=content["code"])
    else:
        error = DialogKitError(content["message"])
        error.exit_code = content["code"]
    error.hint = content["hint"]
    return Settled(error, content["machine"])


def watch(group: Group, store: Any) -> None:
    """End this process if it cannot exit by itself: another rank published an error, or the launcher is gone."""
    parent = os.getppid()
    launched = launch_folder() is not None
    while not group.finished.wait(_WATCH_S):
        if launched and os.getppid() != parent:
            os._exit(RESTART)
        try:
            if not store.check([_ERROR_KEY]):
                continue
            error: Any = _as_settled(store.get(_ERROR_KEY)).error
        except RuntimeError as lost:
            error = _lost(lost)
        if group.finished.wait(_GRACE_S):
            return
        if group.failed:  # on its way out
            continue
        if _on_exit is not None:
            with suppress(Exception):
                _on_exit(error)
        exit_now(error.exit_code, final=not isinstance(error, ProcessLostError))


def exit_now(code: int, *, final: bool) -> NoReturn:
    """End this process at once, without waiting for library threads that wait for other ranks.

    Under our own launcher a `final` code is left in its folder; exiting without one asks for a restart.
    """
    if (folder := launch_folder()) is not None:
        if final:
            with suppress(OSError):
                (folder / f"exit-{os.environ.get('LOCAL_RANK', '0')}").write_text(str(code), encoding="utf-8")
            os._exit(0)
        os._exit(RESTART)
    os._exit(code)
