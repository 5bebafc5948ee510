"""Read what this machine has: quickly, without importing torch, without the network, and never with an error."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from dialogkit.config.paths import cache_dir, existing_part
from dialogkit.errors import os_reason
from dialogkit.system.cpu import processor_flags, processor_name, usable_cores
from dialogkit.system.credentials import Credentials, find_credentials, is_open_dotenv, server_problem
from dialogkit.system.memory import Memory, container_memory, machine_memory
from dialogkit.system.network import hub_forbidden, hub_url, problems

SMI_TIMEOUT_S = 1.5
"""Time limit for the GPU driver to answer."""

ENVIRONMENT = (
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WANDB_MODE"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"),
    *("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"),
    *("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "KUBERNETES_SERVICE_HOST",
)
"""The variables that matter. No other is read, so no other can be printed."""

INTEGRATED = 6 * 2**30
"""Bytes of own memory below which an AMD GPU is taken for a part of the processor, which ROCm leaves out."""

COMMANDS = ("nvidia-smi", "sbatch", "kubectl")
_GPU_QUERY = ("--query-gpu=name,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits")

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver reports it."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Package:
    """A package that dialogkit needs, for itself or for an extra."""

    name: str
    supported: str
    """Version specifier; empty: any version."""
    installed: str | None
    fits: bool
    extra: str | None = None


@dataclass(frozen=True)
class FolderInfo:
    """A folder to be written to."""

    path: str
    free_bytes: int | None
    problem: str | None = None
    """Why it cannot be written."""
    hard_links: bool | None = None
    locks: bool | None = None


@dataclass(frozen=True)
class MachineInfo:
    """Everything that the checks use; None means unknown."""

    system: str
    python: tuple[int, int, int]
    packages: tuple[Package, ...]
    torch: str | None
    """Version of torch with its build, such as 2.13.0+cpu."""
    torch_cuda: str | None
    """CUDA version that torch is built for."""
    torch_hip: str | None
    gpus: tuple[Gpu, ...]
    """Of NVIDIA."""
    driver: str | None
    driver_cuda: str | None
    """Newest CUDA version that the driver supports."""
    processor: str
    flags: frozenset[str]
    cores: int
    """Cores that this process may use."""
    environment: Mapping[str, str]
    memory: Memory
    container: Memory
    """What the container or control group may use; None for no limit."""
    shm_bytes: int | None
    output: FolderInfo
    cache: FolderInfo
    hub_cache: FolderInfo
    wandb: Credentials
    open_dotenv: bool
    """Whether other users can read a `.env` that holds the W&B key."""
    commands: frozenset[str]
    amd_gpus: tuple[Gpu, ...] = ()
    server_answers: bool | None = None
    """Whether W&B's server answers; None: not asked."""
    hub_answers: bool | None = None
    hub_token_from: str | None = None
    hub_problem: str | None = None
    """Why HF_ENDPOINT cannot be used."""


def read_machine(output: Path, *, network: bool = False) -> MachineInfo:
    """Return what is known about this machine. Servers are asked only with `network`."""
    with ThreadPoolExecutor(2) as pool:  # the driver is slow to answer
        driver = pool.submit(_guarded, lambda: parse_driver(_smi()), (None, None))
        gpus = pool.submit(_guarded, lambda: parse_gpus(_smi(*_GPU_QUERY)), ())
        wandb = _guarded(lambda: find_credentials(Path.cwd()), Credentials(None, ""))
        torch = _guarded(_torch, dict[str, str]())
        unasked: tuple[bool | None, bool | None] = (None, None)
        # In this thread, where Ctrl-C ends the wait.
        server_answers, hub_answers = _guarded(lambda: _ask(wandb.server), unasked) if network else unasked
        return MachineInfo(
            system=platform.system(),
            python=sys.version_info[:3],
            packages=_guarded(_packages, ()),
            torch=torch.get("__version__"),
            torch_cuda=torch.get("cuda"),
            torch_hip=torch.get("hip"),
            processor=_guarded(processor_name, ""),
            flags=_guarded(processor_flags, frozenset()),
            cores=_guarded(usable_cores, 1),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            memory=_guarded(machine_memory, Memory(None, None)),
            container=_guarded(container_memory, Memory(None, None)),
            shm_bytes=_guarded(lambda: shutil.disk_usage("/dev/shm").total, None),
            output=read_folder(output),
            cache=read_folder(_guarded(cache_dir, Path())),
            hub_cache=read_folder(_guarded(_hub_cache, Path())),
            hub_token_from=_guarded(_hub_token, None),
            hub_problem=server_problem(endpoint) if (endpoint := os.environ.get("HF_ENDPOINT")) else None,
            wandb=wandb,
            open_dotenv=_guarded(lambda: is_open_dotenv(Path.cwd() / ".env"), False),
            commands=frozenset(name for name in COMMANDS if shutil.which(name)),
            driver=driver.result()[0],
            driver_cuda=driver.result()[1],
            gpus=gpus.result(),
            amd_gpus=_guarded(amd_gpus, ()),
            server_answers=server_answers,
            hub_answers=hub_answers,
        )


