"""Which of the processes of a training this one is, as what started it tells by the environment."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dialogkit.errors import ConfigError

LAUNCH_FOLDER = "DIALOGKIT_LAUNCH_FOLDER"
"""Names a folder in which `--devices` and the processes that it starts leave word for each other."""
MAIN_HOST_FILE = "speaker"
"""File of that folder that names the machine of the first process, on each other machine."""
PORT = 29400
"""Where machines meet if nothing else is said, as torchrun has it."""


_OF_ACCELERATE = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "other ways to split a model",
}
_SEVERAL = "accelerate launch --multi_gpu --num_processes 2 --module dialogkit train"


@dataclass(frozen=True)
class Rank:
    """The place of a process among those of a training."""

    rank: int
    """From 0; rank 0, the main process, prints and writes for all."""
    world_size: int
    local_rank: int
    """From 0 on each machine; also the number of its device."""
    local_world_size: int

    @property
    def machine(self) -> int:
        """Index of the first process of this one's machine, where those of a machine follow each other."""
        return self.rank - self.local_rank


def this_rank() -> Rank | None:
    """Return the place of this process; None where it is alone."""
    told = _of_torch(os.environ) or _of_slurm(os.environ)
    if told is None:
        return None
    try:
        rank = Rank(*(int(told[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    except ValueError:
        return None
    # One process that nobody watches over has nobody to join.
    return None if rank.world_size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ else rank


def require_sound_rank() -> None:
    """Raise ConfigError if what the environment tells of this process's place cannot be: it would wait in vain."""
    told = _of_torch(os.environ) or _of_slurm(os.environ)
    if told is None:
        return
    hint = "unset RANK WORLD_SIZE, or start all with: torchrun --nproc-per-node N -m dialogkit train"
    for name, value in {**told, "MASTER_PORT": os.environ.get("MASTER_PORT", str(PORT))}.items():
        if name != "MASTER_ADDR" and not (value.isascii() and value.isdecimal()):
            raise ConfigError(f"{name} is {value!r} in the environment, and no number", hint=hint)
    if int(told["RANK"]) >= int(told["WORLD_SIZE"]):
        raise ConfigError(
            f"RANK is {told['RANK']} in the environment, and no place among {told['WORLD_SIZE']}, counted from 0",
            hint=hint,
        )


def export_for_torch() -> None:
    """Put the place of this process into the environment under the names that torch and accelerate read."""
    os.environ.update(_of_torch(os.environ) or _of_slurm(os.environ) or {})


@cache  # accelerate itself sets such variables later on
def reject_foreign_settings() -> None:
    """Have `accelerate launch` start processes and no more: how they compute is told by settings, and recorded.

    Raises: ConfigError if it was asked for what this way of starting would leave undone without a word.
    """
    for name, asked in _OF_ACCELERATE.items():
        if is_true(name):
            more = " --set runtime.sharding=fsdp --set train.optimizer=adamw" if asked == "FSDP" else ""
            raise ConfigError(
                f"accelerate launch is asked for {asked} ({name}=true); it starts processes here, and how they "
                "train is told by settings of dialogkit",
                hint=_SEVERAL + more,
            )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        raise ConfigError(
            "accelerate launch has started one process in place of several, as it does on a CPU",
            hint=f"{_SEVERAL}, or: dialogkit train --devices 2",
        )
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_", "ACCELERATE_GRADIENT_", "FSDP_")):
            del os.environ[name]


def is_true(name: str) -> bool:
    """Return whether a variable of the environment says yes, as accelerate reads it."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def _of_torch(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return what torchrun, `accelerate launch` and operators of clusters tell."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        return None
    return {
        "RANK": environment["RANK"],
        "WORLD_SIZE": environment["WORLD_SIZE"],
        "LOCAL_RANK": environment.get("LOCAL_RANK", "0"),
        "LOCAL_WORLD_SIZE": environment.get("LOCAL_WORLD_SIZE", "1"),
    }


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return what `srun` tells each task of a step; the script of `sbatch` itself is none."""
    needed = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"}
    if not needed <= environment.keys() or environment["SLURM_STEP_NUM_TASKS"] == "1":
        return None
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks[0] if tasks else "1",
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        # Every task comes to the same number, and two jobs on a machine to different ones.
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20_000 + job % 20_000),
    }


def first_host(hosts: str) -> str:
    """Return the first host of a list in Slurm's manner: `node[01-04,7],other` begins with `node01`."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\])?", hosts)
    return f"{found[1]}{found[2] or ''}" if found else hosts


def launch_folder() -> Path | None:
    """Return the folder that our own launcher and its ranks share; None under another launcher or none."""
    folder = os.environ.get(LAUNCH_FOLDER)
    return Path(folder) if folder else None


def enter() -> None:
    """Leave word that this process has begun, where `--devices` started it; end it if all were told to end."""
    if (folder := launch_folder()) is None:
        return
    local = os.environ.get("LOCAL_RANK", "0")
    with suppress(OSError):
        (folder / f"process-{local}").write_text(str(os.getpid()), encoding="utf-8")
        if (folder / "stop").exists():
            code = 128 + int((folder / "stop").read_text(encoding="utf-8") or 0)
            (folder / f"exit-{local}").write_text(str(code), encoding="utf-8")
            os._exit(0)


def is_asked_to_stop() -> bool:
    """Return whether a signal comes from outside, and not from a launcher that lost another process."""
    folder = launch_folder()
    return folder is None or (folder / "stop").exists()


def silence() -> int:
    """Send what this process prints nowhere, and return where it went: only one of several speaks."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return kept
