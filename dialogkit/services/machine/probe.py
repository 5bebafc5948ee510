"""What is there on this machine, read quickly: without torch, without the network, and never with an error."""

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

from dialogkit import __version__
from dialogkit.config.paths import cache_dir
from dialogkit.system.cpu import processor_flags, processor_name, usable_cores
from dialogkit.system.credentials import find_credentials, read_dotenv, server_problem
from dialogkit.system.memory import Memory, container_memory, machine_memory
from dialogkit.system.network import hub_forbidden, hub_url, problems

SMI_TIMEOUT_S = 1.5
"""How long the GPU's driver may take to answer."""

ENVIRONMENT = (
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WANDB_MODE"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"),
    *("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"),
    *("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "KUBERNETES_SERVICE_HOST",
)
"""The variables that matter. No other is read, so that none can be printed."""

COMMANDS = ("nvidia-smi", "sbatch", "kubectl")

T = TypeVar("T")
_Torch = tuple[str | None, str | None, str | None]


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver tells of it."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Package:
    """A package that dialogkit needs, always or for an extra."""

    name: str
    supported: str
    """Versions, as pip writes them; empty: any."""
    installed: str | None
    fits: bool
    extra: str | None = None


@dataclass(frozen=True)
class Place:
    """A folder that is or would be written to."""

    path: str
    free_bytes: int | None
    problem: str | None = None
    """Why it cannot be written."""
    hard_links: bool | None = None
    locks: bool | None = None


@dataclass(frozen=True)
class Facts:
    """All that the checks look at. None stands for what the system does not tell."""

    system: str
    python: tuple[int, int, int]
    dialogkit: str
    packages: tuple[Package, ...]
    torch: str | None
    """Version of torch, with what it is built for, such as 2.13.0+cpu."""
    torch_cuda: str | None
    """CUDA version that torch is built for."""
    torch_hip: str | None
    gpus: tuple[Gpu, ...]
    driver: str | None
    driver_cuda: str | None
    """Newest CUDA version that the driver knows."""
    processor: str
    flags: frozenset[str]
    cores: int
    """Cores that this process may use."""
    environment: Mapping[str, str]
    memory_bytes: int | None
    memory_free_bytes: int | None
    container_bytes: int | None
    """Memory that the container or control group may hold in all; None: no limit."""
    container_free_bytes: int | None
    shm_bytes: int | None
    output: Place
    cache: Place
    hub_cache: Place
    hub_token: bool
    wandb_key: bool
    wandb_server: str
    open_dotenv: bool
    """Whether others can read a `.env` that holds the W&B key."""
    commands: frozenset[str]
    server_answers: bool | None = None
    """Whether W&B's server answers; None: not asked."""
    hub_answers: bool | None = None
    wandb_key_from: str | None = None
    wandb_server_from: str = "default"
    wandb_problem: str | None = None
    """Why what the environment says of W&B cannot be used."""
    wandb_notes: tuple[str, ...] = ()
    """What was read of W&B and is not used."""
    hub_token_from: str | None = None
    hub_problem: str | None = None
    """Why HF_ENDPOINT cannot be used."""


def gather(output: Path, *, network: bool = False) -> Facts:
    """Return the facts of this machine; what is not known is empty. Only with `network` is anybody asked."""
    with ThreadPoolExecutor(4) as pool:  # the driver answers slowly
        told = pool.submit(_guarded, _driver, (None, None))
        listed = pool.submit(_guarded, _gpus, ())
        credentials = _guarded(lambda: find_credentials(Path.cwd()), None)
        server = credentials.server if credentials else ""
        unknown = Memory(None, None)
        none: _Torch = (None, None, None)
        torch, torch_cuda, torch_hip = _guarded(_torch, none)
        total, free = _guarded(machine_memory, unknown)
        hub_token = _guarded(_hub_token, None)
        limit, left = _guarded(container_memory, unknown)
        unasked: tuple[bool | None, bool | None] = (None, None)
        # By this thread, whose wait Ctrl-C ends.
        server_answers, hub_answers = _guarded(lambda: _ask(server), unasked) if network else unasked
        return Facts(
            system=platform.system(),
            python=sys.version_info[:3],
            dialogkit=__version__,
            packages=_guarded(_packages, ()),
            torch=torch,
            torch_cuda=torch_cuda,
            torch_hip=torch_hip,
            processor=_guarded(processor_name, ""),
            flags=_guarded(processor_flags, frozenset()),
            cores=_guarded(usable_cores, 1),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            memory_bytes=total,
            memory_free_bytes=free,
            container_bytes=limit,
            container_free_bytes=left,
            shm_bytes=_guarded(lambda: shutil.disk_usage("/dev/shm").total, None),
            output=place(output),
            cache=place(_guarded(cache_dir, Path())),
            hub_cache=place(_guarded(_hub_cache, Path())),
            hub_token=hub_token is not None,
            hub_token_from=hub_token,
            hub_problem=server_problem(endpoint) if (endpoint := os.environ.get("HF_ENDPOINT")) else None,
            wandb_key_from=credentials.key_from if credentials else None,
            wandb_server_from=credentials.server_from if credentials else "default",
            wandb_problem=credentials.problem if credentials else None,
            wandb_notes=credentials.notes if credentials else (),
            wandb_key=bool(credentials and credentials.key),
            wandb_server=server,
            open_dotenv=_guarded(_open_dotenv, False),
            commands=frozenset(name for name in COMMANDS if shutil.which(name)),
            driver=told.result()[0],
            driver_cuda=told.result()[1],
            gpus=listed.result(),
            server_answers=server_answers,
            hub_answers=hub_answers,
        )


