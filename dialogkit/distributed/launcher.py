"""Start the ranks of a run through torch's elastic launcher, and restart them when one is lost."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dialogkit.distributed.rank import LAUNCH_FOLDER, MAIN_HOST_FILE, PORT
from dialogkit.distributed.shutdown import RESTART
from dialogkit.errors import DialogKitError, ProcessLostError, UnavailableError, os_reason
from dialogkit.hints import Call, Change
from dialogkit.system.signals import ended_by_signals, handled_by, stopped_by
from dialogkit.text import counted

JOIN_S = 900
"""Seconds a machine waits for the others."""
PATIENCE_S = 10.0
"""Seconds without a process, while waiting for other machines, until a message says so."""
REGROUP_S = 15
"""Seconds the remaining machines wait for a lost one, if they may continue without it."""


@dataclass(frozen=True)
class Launch:
    """The number of processes, and where the machines meet."""

    devices: int
    """Processes on this machine, one per device."""
    least_nodes: int = 1
    """Minimum number of machines to continue with."""
    nodes: int = 1
    """Number of machines to start with, and the maximum."""
    node_rank: int | None = None
    """0 on the machine where all meet; None: found by the address."""
    rendezvous: str | None = None
    """HOST:PORT at which the machines meet; None: a single machine."""
    max_restarts: int = 3
    threads: int | None = None
    """CPU threads of each process; None: the machine's, divided evenly."""


