"""The processes of one training: how they join, agree and end together.

Everything here does nothing, and costs nothing, where a training is a single process. What the processes tell each
other beside gradients goes by a group of its own over gloo, in which waiting has no limit: one of them may answer
test prompts for minutes. A thread in each process watches for the end of all: an error that one of them claims.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from dialogkit.distributed.rank import LAUNCH_FOLDER, SPEAKER, Rank, keep_own_settings, tell_torch, this_rank
from dialogkit.errors import DialogKitError, InterruptedRunError, ProcessLostError, exit_code_of

T = TypeVar("T")

JOINING = timedelta(minutes=10)
"""How long processes wait for each other at the start."""
STEP = timedelta(minutes=30)
"""How long a training step may wait for the others: a step that takes longer hangs."""
ASIDE = timedelta(days=7)
"""How long the processes wait while one of them works for all."""
_BEGUN = "dialogkit/run"
_TOLD, _CLAIMS = "error", "claims"
_WATCH_S = 0.5
_GRACE_S = 15.0
"""Seconds for a process to leave by itself once another has told of an error: rank 0 keeps its record."""
_OF_CONNECTION = re.compile(
    r"gloo|nccl|connection closed by peer|connection reset|\b(?:tcp|prefix)?store\b", re.IGNORECASE
)
"""Words of torch's errors without a type of their own; "restore" and "storage" are none of them."""
RESTART = 75
"""Exit code of a process that ended because another one did: whoever started it may start all again."""


_on_end: Callable[[DialogKitError], None] | None = None


@dataclass
class _Joined:
    rank: Rank
    store: Any
    """Where all of them can leave word, in this start of them."""
    kept: Any
    """The same, also for a later start."""
    control: Any
    """The group without a limit on waiting."""
    left: threading.Event = field(default_factory=threading.Event)
    failed: bool = False
    begun: Path | None = None


_joined: _Joined | None = None


def count() -> int:
    """Return the number of processes that train together."""
    return 1 if _joined is None else _joined.rank.count


def index() -> int:
    """Return the place of this process among them, from 0."""
    return 0 if _joined is None else _joined.rank.index


def local_count() -> int:
    """Return the number of processes on this machine."""
    return 1 if _joined is None else _joined.rank.local_count


def is_first() -> bool:
    """Return whether this process speaks and writes for all."""
    return index() == 0


def joined() -> bool:
    """Return whether this process is one of several, or was started as one of them."""
    return _joined is not None


def join() -> bool:
    """Join the processes that were started with this one; return whether there is anything to join.

    Raises: ProcessLostError if the others do not come; what `keep_own_settings` raises.
    """
    global _joined
    keep_own_settings()
    rank = this_rank()
    if _joined is not None or rank is None:
        return _joined is not None
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    tell_torch()
    if torch.cuda.is_available():
        devices = torch.cuda.device_count()
        if rank.local_count <= devices:
            torch.cuda.set_device(rank.local_index)
    # One thread too many in each of several processes on a machine costs more than it brings.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // rank.local_count))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    address, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500"))
    try:
        hosts = rank.index == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        kept, seen = (
            TCPStore(
                address,
                port,
                is_master=master,
                wait_for_workers=False,
                timeout=JOINING,
                multi_tenant=True,
            )
            for master in (hosts, False)
        )
        name = _meet(kept, rank)
        store, watched = (PrefixStore(f"dialogkit/{name}", made) for made in (kept, seen))
        if not distributed.is_initialized():
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=PrefixStore("group", store),
                rank=rank.index,
                world_size=rank.count,
                timeout=STEP,
            )
        control = distributed.new_group(backend="gloo", timeout=ASIDE)
        _joined = _Joined(rank, store, kept, control)
        _joined.begun = _begun_run()
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise ProcessLostError(
            f"process {rank.index} of {rank.count} cannot join the others at {address}:{port} ({_line(error)})"
        ) from None
    threading.Thread(target=_watch, args=(_joined, watched), daemon=True, name="dialogkit-watch").start()
    return True


