"""Which rank of a run this process is, according to the environment that its launcher set."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dialogkit.errors import ConfigError
from dialogkit.hints import Call, Either, Shell, Through

LAUNCH_FOLDER = "DIALOGKIT_LAUNCH_FOLDER"
"""Names a folder that our own launcher shares with the ranks it starts."""
MAIN_HOST_FILE = "speaker"
"""File in that folder with the name of rank 0's machine, on every other machine."""
PORT = 29400
"""Default port of the rendezvous, the same as torchrun's."""

_OF_ACCELERATE = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "other ways to split a model",
}
_ACCELERATE = "accelerate launch --multi_gpu --num_processes 2 --module"


@dataclass(frozen=True)
class Rank:
    """The rank of a process in its run."""

    rank: int
    """From 0; rank 0, the main process, prints and writes for all."""
    world_size: int
    local_rank: int
    """From 0 on each machine; also the number of its device."""
    local_world_size: int

    @property
    def machine(self) -> int:
        """First rank on this machine; the ranks of a machine are consecutive."""
        return self.rank - self.local_rank


def this_rank() -> Rank | None:
    """Return the rank of this process; None in a single process."""
    given = _given()
    if given is None:
        return None
    try:
        rank = Rank(*(int(given[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    except ValueError:
        return None
    # A single process without a launcher has nobody to join.
    return None if rank.world_size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ else rank


_OF_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start_all() -> Either:
    """Return what to do about a rank that the environment gives by mistake: forget it, or start all processes."""
    given = [name for name in _OF_TORCH if name in os.environ] or ["SLURM_PROCID"]
    return Either(Shell(f"unset {' '.join(given)}"), Through("torchrun --nproc-per-node 2 -m", Call("train")))


def require_sound_rank() -> None:
    """Raise ConfigError if the environment gives this process an impossible rank: it would wait forever."""
    given = _given()
    if given is None:
        return
    for name, value in {**given, "MASTER_PORT": os.environ.get("MASTER_PORT", str(PORT))}.items():
        if name != "MASTER_ADDR" and not (value.isascii() and value.isdecimal()):
            raise ConfigError(f"{name} is {value!r} in the environment, which is not a number", hint=start_all())
    if int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        raise ConfigError(
            f"RANK is {given['RANK']} in the environment, but ranks go from 0 to {int(given['WORLD_SIZE']) - 1}",
            hint=start_all(),
        )


def export_for_torch() -> None:
    """Set the environment variables with this process's rank that torch and accelerate read."""
    os.environ.update(_given() or {})


@cache  # accelerate sets such variables itself later
def reject_foreign_settings() -> None:
    """Let `accelerate launch` only start processes: how they compute is a matter of the recorded settings.

    Raises: ConfigError if it was asked for anything else, which would silently be ignored.
    """
    for name, asked in _OF_ACCELERATE.items():
        if is_true(name):
            settings = {"runtime.sharding": "fsdp", "train.optimizer": "adamw"} if asked == "FSDP" else {}
            raise ConfigError(
                f"accelerate launch was asked for {asked} ({name}=true); use dialogkit's settings instead",
                hint=Through(_ACCELERATE, Call("train", settings=settings)),
            )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise ConfigError(
            "accelerate launch has started one process instead of several, as it does on a CPU",
            hint=Either(Through(_ACCELERATE, Call("train")), Call("train", settings={"runtime.devices": 2})),
        )
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_", "ACCELERATE_GRADIENT_", "FSDP_")):
            del os.environ[name]


def is_true(name: str) -> bool:
    """Return whether an environment variable is true, as accelerate parses it."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def _given() -> dict[str, str] | None:
    """Return the rank that the environment gives this process, as variables of torch; None without one."""
    return _of_torch() or _of_slurm()


def _of_torch() -> dict[str, str] | None:
    """Return the rank given by torchrun, `accelerate launch` or a cluster operator; None without one."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return None
    return {
        "RANK": os.environ["RANK"],
        "WORLD_SIZE": os.environ["WORLD_SIZE"],
        "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0"),
        "LOCAL_WORLD_SIZE": os.environ.get("LOCAL_WORLD_SIZE", "1"),
    }


def _of_slurm() -> dict[str, str] | None:
    """Return the rank that `srun` gives each task of a step; None elsewhere, as in the script of `sbatch`."""
    needed = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"}
    if not needed <= os.environ.keys() or os.environ["SLURM_STEP_NUM_TASKS"] == "1":
        return None
    tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    job = int(re.sub(r"\D", "", os.environ.get("SLURM_JOB_ID", "")) or 0)
    return {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks[0] if tasks else "1",
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"]),
        # The same for every task of a job, and different for two jobs on a machine.
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(20_000 + job % 20_000),
    }


def first_host(hosts: str) -> str:
    """Return the first host of a Slurm host list: `node01` of `node[01-04,7],other`."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\])?", hosts)
    return f"{found[1]}{found[2] or ''}" if found else hosts


def launch_folder() -> Path | None:
    """Return the folder that our own launcher shares with its ranks; None under another launcher or none."""
    folder = os.environ.get(LAUNCH_FOLDER)
    return Path(folder) if folder else None


def enter() -> None:
    """Register this process with our own launcher, if that started it; exit if a stop was already requested."""
    if (folder := launch_folder()) is None:
        return
    local = os.environ.get("LOCAL_RANK", "0")
    with suppress(OSError):
        (folder / f"process-{local}").write_text(str(os.getpid()), encoding="utf-8")
        if (folder / "stop").exists():
            code = 128 + int((folder / "stop").read_text(encoding="utf-8") or 0)
            (folder / f"exit-{local}").write_text(str(code), encoding="utf-8")
            os._exit(0)


def signal_came_from_user() -> bool:
    """Return whether a signal comes from the user, and not from a launcher that lost another process."""
    folder = launch_folder()
    return folder is None or (folder / "stop").exists()


def silence() -> int:
    """Discard what this rank prints, as only rank 0 prints; return a descriptor of the original stderr."""
    original = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return original