def _ask(server: str) -> tuple[bool, bool]:
    """Return whether W&B's server and the hub answer; asks both at the same time."""
    if hub_forbidden():
        return problems([server]) == [None], False
    wandb, hub = problems([server, hub_url()])
    return wandb is None, hub is None


def _guarded(ask: Callable[[], T], otherwise: T) -> T:
    """Return what `ask` returns, or `otherwise` if it fails in any way on a strange machine."""
    try:
        return ask()
    except Exception:
        return otherwise


def _packages() -> tuple[Package, ...]:
    from packaging.requirements import Requirement

    found = []
    for line in metadata.requires("dialogkit") or ():
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        if extra and extra[1] == "dev":
            continue
        installed = None
        with suppress(metadata.PackageNotFoundError):
            installed = metadata.version(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        found.append(Package(requirement.name, str(requirement.specifier), installed, fits, extra and extra[1]))
    return tuple(found)


def _torch() -> dict[str, str]:
    """Return `__version__`, `cuda` and `hip` of torch from its version file: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= *'([^']*)'", text, re.MULTILINE))


def _smi(*words: str) -> str:
    done = subprocess.run(
        ["nvidia-smi", *words], capture_output=True, encoding="utf-8", errors="replace", timeout=SMI_TIMEOUT_S
    )
    return done.stdout if done.returncode == 0 else ""


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Parse nvidia-smi's list of GPUs: name, memory and free memory in MiB, compute capability."""
    found = []
    for line in text.splitlines():
        name, *figures = (part.strip() for part in line.rsplit(",", 3))
        if len(figures) == 3 and figures[0].isdigit() and figures[1].isdigit():
            capability = re.fullmatch(r"(\d+)\.(\d+)", figures[2])
            parsed = (int(capability[1]), int(capability[2])) if capability else None
            found.append(Gpu(name, int(figures[0]) * 2**20, int(figures[1]) * 2**20, parsed))
    return tuple(found)


def amd_gpus(drivers: Path = Path("/sys/class/drm"), compute: Path = Path("/dev/kfd")) -> tuple[Gpu, ...]:
    """Return the GPUs of AMD's Linux driver, without those in processors; none without ROCm's `compute`."""
    found = []
    for folder in sorted(drivers.glob("card[0-9]*/device")) if compute.exists() else ():
        with suppress(OSError, ValueError):  # of another maker
            total, used = (int((folder / f"mem_info_vram_{name}").read_text()) for name in ("total", "used"))
            product = folder / "product_name"
            name = product.read_text().strip() if product.exists() else ""
            if total >= INTEGRATED:
                found.append(Gpu(name or "AMD GPU", total, total - used, None))
    return tuple(found)


def parse_driver(text: str) -> tuple[str | None, str | None]:
    """Parse the driver's version and the newest CUDA version that it supports."""
    driver = re.search(r"Driver Version: *([\d.]+)", text)
    cuda = re.search(r"CUDA[^:|]*Version: *([\d.]+)", text)
    return driver and driver[1], cuda and cuda[1]


def read_folder(path: Path) -> FolderInfo:
    """Check a folder by writing two empty files, which are removed again."""
    shown = str(path)
    if (home := os.path.expanduser("~")) not in ("/", "~") and path.is_relative_to(home):
        shown = str(Path("~", path.relative_to(home)))  # hides the user's name
    free = None
    try:
        nearest = existing_part(path.expanduser())
        free = shutil.disk_usage(nearest).free
        if not nearest.is_dir():
            return FolderInfo(shown, free, f"{str(nearest)!r} is not a folder")
        with tempfile.TemporaryDirectory(prefix=".dialogkit-", dir=nearest) as scratch:
            file = Path(scratch, "a")
            file.touch()
            return FolderInfo(
                shown, free, None, _works(lambda: os.link(file, f"{file}b")), _works(lambda: _lock(file))
            )
    except OSError as error:
        return FolderInfo(shown, free, os_reason(error))


def _lock(path: Path) -> None:
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _works(attempt: Callable[[], None]) -> bool | None:
    try:
        attempt()
    except OSError:
        return False
    except ImportError:  # Windows has no fcntl
        return None
    return True


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _hub_token() -> str | None:
    """Return the source of a hub token; None without one."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return name
    named = os.environ.get("HF_TOKEN_PATH")
    file = Path(named or _hub_cache().parent / "token").expanduser()
    return ("HF_TOKEN_PATH" if named else "hf auth login") if file.is_file() and file.stat().st_size > 0 else None
