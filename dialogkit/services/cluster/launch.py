"""Training in several processes: start them, join them, and have one of them report an error for all."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from dialogkit.config.run import RunConfig
from dialogkit.distributed.rank import LAUNCH_FOLDER, PORT, Rank, start_all, this_rank
from dialogkit.errors import ConfigError, DialogKitError, ProcessLostError, exit_code_of, wrong_setting
from dialogkit.hints import Change
from dialogkit.system.signals import ended_by_signals, stopped_by


class Machines(NamedTuple):
    """The machines that train together, and where they meet."""

    nodes: str | None = None
    """How many: `2`, or `1:2` for the least and the most. None: this one alone."""
    node_rank: int | None = None
    """Number of this machine, counted from 0."""
    rendezvous: str | None = None
    """Where they meet: HOST:PORT."""
    max_restarts: int | None = None
    """Restarts of all processes after one of them is lost. None: 3."""


def nodes_of(text: str | None) -> tuple[int, int]:
    """Return the least and the most machines, of a text such as `2` or `1:2`. Raises: ConfigError."""
    low, _, high = (text or "1").partition(":")
    try:
        least, most = int(low), int(high or low)
    except ValueError:
        least = most = 0
    if not 1 <= least <= most <= 65_536:
        problem = f"{text!r} is not a number of machines such as 2 or 1:2"
        raise wrong_setting("nodes", problem, Change({"nodes": 2}))
    return least, most


def require_sound(machines: Machines) -> None:
    """Raise ConfigError if the machines cannot meet, or their numbers contradict each other."""
    nodes, node_rank, rendezvous, _ = machines
    _, most = nodes_of(nodes)
    complete = {"nodes": nodes or 2, "node_rank": node_rank or 0, "rendezvous": rendezvous or f"HOST:{PORT}"}
    if most > 1 and rendezvous is None:
        problem = "several machines need a rendezvous, the HOST:PORT at which they meet"
        raise wrong_setting("nodes", problem, Change(complete))
    for name, given in (("rendezvous", rendezvous), ("node_rank", node_rank)):
        if nodes is None and given is not None:  # without a number, each machine would train on its own
            problem = f"{given!r} is for several machines, but their number is not given"
            raise wrong_setting(name, problem, Change(complete))
    if rendezvous is not None:
        _require_address(rendezvous)
    if node_rank is not None and node_rank >= most:
        problem = f"{node_rank} is out of range for {most} machines, which are counted from 0"
        raise wrong_setting("node_rank", problem, Change({"node_rank": most - 1}))


def _require_address(rendezvous: str) -> None:
    """Raise ConfigError unless a text is a host and a port, as torch takes them."""
    host, _, port = rendezvous.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 65_536
    if is_port and re.fullmatch(r"[\w.:-]+", host):
        return
    meant = re.fullmatch(r"(?:\w+://)?([\w.-]+)(?::.*)?", rendezvous)  # of a URL as well
    problem = f"{rendezvous!r} is not HOST:PORT, with a port from 1 to 65535"
    instead = f"{meant[1] if meant else 'HOST'}:{port if is_port else PORT}"
    raise wrong_setting("rendezvous", problem, Change({"rendezvous": instead}))


def start_processes(
    config: RunConfig,
    words: Sequence[str],
    machines: Machines,
    *,
    resumes: bool = False,
    say: Callable[[str], None],
) -> int | None:
    """Train in as many processes as the configuration asks for; return the exit code, None if this one is enough.

    Args:
        config: the configuration of the run.
        words: the arguments with which each process calls `dialogkit`.
        machines: the machines that train together.
        resumes: whether a run is resumed, which keeps its batch.
        say: prints a line.

    Raises: ConfigError for machines that cannot meet, and for batches that do not split; what `launcher.start`
        raises.
    """
    require_sound(machines)
    if this_rank() is not None:
        return None  # another launcher has started the processes already, this one among them
    devices = config.runtime.devices
    alone = machines.rendezvous is None and config.runtime.sharding == "none"  # sharding needs a process group
    if devices == 1 and alone:
        return None
    with _quiet_torch():
        from dialogkit.distributed.launcher import Launch, resolve_devices, start

    number = resolve_devices(devices, config.runtime.device)
    if number == 1 and alone:
        return None
    least, most = nodes_of(machines.nodes)
    for count in range(least, most + 1):
        config.train.require_divisible(count * number, keeps_batch=resumes and most == 1)
    launch = Launch(
        devices=number,
        least_nodes=least,
        nodes=most,
        node_rank=machines.node_rank,
        rendezvous=machines.rendezvous,
        max_restarts=3 if machines.max_restarts is None else machines.max_restarts,
        threads=config.runtime.threads,
    )
    return start(launch, words, say)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence the C++ log of torch, which is imported within: an error is one sentence here."""
    name = "TORCH_CPP_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "FATAL"
    try:
        yield
    finally:
        del os.environ[name]


def join_processes() -> bool:
    """Join the processes that were started with this one; return whether this is the main process.

    Raises: ProcessLostError if they do not arrive, ConfigError if the environment does not say where to meet.
    """
    if this_rank() is None:
        count = os.environ.get("WORLD_SIZE", "")
        if "RANK" in os.environ and "MASTER_ADDR" not in os.environ and count.isdecimal() and int(count) > 1:
            raise ConfigError(
                f"RANK and WORLD_SIZE make this one of {count} processes, without a MASTER_ADDR to meet at",
                hint=start_all(),
            )
        return True
    with _quiet_torch():
        from dialogkit.distributed import process_group, rendezvous

    def end(number: int) -> None:
        sys.stderr.write(f"error: {stopped_by(number).message}\n")
        end_at_once(128 + number)

    with ended_by_signals(end):
        rendezvous.join()
    return process_group.is_main_process()


def leave_processes() -> None:
    """Leave the process group at the end of the work."""
    if this_rank() is not None:
        from dialogkit.distributed import rendezvous

        rendezvous.leave()


def end_at_once(code: int, *, final: bool = True) -> NoReturn:
    """End this process at once: threads of libraries that wait for other ranks abort a slow exit."""
    from dialogkit.distributed import shutdown

    sys.stdout.flush()
    sys.stderr.flush()
    shutdown.exit_now(code, final=final)


def end_with(error: BaseException, rank: Rank, say: Any) -> NoReturn:
    """End all processes because of an error of this one; only one of them reports it.

    Args:
        error: what was raised.
        rank: the rank of this process.
        say: prints a DialogKitError; called with None before the traceback of any other error.
    """
    from dialogkit.distributed import process_group, shutdown

    error = shutdown.settle(error)
    launched, lost = LAUNCH_FOLDER in os.environ, isinstance(error, ProcessLostError)
    if (machine := shutdown.reported_by(error)) is not None:
        # Its rank has printed it; but each machine with a launcher of its own has a terminal of its own.
        speaks = launched and rank.local_rank == 0 and machine != rank.machine
    else:
        first_to_know = rank.rank == 0 or process_group.is_initialized()
        # Our launcher reports a lost process itself; other launchers do not know our messages.
        speaks = first_to_know and not (lost and (launched or rank.rank))
    if isinstance(error, DialogKitError):
        if speaks:
            say(error)
    elif speaks:
        say(None)
        traceback.print_exception(error)
    end_at_once(exit_code_of(error), final=not lost)