def _ask(server: str) -> tuple[bool, bool]:
    """Return whether W&B's server and the hub answer, both asked at the same time."""
    if hub_forbidden():
        return problems([server]) == [None], False
    wandb, hub = problems([server, hub_url()])
    return wandb is None, hub is None


def _guarded(ask: Callable[[], T], otherwise: T) -> T:
    """Return what a question is answered with. Whatever a strange machine makes of it, it is no traceback."""
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
        with suppress(metadata.PackageNotFoundError):
            installed = metadata.version(requirement.name)
            fits = requirement.specifier.contains(installed, prereleases=True)
            supported = str(requirement.specifier)
            found.append(Package(requirement.name, supported, installed, fits, extra and extra[1]))
            continue
        found.append(Package(requirement.name, str(requirement.specifier), None, False, extra and extra[1]))
    return tuple(found)


def _torch() -> _Torch:
    """Return torch's version, CUDA and HIP, from its own file: importing it takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None, None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= *'([^']*)'", text, re.MULTILINE))
    return found.get("__version__"), found.get("cuda"), found.get("hip")


def _smi(*words: str) -> str:
    done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=SMI_TIMEOUT_S)
    return done.stdout if done.returncode == 0 else ""


def _gpus() -> tuple[Gpu, ...]:
    fields = "name,memory.total,memory.free,compute_cap"
    return parse_gpus(_smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits"))


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs of a driver's list: name, memory and free memory in MiB, compute capability."""
    found = []
    for line in text.splitlines():
        name, *figures = (part.strip() for part in line.rsplit(",", 3))
        if len(figures) == 3 and figures[0].isdigit() and figures[1].isdigit():
            capability = re.fullmatch(r"(\d+)\.(\d+)", figures[2])
            parsed = (int(capability[1]), int(capability[2])) if capability else None
            found.append(Gpu(name, int(figures[0]) * 2**20, int(figures[1]) * 2**20, parsed))
    return tuple(found)


def _driver() -> tuple[str | None, str | None]:
    return parse_driver(_smi())


def parse_driver(text: str) -> tuple[str | None, str | None]:
    """Return the versions of the driver and of the newest CUDA that it knows."""
    driver = re.search(r"Driver Version: *([\d.]+)", text)
    cuda = re.search(r"CUDA[^:|]*Version: *([\d.]+)", text)
    return driver and driver[1], cuda and cuda[1]


def place(path: Path) -> Place:
    """Return what is to be known of a folder. It is tried out with two empty files, and nothing of it is left."""
    shown = str(path)
    if (home := os.path.expanduser("~")) not in ("/", "~") and path.is_relative_to(home):
        shown = str(Path("~", path.relative_to(home)))  # who the user is, is nobody's business
    try:
        there = path.expanduser().absolute()
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Place(shown, None, (error.strerror or str(error)).lower())
    if not there.is_dir():
        return Place(shown, free, f"{str(there)!r} is no folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".dialogkit-", dir=there) as beside:
            file = Path(beside, "a")
            file.touch()
            return Place(shown, free, None, _works(lambda: os.link(file, f"{file}b")), _works(_lock(file)))
    except OSError as error:
        return Place(shown, free, (error.strerror or str(error)).lower())


def _lock(path: Path) -> Callable[[], None]:
    def lock() -> None:
        import fcntl

        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return lock


def _works(attempt: Callable[[], None]) -> bool | None:
    try:
        attempt()
    except OSError:
        return False
    except ImportError:  # Windows has no such locks
        return None
    return True


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _hub_token() -> str | None:
    """Return where a token of the hub comes from; None: there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return name
    named = os.environ.get("HF_TOKEN_PATH")
    file = Path(named or _hub_cache().parent / "token").expanduser()
    return ("HF_TOKEN_PATH" if named else "hf auth login") if file.is_file() and file.stat().st_size > 0 else None


def _open_dotenv() -> bool:
    file = Path.cwd() / ".env"
    return bool(file.stat().st_mode & 0o077) and "WANDB_API_KEY" in read_dotenv(file)