def _meet(store: Any, rank: Rank) -> str:
    """Return a name for this start of the processes, the same in all; one that was lost may have left word before.

    Each says hello with a word of its own and is answered; only those that are there now can tell that they were.
    """
    if rank.index:
        word = uuid.uuid4().hex
        store.set(f"dialogkit/hello/{rank.index}", word)
        name = str(store.get(f"dialogkit/reply/{word}").decode())
        store.add(f"dialogkit/there/{name}", 1)
        return name
    name, answered, until = uuid.uuid4().hex, set[bytes](), time.monotonic() + JOINING.total_seconds()
    while store.add(f"dialogkit/there/{name}", 0) < rank.count - 1:
        for other in range(1, rank.count):
            key = f"dialogkit/hello/{other}"
            if store.check([key]) and (said := store.get(key)) not in answered:
                store.set(f"dialogkit/reply/{said.decode()}", name)
                answered.add(said)
        if time.monotonic() > until:
            raise TimeoutError(f"{rank.count - 1} others were waited for")
        time.sleep(0.02)
    return name


def leave() -> None:
    """Leave the others after all work is done."""
    global _joined
    if _joined is None:
        return
    from torch import distributed

    with suppress(RuntimeError):  # of one that another left
        wait_for_all()
    _joined.left.set()
    _joined = None
    with suppress(RuntimeError):
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process is here."""
    if _joined is not None:
        _joined_total([0])


def total(numbers: list[int]) -> list[int]:
    """Return the sums of whole numbers over the processes."""
    return numbers if count() == 1 else [int(number) for number in _joined_total(numbers)]


def summed(numbers: list[float]) -> list[float]:
    """Return the sums of numbers over the processes, in float64 and everywhere the same."""
    if count() == 1:
        return numbers
    return [float(number) for number in _joined_total(numbers, torch.float64)]


def _joined_total(numbers: list[Any], dtype: torch.dtype = torch.int64) -> list[Any]:
    from torch import distributed

    assert _joined is not None
    tensor = torch.tensor(numbers, dtype=dtype)
    distributed.all_reduce(tensor, group=_joined.control)
    return list(tensor.tolist())


def share(value: T) -> T:
    """Return the first process's value everywhere."""
    if count() == 1:
        return value
    from torch import distributed

    assert _joined is not None
    held: list[Any] = [value]
    distributed.broadcast_object_list(held, src=0, group=_joined.control, device=torch.device("cpu"))
    return held[0]  # type: ignore[no-any-return]


def gather(value: T) -> list[T]:
    """Return the values of all processes, everywhere."""
    if count() == 1:
        return [value]
    from torch import distributed

    assert _joined is not None
    held: list[Any] = [None] * count()
    distributed.all_gather_object(held, value, group=_joined.control)
    return held


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the first process work, then the first one of each machine, then all others: what is made is cached."""
    turn = 0 if is_first() else 1 if _joined is not None and _joined.rank.local_index == 0 else 2
    for _ in range(turn):
        wait_for_all()
    yield
    for _ in range(2 - turn):
        wait_for_all()


# How a training ends for all


def _launch_folder() -> Path | None:
    folder = os.environ.get(LAUNCH_FOLDER)
    return Path(folder) if folder else None


def restarts() -> int:
    """Return how often the processes were started again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def begun_run() -> Path | None:
    """Return the folder of the run that these processes had begun before they were started again."""
    return None if _joined is None else _joined.begun


def _begun_run() -> Path | None:
    assert _joined is not None
    mine = None
    if (folder := _launch_folder()) is not None:
        with suppress(OSError):
            mine = (folder / "run").read_text(encoding="utf-8")
    elif is_first() and _joined.kept.check([_BEGUN]):
        mine = _joined.kept.get(_BEGUN).decode()
    # Only a machine that was there before knows; the first process may be on another one now.
    return next((Path(run) for run in gather(mine) if run), None)


def begin_run(run: Path) -> None:
    """Keep the folder of the run that begins, should the processes be started again; every process calls this.

    Other machines than the first process's are left word which one that is.
    """
    if _joined is None:
        return
    speaker = share(socket.gethostname())
    if (folder := _launch_folder()) is not None:
        (folder / "run").write_text(str(run), encoding="utf-8")
        if _joined.rank.machine:
            (folder / SPEAKER).write_text(speaker, encoding="utf-8")
        else:
            (folder / SPEAKER).unlink(missing_ok=True)  # of an earlier start
    elif is_first():
        _joined.kept.set(_BEGUN, str(run))


