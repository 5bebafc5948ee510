"""Trains in several processes: starts them, joins those that are started, and ends all with one sentence."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from dialogkit.config.run import RunConfig
from dialogkit.distributed.rank import LAUNCH_FOLDER, PORT, Rank, this_rank
from dialogkit.errors import ConfigError, DialogKitError, ProcessLostError, exit_code_of
from dialogkit.system.signals import ended_by_signals, stopped_by


def nodes_of(text: str | None) -> tuple[int, int]:
    """Return the least and the most machines of words such as `2` or `1:2`. Raises: ConfigError."""
    low, _, high = (text or "1").partition(":")
    try:
        least, most = int(low), int(high or low)
    except ValueError:
        least = most = 0
    if not 1 <= least <= most <= 65_536:
        raise ConfigError(f"--nodes {text!r} is not a number of machines such as 2 or 1:2", hint="--nodes 2")
    return least, most


def _require_place(rendezvous: str) -> None:
    """Raise ConfigError unless words are a host and a port, as torch takes them."""
    host, _, port = rendezvous.rpartition(":")
    sound = port.isascii() and port.isdecimal() and 0 < int(port) < 65_536
    if sound and re.fullmatch(r"[\w.:-]+", host):
        return
    meant = re.fullmatch(
        r"(?:\w+://)?([\w.-]+)(?::.*)?", rendezvous
    )  # of an address in the manner of the web as well
    raise ConfigError(
        f"--rendezvous {rendezvous!r} is not HOST:PORT, with a port from 1 to 65535",
        hint=f"--rendezvous {meant[1] if meant else 'HOST'}:{port if sound else PORT}",
    )


def start_processes(
    config: RunConfig,
    words: Sequence[str],
    *,
    nodes: str | None,
    node_rank: int | None,
    rendezvous: str | None,
    max_restarts: int | None,
    say: Callable[[str], None],
) -> int | None:
    """Run `dialogkit WORDS` in as many processes as are asked for; return the exit code, None if one is enough.

    Raises: ConfigError for words that do not go together, and for batches that do not split; what `elastic.start`
        raises.
    """
    least, most = nodes_of(nodes)
    if most > 1 and rendezvous is None:
        raise ConfigError(
            "--nodes needs --rendezvous HOST:PORT, at which the machines meet",
            hint=f"--nodes {nodes} --node-rank {node_rank or 0} --rendezvous HOST:{PORT}",
        )
    for option, given in (("--rendezvous", rendezvous), ("--node-rank", node_rank)):
        if nodes is None and given is not None:  # left alone, each machine would train for itself
            raise ConfigError(
                f"{option} {given!r} is of several machines, and --nodes does not say how many",
                hint=f"--nodes 2 --node-rank {node_rank or 0} --rendezvous {rendezvous or f'HOST:{PORT}'}",
            )
    if rendezvous is not None:
        _require_place(rendezvous)
    if node_rank is not None and node_rank >= most:
        raise ConfigError(
            f"--node-rank {node_rank} is no number of {most} machines, which are counted from 0",
            hint=f"--node-rank {most - 1}",
        )
    if this_rank() is not None:
        return None  # something else has started the processes already, this one among them
    devices = config.runtime.devices
    alone = rendezvous is None and config.runtime.sharding == "none"  # sharding needs a group, if of one
    if devices == 1 and alone:
        return None
    with _torch_says_nothing():
        from dialogkit.distributed.launcher import Launch, resolve_devices, start

    number = resolve_devices(devices, config.runtime.device)
    if number == 1 and alone:
        return None
    for machines in range(least, most + 1):
        config.train.require_divisible(machines * number)
    launch = Launch(
        devices=number,
        least_nodes=least,
        nodes=most,
        node_rank=node_rank,
        rendezvous=rendezvous,
        max_restarts=3 if max_restarts is None else max_restarts,
        threads=config.runtime.threads,
    )
    return start(launch, words, say)


@contextmanager
def _torch_says_nothing() -> Iterator[None]:
    """Have torch, which is imported within, print no lines of its C++ where errors are one sentence."""
    name = "TORCH_CPP_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "FATAL"
    try:
        yield
    finally:
        del os.environ[name]


def join_others() -> bool:
    """Join the processes that were started with this one; return whether this one is to speak.

    Raises: ProcessLostError if they do not come, ConfigError if nobody tells where they are.
    """
    if this_rank() is None:
        count = os.environ.get("WORLD_SIZE", "")
        if "RANK" in os.environ and "MASTER_ADDR" not in os.environ and count.isdecimal() and int(count) > 1:
            raise ConfigError(
                f"RANK and WORLD_SIZE make this one of {count} processes, and no MASTER_ADDR says where they meet",
                hint="unset RANK WORLD_SIZE, or start all with: torchrun --nproc-per-node N -m dialogkit train",
            )
        return True
    with _torch_says_nothing():
        from dialogkit.distributed import process_group, rendezvous

    def end(number: int) -> None:
        sys.stderr.write(f"error: {stopped_by(number).message}\n")
        end_at_once(128 + number)

    with ended_by_signals(end):
        rendezvous.join()
    return process_group.is_main_process()


def leave_others() -> None:
    """Leave the other processes at the end of the work."""
    if this_rank() is not None:
        from dialogkit.distributed import rendezvous

        rendezvous.leave()


def end_at_once(code: int) -> NoReturn:
    """End this process after its work: threads of libraries, which wait for other processes, abort a slow end."""
    from dialogkit.distributed import shutdown

    sys.stdout.flush()
    sys.stderr.flush()
    shutdown.exit_now(code, final=True)


def end_with(error: BaseException, rank: Rank, say: Any) -> NoReturn:
    """End this process, and with it all others, because of an error; only one of them says what it is.

    Args:
        error: what was raised.
        rank: the place of this process.
        say: takes a DialogKitError that is to be told; for any other error it is called with None.
    """
    from dialogkit.distributed import process_group, shutdown

    error = shutdown.settle(error)
    launched, lost = LAUNCH_FOLDER in os.environ, isinstance(error, ProcessLostError)
    if (machine := shutdown.reported_by(error)) is not None:
        # Its rank has printed it; but each machine with a launcher of its own has a terminal of its own.
        speaks = launched and rank.local_rank == 0 and machine != rank.machine
    else:
        first_to_know = rank.rank == 0 or process_group.is_initialized()
        # Of a lost process, whoever starts all again tells; a launcher of others knows nothing of our sentences.
        speaks = first_to_know and not (lost and (launched or rank.rank))
    if isinstance(error, DialogKitError):
        if speaks:
            say(error)
    elif speaks:
        say(None)
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    shutdown.exit_now(exit_code_of(error), final=not lost)
