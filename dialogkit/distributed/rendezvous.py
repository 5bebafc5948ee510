"""How the ranks of a run find each other, leave, and remember their run across restarts."""

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from dialogkit.distributed import process_group, shutdown
from dialogkit.distributed.process_group import CONTROL_TIMEOUT, STEP_TIMEOUT, Group
from dialogkit.distributed.rank import (
    MAIN_HOST_FILE,
    Rank,
    export_for_torch,
    launch_folder,
    reject_foreign_settings,
    this_rank,
)
from dialogkit.errors import ProcessLostError, first_line

JOIN_TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other at the start."""
_RUN_KEY = "dialogkit/run"


def join() -> bool:
    """Join the ranks that were started with this one; return whether there is a group to join.

    Raises: ProcessLostError if they do not join in time; what `reject_foreign_settings` raises.
    """
    reject_foreign_settings()
    rank = this_rank()
    if process_group.is_initialized() or rank is None:
        return process_group.is_initialized()
    export_for_torch()
    set_device_and_threads(rank)
    address, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500"))
    try:
        group, watched = _connect(rank, address, port)
        process_group.set_current(group)
        group.begun = _started_run(group)
    except (RuntimeError, ValueError, TimeoutError) as error:
        process_group.set_current(None)
        raise ProcessLostError(
            f"rank {rank.rank} of {rank.world_size} cannot join the other ranks at {address}:{port} "
            f"({first_line(error)})"
        ) from None
    threading.Thread(target=shutdown.watch, args=(group, watched), daemon=True, name="dialogkit-watch").start()
    return True


def set_device_and_threads(rank: Rank) -> None:
    """Give this process its device and its share of the CPU's threads."""
    import torch

    if torch.cuda.is_available():
        # `srun --gpus-per-task=1` shows each rank one device, number 0.
        torch.cuda.set_device(rank.local_rank % torch.cuda.device_count())
    # Oversubscribed threads in several processes on a machine cost more than they gain.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // rank.local_world_size))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def _connect(rank: Rank, address: str, port: int) -> tuple[Group, Any]:
    """Return the group, and a second connection to its store for the watching thread."""
    import torch
    from torch import distributed
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    hosts = rank.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    kept, seen = (
        TCPStore(address, port, is_master=master, wait_for_workers=False, timeout=JOIN_TIMEOUT, multi_tenant=True)
        for master in (hosts, False)
    )
    name = _meet(kept, rank)
    store, watched = (PrefixStore(f"dialogkit/{name}", made) for made in (kept, seen))
    if not distributed.is_initialized():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("group", store),
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=STEP_TIMEOUT,
        )
    control = distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    return Group(rank, store, kept, control), watched


def _meet(store: Any, rank: Rank) -> str:
    """Return a name for this start of the ranks, the same on each; an earlier start may have left keys.

    Each rank says hello with a token of its own and is answered, so only running ranks are counted.
    """
    if rank.rank:
        token = uuid.uuid4().hex
        store.set(f"dialogkit/hello/{rank.rank}", token)
        name = str(store.get(f"dialogkit/reply/{token}").decode())
        store.add(f"dialogkit/there/{name}", 1)
        return name
    name, answered, until = uuid.uuid4().hex, set[bytes](), time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while store.add(f"dialogkit/there/{name}", 0) < rank.world_size - 1:
        for other in range(1, rank.world_size):
            key = f"dialogkit/hello/{other}"
            if store.check([key]) and (said := store.get(key)) not in answered:
                store.set(f"dialogkit/reply/{said.decode()}", name)
                answered.add(said)
        if time.monotonic() > until:
            raise TimeoutError(f"waited for {rank.world_size - 1} other ranks")
        time.sleep(0.02)
    return name


def leave() -> None:
    """Leave the group after all work is done."""
    group = process_group.current()
    if group is None:
        return
    from torch import distributed

    with suppress(RuntimeError):  # raised if another rank left first
        process_group.barrier()
    group.finished.set()
    process_group.set_current(None)
    with suppress(RuntimeError):
        distributed.destroy_process_group()


def restarts() -> int:
    """Return how often the ranks were restarted."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def started_run() -> Path | None:
    """Return the folder of the run that these ranks had started before they were restarted; the same on each."""
    group = process_group.current()
    return None if group is None else group.begun


def _started_run(group: Group) -> Path | None:
    mine = None
    if (folder := launch_folder()) is not None:
        with suppress(OSError):
            mine = (folder / "run").read_text(encoding="utf-8")
    elif process_group.is_main_process() and group.restart_store.check([_RUN_KEY]):
        mine = group.restart_store.get(_RUN_KEY).decode()
    # Only a machine that took part before has it; rank 0 may be on another one now.
    return next((Path(run) for run in process_group.all_gather(mine) if run), None)


def remember_run(run: Path) -> None:
    """Store the folder of the run, in case the ranks are restarted; every rank calls this.

    Other machines also store the name of rank 0's machine.
    """
    group = process_group.current()
    if group is None:
        return
    main_host = process_group.broadcast(socket.gethostname())
    if (folder := launch_folder()) is not None:
        (folder / "run").write_text(str(run), encoding="utf-8")
        if group.rank.machine:
            (folder / MAIN_HOST_FILE).write_text(main_host, encoding="utf-8")
        else:
            (folder / MAIN_HOST_FILE).unlink(missing_ok=True)  # from an earlier start
    elif process_group.is_main_process():
        group.restart_store.set(_RUN_KEY, str(run))