def resolve_devices(request: int | str, device: str) -> int:
    """Return the number of processes for a request: `auto` is one for each GPU, and one on a CPU.

    Raises: UnavailableError if the machine has fewer GPUs.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0
    if request == "auto":
        return max(1, gpus)
    if gpus and int(request) > gpus:
        raise UnavailableError(
            f"{request} devices were requested, but this machine has {gpus} GPUs",
            hint=Change({"runtime.devices": gpus}),
        )
    return int(request)


def start(launch: Launch, words: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `dialogkit WORDS` in several processes until all have ended; return the exit code.

    `say` prints messages that only this machine has, such as that it waits for others.
    Signals are forwarded to the processes, which save and exit; a second signal ends them at once.
    Raises: ProcessLostError if processes are lost more than `max_restarts` times or the machines lose each other,
        UnavailableError if the machines do not find each other.
    """
    if launch.rendezvous and launch.node_rank == 0:
        _require_free(launch.rendezvous)
    folder = Path(tempfile.mkdtemp(prefix="dialogkit-launch-"))
    # The launcher's failures are reported here, in one sentence.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    before = dict(os.environ)
    os.environ.update(_environment(launch, folder))
    signals = _Signals(folder)

    def end(number: int) -> None:
        say(f"error: {stopped_by(number).message}")
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    try:
        with (
            handled_by(signals.forward),
            _status_messages(launch, folder, say),
            ended_by_signals(end, lambda: bool(signals.received)),
        ):
            elastic_launch(_config(launch, folder), sys.executable)("-P", "-m", "dialogkit", *words)
    except ChildFailedError as error:
        if not signals.received:
            raise _lost(error, launch, folder) from None
    except (RendezvousError, DistError, TimeoutError, ConnectionError) as error:
        if not (signals.received or _codes(folder)):
            raise _apart(error, launch, folder) from None
    finally:
        os.environ.clear()
        os.environ.update(before)
        codes = _codes(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return max(codes, default=128 + signals.received if signals.received else 0)


def _config(launch: Launch, folder: Path) -> LaunchConfig:
    several = launch.rendezvous is not None
    join: dict[str, object] = {"join_timeout": JOIN_S, "last_call_timeout": REGROUP_S}
    if several and launch.node_rank is not None:
        join["is_host"] = launch.node_rank == 0
    return LaunchConfig(
        min_nodes=launch.least_nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.devices,
        run_id="dialogkit" if several else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=launch.rendezvous or "localhost:0",
        rdzv_configs=join,
        local_addr=_own_address(launch.rendezvous) if launch.rendezvous else "localhost",
        max_restarts=launch.max_restarts,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        # SIGINT and SIGTERM are handled here: the launcher would kill processes that are still saving.
        signals_to_handle="SIGHUP,SIGQUIT",
    )


def _require_free(rendezvous: str) -> None:
    """Raise UnavailableError if the rendezvous port of this machine is in use."""
    host, _, port = rendezvous.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise UnavailableError(
                f"the machines cannot meet at {rendezvous}: port {port} of this one is not available "
                f"({os_reason(error)})",
                hint=Change({"rendezvous": f"{host}:{int(port) + 1 if int(port) < 65_535 else PORT}"}),
            ) from None


def _own_address(rendezvous: str) -> str | None:
    """Return this machine's address towards the rendezvous; None if unknown."""
    host, _, port = rendezvous.rpartition(":")
    with suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return str(probe.getsockname()[0])
    return None


def _environment(launch: Launch, folder: Path) -> dict[str, str]:
    variables = {LAUNCH_FOLDER: str(folder)}
    if launch.rendezvous:
        # A shared store is announced only once, so a machine that rejoins would wait forever.
        variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Run from a checkout or by its path, the package may not be on Python's path.
    package = Path(__file__).resolve().parents[2]
    if package.name not in ("site-packages", "dist-packages"):
        variables["PYTHONPATH"] = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    # By default gloo uses the address of the host name, which is often unreachable.
    address = _own_address(launch.rendezvous) if launch.rendezvous else "127.0.0.1"
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface(address)) is not None:
        variables["GLOO_SOCKET_IFNAME"] = interface
    if "OMP_NUM_THREADS" not in os.environ:
        threads = launch.threads or max(1, (os.cpu_count() or 1) // launch.devices)
        variables["OMP_NUM_THREADS"] = str(threads)
    return variables


def _interface(address: str | None) -> str | None:
    """Return the network interface with this address; None if unknown."""
    if address is None or not sys.platform.startswith("linux"):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if next((found.address for found in addresses if found.family == socket.AF_INET), None) == address:
            return str(name)
    return None


@contextmanager
def _status_messages(launch: Launch, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Report, on one of several machines, that it waits for others and which machine prints the progress."""
    ended = threading.Event()

    def report() -> None:
        idle_since, waits, reported = time.monotonic(), False, None
        while not ended.wait(0.5):
            if (main_host := _read_note(folder / MAIN_HOST_FILE)) is not None and main_host != reported:
                reported = main_host
                say(f"training has begun; {main_host} prints the progress of all machines")
            if _has_processes(folder) or _codes(folder):
                idle_since, waits = time.monotonic(), False
            elif not waits and time.monotonic() - idle_since > PATIENCE_S:
                waits = True
                count = f"{launch.least_nodes} to {launch.nodes}" * (launch.least_nodes < launch.nodes)
                say(f"waiting for {count or launch.nodes} machines to meet at {launch.rendezvous}")

    if launch.rendezvous is not None:
        threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _has_processes(folder: Path) -> bool:
    """Return whether any of this machine's processes is running."""
    for process in _numbers(folder, "process-*"):
        with suppress(OSError):
            os.kill(process, 0)
            return True
    return False


class _Signals:
    """Forwards Ctrl-C and SIGTERM to the processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.received = 0

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.received = self.received or number
        (self._folder / "stop").write_text(str(number), encoding="utf-8")  # for a process that is only starting
        forwarded = 0
        for process in _numbers(self._folder, "process-*"):
            with suppress(OSError):
                os.kill(process, number)
                forwarded += 1
        if not forwarded:  # no process has started yet
            raise stopped_by(number)


def _codes(folder: Path) -> list[int]:
    """Return the exit codes that the processes wrote."""
    return list(_numbers(folder, "exit-*"))


def _numbers(folder: Path, files: str) -> Iterator[int]:
    """Yield the numbers that the processes wrote into files of this pattern."""
    for file in folder.glob(files):
        with suppress(OSError, ValueError):
            yield int(file.read_text(encoding="utf-8"))


def _lost(error: ChildFailedError, launch: Launch, folder: Path) -> DialogKitError:
    """Return the error after more lost processes than `max_restarts`."""
    failures = error.failures.values()
    # A process that ended because of another one does not show the cause.
    first = min((f for f in failures if f.exitcode != RESTART), key=lambda f: f.timestamp, default=None)
    if first is None:
        what = "the connection to another process was lost"
    elif first.exitcode < 0:
        what = f"a process was ended by {signal.Signals(-first.exitcode).name}"
        if -first.exitcode == signal.SIGKILL:
            what += ", as the system does when memory runs out"
    else:
        what = f"a process ended with code {first.exitcode}"
    again = f" and {counted(launch.max_restarts, 'restart')} did not help" if launch.max_restarts else ""
    run = _read_note(folder / "run")
    return ProcessLostError(what + again, hint=Call("train", resume=run) if run else None)


def _apart(error: Exception, launch: Launch, folder: Path) -> DialogKitError:
    """Return the error if the machines do not meet: at the start, or again after one was lost."""
    where, kind = launch.rendezvous or "this machine", type(error).__name__
    if run := _read_note(folder / "run"):
        return ProcessLostError(
            f"the {launch.nodes} machines that met at {where} have lost each other ({kind})",
            hint=Call("train", resume=run, nodes=launch.nodes, rendezvous=where),
        )
    host, _, port = where.rpartition(":")
    message = f"the {launch.nodes} machines did not find each other at {where} ({kind})"
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        message += f": the name {host!r} is not known here"
    return UnavailableError(
        message, hint=f"start rank 0 of the machines on {host}, with port {port} open to the others"
    )


def _read_note(file: Path) -> str | None:
    """Return the file that a process wrote for its launcher; None if there is none yet."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8") or None
    return None
