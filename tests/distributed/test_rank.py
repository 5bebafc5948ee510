"""A process reads its rank from the environment that torchrun, Slurm and others set."""

import os
from types import SimpleNamespace

import pytest
import torch

from dialogkit.distributed import rendezvous
from dialogkit.distributed.rank import Rank, export_for_torch, first_host, reject_foreign_settings, this_rank
from dialogkit.engine.arguments import use_visible_device
from dialogkit.errors import ConfigError
from tests.conftest import typed

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}


@pytest.mark.parametrize(("visible", "device"), [(1, 0), (4, 3), (2, 1)])
def test_a_rank_takes_its_device_among_those_that_it_sees(
    visible: int, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    rendezvous.set_device_and_threads(Rank(rank=3, world_size=4, local_rank=3, local_world_size=4))
    state = SimpleNamespace(device=torch.device("cuda", device), local_process_index=3)
    use_visible_device(state)  # what accelerate gives DDP
    assert taken == [device] == [state.local_process_index]


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in TORCHRUN or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        (TORCHRUN, Rank(3, 4, 1, 2)),
        # A pod of a cluster with one process knows no local rank.
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, Rank(1, 2, 0, 1)),
        # A single process: platforms set this for every program.
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a"}, None),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"}, Rank(0, 1, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None),
        ({**TORCHRUN, "RANK": "first"}, None),
        (SRUN, Rank(5, 8, 1, 4)),
        # The script of sbatch itself, and a step of one task.
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({name: value for name, value in SRUN.items() if "STEP" not in name} | {"SLURM_NTASKS": "8"}, None),
    ],
)
def test_a_process_knows_its_place(
    environment: dict[str, str], rank: Rank | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert this_rank() == rank


def test_slurms_rank_is_exported_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(SRUN))
    export_for_torch()
    exported = {
        name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    assert exported == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(20_000 + 123456 % 20_000),
    }
    assert this_rank() == Rank(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("a", "a"), ("a,b", "a"), ("node[01-04,7],b", "node01"), ("n[3,5]", "n3"), ("gpu-a[10-12]", "gpu-a10")],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


ACCELERATE = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "FSDP_OFFLOAD_PARAMS": "true",
    "ACCELERATE_USE_CPU": "False",
}


@pytest.mark.parametrize("started", [{}, TORCHRUN])
def test_accelerate_launch_does_not_choose_how_to_compute(
    started: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**ACCELERATE, **started})
    reject_foreign_settings.__wrapped__()
    assert os.environ == {"ACCELERATE_USE_CPU": "False", **started}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true", **TORCHRUN}, "asked for FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asked for DeepSpeed"),
        # What it sets where several processes are asked for on a CPU, of which it starts one.
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "one process instead of several"),
    ],
)
def test_accelerate_launch_is_not_left_to_do_less_than_it_was_asked_for(
    asked: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**ACCELERATE, **asked})
    with pytest.raises(ConfigError, match=message) as error:
        reject_foreign_settings.__wrapped__()
    assert "accelerate launch --multi_gpu --num_processes 2 --module dialogkit train" in str(typed(error.value))