def is_loss_of_another(error: BaseException) -> bool:
    """Return whether an error only tells that another process, or the way to it, is gone."""
    from torch import distributed

    if isinstance(error, ProcessLostError | distributed.DistError | ConnectionError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return _OF_CONNECTION.search(str(error)) is not None


@contextmanager
def end_together(on_end: Callable[[DialogKitError], None] | None = None) -> Iterator[None]:
    """Make an error of one process the end of all, with that process's sentence and exit code.

    Args:
        on_end: called in place of leaving by an exception where this process cannot, as it waits for a device.
    """
    global _on_end
    _on_end = on_end
    try:
        yield
    except BaseException as error:
        if _joined is None or hasattr(error, "told"):
            raise
        end = agreed(error)
        end.agreed = True  # type: ignore[attr-defined]
        if end is error:
            raise
        raise end from None
    finally:
        _on_end = None


def agreed(error: BaseException) -> BaseException:
    """Return the error with which all end: this one, or the one that another process told of first.

    The latter has an attribute `told`, the machine whose process prints it.
    """
    state = _joined
    if state is None:
        return error
    state.failed = True
    if is_loss_of_another(error):
        return _told(state, wait_s=3.0) or _lost(error)
    if isinstance(error, DialogKitError) and state.rank.index and (told := _told(state, wait_s=2.0)):
        return told  # all come to the same: the first process knows how to go on
    with suppress(RuntimeError):
        if state.store.add(_CLAIMS, 1) > 1:
            return _told(state, wait_s=3.0) or error
        end = {
            "message": str(error) or type(error).__name__,
            "code": exit_code_of(error),
            "hint": getattr(error, "hint", None),
            "machine": state.rank.machine,
        }
        state.store.set(_TOLD, json.dumps(end))
    return error


def _lost(error: BaseException) -> ProcessLostError:
    return ProcessLostError(f"another process of this training ended ({_line(error)})")


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _told(state: _Joined, *, wait_s: float) -> DialogKitError | None:
    until = time.monotonic() + wait_s
    while True:
        try:
            if state.store.check([_TOLD]):
                return _as_error(state.store.get(_TOLD))
        except RuntimeError:
            return None
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def _as_error(told: bytes) -> DialogKitError:
    content = json.loads(told)
    error: DialogKitError
    if content["code"] > 128:
        error = InterruptedRunError(content["message"], exit_code=content["code"])
    else:
        error = DialogKitError(content["message"])
        error.exit_code = content["code"]
    error.hint = content["hint"]
    error.told = content["machine"]  # type: ignore[attr-defined]
    return error


def _watch(state: _Joined, store: Any) -> None:
    """End this process where it cannot by itself: another tells of an error, or whoever started it is gone."""
    parent = os.getppid()
    orphaned = _launch_folder() is not None
    while not state.left.wait(_WATCH_S):
        if orphaned and os.getppid() != parent:
            os._exit(RESTART)
        try:
            if not store.check([_TOLD]):
                continue
            error: DialogKitError = _as_error(store.get(_TOLD))
        except RuntimeError as lost:
            error = _lost(lost)
        if state.left.wait(_GRACE_S):
            return
        if state.failed:  # on its way
            continue
        if _on_end is not None:
            with suppress(Exception):
                _on_end(error)
        exit_with(error.exit_code, final=not isinstance(error, ProcessLostError))


def exit_with(code: int, *, final: bool) -> NoReturn:
    """End this process at once, without waiting for threads of libraries that wait for other processes.

    Where `--devices` started it, a code that is `final` is left for it: ending without one asks for a new start.
    """
    if (folder := _launch_folder()) is not None:
        if final:
            with suppress(OSError):
                (folder / f"exit-{os.environ.get('LOCAL_RANK', '0')}").write_text(str(code), encoding="utf-8")
            os._exit(0)
        os._exit(RESTART)
    os._exit(code)
