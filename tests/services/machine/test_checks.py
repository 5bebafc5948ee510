"""What is said of machines, this one and others."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli.hints import render
from dialogkit.services.machine import probe as reading
from dialogkit.services.machine.checks import DoctorResult, Finding, examine
from dialogkit.services.machine.probe import (
    FolderInfo,
    Gpu,
    MachineInfo,
    Package,
    parse_driver,
    parse_gpus,
    read_machine,
)
from dialogkit.system.credentials import DEFAULT_SERVER, Credentials
from dialogkit.system.memory import Memory
from tests.cli.test_hints import parsed
from tests.conftest import Finished

Run = Callable[..., Finished]

GIB = 2**30
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, (9, 0))
B200 = Gpu("NVIDIA B200", 180 * GIB, 179 * GIB, (10, 0))
V100 = Gpu("Tesla V100-SXM2-16GB", 16 * GIB, 16 * GIB, (7, 0))
T4 = Gpu("Tesla T4", 15 * GIB, 15 * GIB, (7, 5))
FINE = FolderInfo("models", 500 * GIB, None, True, True)

LAPTOP = MachineInfo(
    system="Linux",
    python=(3, 12, 1),
    packages=(
        Package("torch", "<3,>=2.11", "2.13.0", True),
        Package("transformers", "<6,>=5.17", "5.23.0", True),
        Package("gguf", "<1,>=0.17", "0.19.0", True, "gguf"),
        Package("lm-eval", "<0.5,>=0.4.13", None, False, "lm-eval"),
    ),
    torch="2.13.0+cpu",
    torch_cuda=None,
    torch_hip=None,
    gpus=(),
    driver=None,
    driver_cuda=None,
    processor="A processor",
    flags=frozenset(["avx512_bf16"]),
    cores=8,
    environment={},
    memory=Memory(16 * GIB, 10 * GIB),
    container=Memory(None, None),
    shm_bytes=8 * GIB,
    output=FINE,
    cache=FINE,
    hub_cache=FINE,
    wandb=Credentials(None, DEFAULT_SERVER),
    open_dotenv=False,
    commands=frozenset(),
)
SERVER = replace(
    LAPTOP,
    torch="2.13.0",
    torch_cuda="13.0",
    driver="580.65",
    driver_cuda="13.0",
    gpus=(H100,) * 8,
    wandb=Credentials("0" * 40, DEFAULT_SERVER, key_from=".env"),
)
RANK = {"RANK": "3", "WORLD_SIZE": "16", "MASTER_ADDR": "node1"}
TASK = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "16"}


def said(facts: MachineInfo, area: str) -> Finding:
    """Return the worst that is said of an area."""
    order = ["ok", "could be better", "wrong"]
    return max((f for f in examine(facts).findings if f.area == area), key=lambda f: order.index(f.verdict))


@pytest.mark.parametrize("machine", [LAPTOP, SERVER])
def test_nothing_is_amiss_on_a_sound_machine(machine: MachineInfo) -> None:
    assert {finding.verdict for finding in examine(machine).findings} == {"ok"}


@pytest.mark.parametrize(
    ("machine", "changes", "area", "verdict", "text", "command"),
    [
        (LAPTOP, {"python": (3, 10, 4)}, "python", "wrong", "3.10.4, and dialogkit needs 3.11", None),
        (
            LAPTOP,
            {"packages": (Package("torch", "<3,>=2.11", None, False),)},
            *("packages", "wrong", "not installed: torch", "pip install 'torch<3,>=2.11'"),
        ),
        (
            LAPTOP,
            {"packages": (Package("transformers", "<6,>=5.17", "4.40.0", False),)},
            *("packages", "could be better", "transformers 4.40.0 (not <6,>=5.17)", "pip install 'transformers<6"),
        ),
        (LAPTOP, {"packages": ()}, "packages", "could be better", "without being installed", "pip install -e ."),
        (
            LAPTOP,
            {},
            "extras",
            "ok",
            "installed: gguf; there are also lm-eval",
            "pip install 'dialogkit[lm-eval]'",
        ),
        (
            SERVER,
            {"torch": "2.13.0+cpu", "torch_cuda": None},
            *(
                "torch",
                "could be better",
                "H100",
                "'torch<3,>=2.11' --index-url https://download.pytorch.org/whl/cu130",
            ),
        ),
        (
            SERVER,
            {"driver": "550.54", "driver_cuda": "12.4"},
            *("torch", "could be better", "only supports CUDA up to 12.4: no GPU is used", "whl/cu126"),
        ),
        (
            SERVER,
            {"gpus": (V100,)},
            "torch",
            "could be better",
            "without kernels for the Tesla V100-SXM2-16GB (compute capability 7.0): it is not used",
            "whl/cu126",
        ),
        (SERVER, {"gpus": (V100, T4)}, "torch", "could be better", "V100", "whl/cu126"),
        (SERVER, {"gpus": (V100,), "torch_cuda": "12.6"}, "torch", "ok", "built for CUDA 12.6", None),
        (SERVER, {"gpus": (T4,)}, "torch", "ok", "built for CUDA 13.0", None),
        (SERVER, {"gpus": (B200,), "torch_cuda": "12.6"}, "torch", "could be better", "B200", "whl/cu130"),
        (
            SERVER,
            {"gpus": (B200,), "driver": "570.86", "driver_cuda": "12.8"},
            *("torch", "could be better", "only supports CUDA up to 12.8", "whl/cu128"),
        ),
        (
            SERVER,
            {"driver": "470.57", "driver_cuda": "11.4"},
            *("torch", "could be better", "no build of torch supports so old a driver", None),
        ),
        (
            SERVER,
            {"gpus": (replace(V100, name="GTX 780", capability=(3, 5)),), "torch_cuda": "12.6"},
            *("torch", "could be better", "GTX 780 (compute capability 3.5): it is not used; no build of", None),
        ),
        (
            LAPTOP,
            {"amd_gpus": (Gpu("AMD Instinct MI300X", 192 * GIB, 190 * GIB, None),)},
            *("torch", "could be better", "so the AMD Instinct MI300X is not used; builds for ROCm", None),
        ),
        (SERVER, {}, "gpu", "ok", "79.0 GiB of 80.0 GiB free, compute capability 9.0: bf16", None),
        (SERVER, {"gpus": (T4,)}, "gpu", "ok", "7.5: no bf16, so fp16", None),
        (
            SERVER,
            {"gpus": (replace(T4, capability=(6, 1)),), "torch_cuda": "12.6"},
            "gpu",
            "ok",
            "6.1: no bf16, so float32",
            None,
        ),
        (
            SERVER,
            {"gpus": (replace(H100, free_bytes=GIB),)},
            *("gpu", "could be better", "another process holds most", "nvidia-smi"),
        ),
        (
            LAPTOP,
            {"commands": frozenset(["nvidia-smi"])},
            *("gpu", "could be better", "reports no GPU", "nvidia-smi"),
        ),
        (LAPTOP, {"flags": frozenset(["avx2"])}, "cpu", "ok", "8 cores to use; no bf16, so float32", None),
        (
            LAPTOP,
            {"environment": {"OMP_NUM_THREADS": "64"}},
            *("threads", "could be better", "wait for each other", "unset OMP_NUM_THREADS"),
        ),
        (
            LAPTOP,
            {"environment": {"OMP_NUM_THREADS": "1"}},
            *("threads", "could be better", "some cores stay idle", "unset OMP_NUM_THREADS"),
        ),
        (
            LAPTOP,
            {"environment": {"OMP_NUM_THREADS": "all"}},
            *("threads", "could be better", "not a number of threads", "unset OMP_NUM_THREADS"),
        ),
        (LAPTOP, {"environment": {"OMP_NUM_THREADS": "8"}}, "threads", "ok", "is 8", None),
        (
            LAPTOP,
            {"container": Memory(2 * GIB, GIB)},
            *("memory", "could be better", "1.0 GiB free of 16.0 GiB, and this container or job may use 2.0 GiB"),
            "--fit-batch",
        ),
        (SERVER, {"shm_bytes": 64 * 2**20}, "shm", "could be better", "/dev/shm has 64 MiB", "--shm-size"),
        (
            LAPTOP,
            {"output": FolderInfo("models", GIB, "permission denied")},
            *("output", "wrong", "'models' cannot be written: permission denied", "--output-dir"),
        ),
        (
            LAPTOP,
            {"output": FolderInfo("models", 2**20, None, True, True)},
            *("output", "wrong", "1 MiB free on its disk, too little", "dialogkit runs prune"),
        ),
        (
            LAPTOP,
            {"output": FolderInfo("models", 2 * GIB, None, False, False)},
            *("output", "could be better", "no hard links", "dialogkit runs prune"),
        ),
        (
            LAPTOP,
            {"cache": FolderInfo("~/.cache", GIB, "read-only file system")},
            *("cache", "could be better", "read-only", "export DIALOGKIT_CACHE="),
        ),
        (LAPTOP, {}, "wandb", "ok", "no key; runs are logged offline", "wandb login"),
        (SERVER, {}, "wandb", "ok", "online if https://api.wandb.ai answers", "dialogkit doctor --network"),
        (SERVER, {"server_answers": False}, "wandb", "ok", "logged offline: https://api.wandb.ai does not", None),
        (
            SERVER,
            {"environment": {"WANDB_MODE": "disabled"}},
            *("wandb", "ok", "not logged, as WANDB_MODE is disabled", None),
        ),
        (SERVER, {"open_dotenv": True}, "wandb", "could be better", "other users can read it", "chmod 600 .env"),
        (
            LAPTOP,
            {"environment": {"HF_HUB_OFFLINE": "1"}},
            *("hub", "could be better", "forbids downloads", "unset HF_HUB_OFFLINE"),
        ),
        (LAPTOP, {"hub_answers": False}, "hub", "could be better", "the hub does not answer", None),
        (SERVER, {}, "devices", "ok", "8 GPUs, which train together over nccl", "train custom-tiny --devices 8"),
        (LAPTOP, {}, "devices", "ok", "the CPU; several machines would train together over gloo", None),
        (
            SERVER,
            {"environment": {"CUDA_VISIBLE_DEVICES": "0,1"}},
            *("devices", "could be better", "shows 2 of 8 GPUs", "unset CUDA_VISIBLE_DEVICES"),
        ),
        (SERVER, {"environment": {**TASK, "OMP_NUM_THREADS": "1"}}, "cluster", "ok", "as task 2 of 16", None),
        (SERVER, {"environment": RANK}, "cluster", "ok", "as rank 3 of 16; training joins", None),
        (
            SERVER,
            {"environment": {"RANK": "3", "WORLD_SIZE": "16"}},
            *("cluster", "could be better", "training would refuse", None),
        ),
        (
            SERVER,
            {"environment": TASK},
            *("cluster", "ok", "Slurm job 7, started by srun as task 2 of 16", None),
        ),
        (
            SERVER,
            {"environment": {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}},
            *(
                "cluster",
                "could be better",
                "4 nodes, of which this shell uses one",
                "launch slurm --nodes 4 -- train custom-tiny",
            ),
        ),
        (
            SERVER,
            {"environment": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}},
            "cluster",
            "ok",
            "a Kubernetes pod",
            None,
        ),
        (
            SERVER,
            {"commands": frozenset(["sbatch"])},
            "cluster",
            "ok",
            "Slurm is available",
            "dialogkit launch slurm -- train custom-tiny",
        ),
    ],
)
def test_what_is_said_of_other_machines(
    machine: MachineInfo, changes: dict[str, Any], area: str, verdict: str, text: str, command: str | None
) -> None:
    finding = said(replace(machine, **changes), area)
    assert finding.verdict == verdict
    assert text in finding.text
    shown = render(finding.command)
    assert (shown is None) if command is None else (command in (shown or ""))
    if (shown or "").startswith("dialogkit "):
        assert parsed(str(shown))
    assert examine(replace(machine, **changes)).verdict == verdict


def test_what_the_driver_reports_is_read() -> None:
    listed = "NVIDIA H100 80GB HBM3, 81559, 80000, 9.0\nTesla T4, 15360, 15000, 7.5\nOdd, [N/A], 1, 2\n"
    assert parse_gpus(listed) == (
        Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 80000 * 2**20, (9, 0)),
        Gpu("Tesla T4", 15360 * 2**20, 15000 * 2**20, (7, 5)),
    )
    header = "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15      CUDA Version: 12.8     |\n"
    assert parse_driver(header) == ("570.86.15", "12.8")
    assert parse_driver("NVIDIA-SMI has failed") == (None, None)
    assert parse_gpus("No devices were found") == ()


def test_a_driver_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = tmp_path / "bin/nvidia-smi"
    stuck.parent.mkdir()
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stuck.parent}:/usr/bin:/bin")
    monkeypatch.setattr(reading, "SMI_TIMEOUT_S", 0.1)
    began = time.monotonic()
    facts = read_machine(Path("models"))
    assert time.monotonic() - began < 30
    assert (facts.gpus, facts.driver, "nvidia-smi" in facts.commands) == ((), None, True)


def test_the_machine_is_looked_at_without_network_secrets_or_traces(
    dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("nobody is to be asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, f"secret-{name}")
    Path(".env").write_text("WANDB_API_KEY=secret-in-a-file\n")
    Path(".env").chmod(0o644)
    reported, shown = dialogkit("doctor", "--json"), dialogkit("doctor")
    assert (reported.code, reported.err, shown.err) == (0, "", "")
    result = DoctorResult.model_validate(reported.json["data"])
    areas = {finding.area for finding in result.findings}
    assert {"python", "packages", "torch", "cpu", "memory", "output", "wandb", "hub", "devices"} <= areas
    assert "chmod 600 .env" in [finding.command for finding in result.findings]
    assert "secret" not in reported.out + shown.out
    assert [path.name for path in Path().iterdir()] == [".env"]
    for finding in result.findings:
        # The first word that is no figure: what is free has changed in between.
        assert next(word for word in finding.text.split() if not word[0].isdigit()) in shown.out


def test_the_torch_that_is_installed_is_read_without_importing_it() -> None:
    facts = read_machine(Path("models"))
    assert facts.torch == version("torch")
    assert (facts.torch_cuda is None) == facts.torch.endswith("+cpu") or facts.torch_cuda


@pytest.mark.parametrize("name", ["a-file", "a-file/models", "/proc/models", "a" * 300])
def test_a_folder_that_cannot_be_written_is_wrong_and_no_traceback(name: str, dialogkit: Run) -> None:
    Path("a-file").touch()
    done = dialogkit("doctor", "--output-dir", name)
    assert (done.code, done.err) == (1, "")
    assert "cannot be written" in done.out


def test_whatever_a_strange_machine_does_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("strange")

    questions = ("processor_name", "processor_flags", "find_credentials", "cache_dir", "find_spec")
    for name in (*questions, "machine_memory", "container_memory", "usable_cores"):
        monkeypatch.setattr(reading, name, fail)
    monkeypatch.setattr("importlib.metadata.requires", fail)
    monkeypatch.setattr("subprocess.run", fail)
    monkeypatch.setenv("HF_HUB_CACHE", "~nobody-of-this-name/cache")  # whose home is asked in vain
    facts = read_machine(Path("models"))
    assert (facts.packages, facts.torch, facts.memory.total, facts.cores) == ((), None, None, 1)
    assert examine(facts).verdict == "could be better"
