"""Check what this machine offers for training. Every check is a pure function of `MachineInfo`."""

import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from dialogkit import __version__
from dialogkit.config.base import Result
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.hints import Call, Hint, Shell
from dialogkit.services.machine.probe import FolderInfo, Gpu, MachineInfo, read_machine
from dialogkit.services.machine.torch_builds import BUILDS, build_for, has_kernels
from dialogkit.system.network import is_on
from dialogkit.system.precision import of_cpu, of_gpu
from dialogkit.text import byte_size, counted

Verdict = Literal["ok", "could be better", "wrong"]
ORDER: tuple[Verdict, ...] = ("ok", "could be better", "wrong")

GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK, NO_DISK, LITTLE_SHM = 3 * GIB, 5 * GIB, GIB // 5, GIB
"""Bytes below which a check reports something.

custom-tiny trains within 3 GiB; its run takes some 200 MB, and gpt2-small's about 4 GB; NCCL and workers share
batches in `/dev/shm`, which has 64 MB in a container by default.
"""


class Finding(Result):
    """The result of one check."""

    area: str
    verdict: Verdict
    text: str
    command: Hint | None = None
    """What to do about it; the command line renders it as the command to type."""


class DoctorResult(Result):
    """The results of all checks."""

    verdict: Verdict
    """The worst of all; `wrong` means that training cannot work."""
    findings: list[Finding]


def _finding(verdict: Verdict, area: str, text: str, command: Hint | None = None) -> Finding:
    return Finding(area=area, verdict=verdict, text=text, command=command)


_ok, _better, _wrong = (partial(_finding, verdict) for verdict in ORDER)


def doctor(output: str | Path = DEFAULT_OUTPUT, *, network: bool = False) -> DoctorResult:
    """Check this machine.

    Args:
        output: the folder for models and runs.
        network: ask the hub and W&B's server whether they answer; otherwise nothing is sent.
    """
    return examine(read_machine(Path(output), network=network))


def examine(machine: MachineInfo) -> DoctorResult:
    """Run all checks on what is known about a machine."""
    findings = [finding for check in CHECKS for finding in check(machine)]
    worst = max((finding.verdict for finding in findings), key=ORDER.index)
    return DoctorResult(verdict=worst, findings=findings)


def _python(machine: MachineInfo) -> Iterator[Finding]:
    version = ".".join(map(str, machine.python))
    if machine.python < (3, 11):
        yield _wrong("python", f"{version}, and dialogkit needs 3.11 or newer")
    else:
        yield _ok("python", f"{version}, dialogkit {__version__}")


def _packages(machine: MachineInfo) -> Iterator[Finding]:
    needed = [package for package in machine.packages if package.extra is None]
    if not needed:
        text = "dialogkit is used from a folder without being installed, so its requirements are unknown"
        yield _better("packages", text, Shell("pip install -e ."))
        return
    missing = [package for package in needed if package.installed is None]
    unfit = [package for package in needed if package.installed is not None and not package.fits]
    wanted = [shlex.quote(f"{package.name}{package.supported}") for package in (*missing, *unfit)]
    command = Shell(f"pip install {' '.join(wanted)}") if wanted else None
    if missing:
        names = ", ".join(package.name for package in missing)
        yield _wrong("packages", f"not installed: {names}", command)
    if unfit:
        shown = ", ".join(f"{package.name} {package.installed} (not {package.supported})" for package in unfit)
        yield _better("packages", f"outside the supported versions: {shown}", None if missing else command)
    if not wanted:
        shown = ", ".join(f"{p.name} {p.installed}" for p in needed if p.name in ("transformers", "accelerate"))
        yield _ok("packages", f"all {len(needed)} in supported versions: {shown}")


def _extras(machine: MachineInfo) -> Iterator[Finding]:
    extras = {package.extra for package in machine.packages if package.extra}
    lacking = {p.extra for p in machine.packages if p.extra and not (p.installed and p.fits)}
    if extras:
        text = f"installed: {', '.join(sorted(extras - lacking)) or 'none'}"
        command = Shell(f"pip install 'dialogkit[{','.join(sorted(lacking))}]'") if lacking else None
        more = f"; there are also {', '.join(sorted(lacking))}" if lacking else ""
        yield _ok("extras", text + more, command)


def _torch(machine: MachineInfo) -> Iterator[Finding]:
    """Check that torch is built for the GPUs of this machine."""
    if machine.torch is None:
        return  # reported with the packages
    cuda, hip = machine.torch_cuda, machine.torch_hip
    text = f"{machine.torch}, built for {f'CUDA {cuda}' if cuda else f'ROCm {hip}' if hip else 'the CPU'}"
    without = [gpu for gpu in machine.gpus if cuda and not _runs_on(gpu, cuda)]
    if machine.gpus and not cuda:
        text += f", so the {machine.gpus[0].name} is not used"
        yield _better("torch", *_with_build(machine, text))
    elif machine.gpus and cuda and machine.driver_cuda and _release(machine.driver_cuda)[0] < _release(cuda)[0]:
        text += f", but the driver {machine.driver} only supports CUDA up to {machine.driver_cuda}: no GPU is used"
        yield _better("torch", *_with_build(machine, text))
    elif without:
        major, minor = without[0].capability or (0, 0)
        text += f", without kernels for the {without[0].name} (compute capability {major}.{minor}): it is not used"
        yield _better("torch", *_with_build(machine, text))
    elif machine.amd_gpus and not (cuda or hip):
        text += f", so the {machine.amd_gpus[0].name} is not used; builds for ROCm: pytorch.org/get-started"
        yield _better("torch", text)
    else:
        yield _ok("torch", text)


def _with_build(machine: MachineInfo, problem: str) -> tuple[str, Shell | None]:
    """Return a problem of torch's build with the command that installs the right one, where there is one."""
    driver = _release(machine.driver_cuda) if machine.driver_cuda else None
    build = build_for([gpu.capability for gpu in machine.gpus if gpu.capability], driver)
    if build is None:
        old = driver is not None and driver[0] < BUILDS[-1].cuda[0]
        return f"{problem}; no build of torch supports {'so old a driver' if old else 'it'}", None
    supported = next((package.supported for package in machine.packages if package.name == "torch"), "")
    command = f"pip install --force-reinstall {shlex.quote('torch' + supported)}"
    return problem, Shell(f"{command} --index-url https://download.pytorch.org/whl/{build.wheels}")


def _runs_on(gpu: Gpu, cuda: str) -> bool:
    return gpu.capability is None or has_kernels(_release(cuda), gpu.capability)


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = (*version.split("."), "0")
    return int(major), int(minor)


def _gpus(machine: MachineInfo) -> Iterator[Finding]:
    for gpu in (*machine.gpus, *machine.amd_gpus):
        capability = gpu.capability
        detail = (
            f", compute capability {capability[0]}.{capability[1]}: {_IN_WORDS[of_gpu(capability)]}"
            if capability
            else ""
        )
        text = f"{gpu.name}, {_size(gpu.free_bytes)} of {_size(gpu.memory_bytes)} free{detail}"
        if gpu.free_bytes < gpu.memory_bytes / 2:
            yield _better("gpu", f"{text}; another process holds most of its memory", Shell("nvidia-smi"))
        else:
            yield _ok("gpu", text)
    if machine.gpus or machine.amd_gpus:
        return
    if "nvidia-smi" in machine.commands:
        text = "nvidia-smi is installed but reports no GPU, so training uses the CPU"
        yield _better("gpu", text, Shell("nvidia-smi"))
    elif machine.system == "Darwin" and machine.processor.startswith("Apple"):
        yield _ok("gpu", "Apple MPS, in float32; used only with runtime.device=mps, as nobody has tried it yet")
    else:
        yield _ok("gpu", "none, so training uses the CPU")


_IN_WORDS = {"bf16": "bf16", "fp16": "no bf16, so fp16", "fp32": "no bf16, so float32"}


def _cpu(machine: MachineInfo) -> Iterator[Finding]:
    precision, flag = of_cpu(machine.flags)
    how = f"{flag}, so matrix products are in {precision}" if flag else _IN_WORDS[precision]
    yield _ok("cpu", f"{machine.processor or 'unknown'}, {counted(machine.cores, 'core')} to use; {how}")


def _threads(machine: MachineInfo) -> Iterator[Finding]:
    value = machine.environment.get("OMP_NUM_THREADS")
    if value is None or _joined(machine):
        return
    found = f"OMP_NUM_THREADS is {value!r}, with {counted(machine.cores, 'core')} to use"
    if not value.isdigit() or value == "0":
        text = f"OMP_NUM_THREADS is {value!r}, which is not a number of threads"
    elif int(value) > machine.cores:
        text = f"{found}: threads wait for each other"
    elif int(value) < machine.cores and not machine.gpus:
        text = f"{found}: some cores stay idle"
    else:
        yield _ok("threads", f"OMP_NUM_THREADS is {value}")
        return
    yield _better("threads", text, Shell("unset OMP_NUM_THREADS"))


def _memory(machine: MachineInfo) -> Iterator[Finding]:
    memory, container = machine.memory, machine.container
    if memory.total is None:
        return
    free = min((free for free in (memory.free, container.free) if free is not None), default=memory.total)
    text = f"{_size(free)} free of {_size(memory.total)}"
    if container.total is not None and container.total < memory.total:
        text += f", and this container or job may use {_size(container.total)}"
    if free < LITTLE_MEMORY:
        text += "; batches can be split automatically"
        yield _better("memory", text, Call("train", "custom-nano", preset="test", fit_batch=True))
    else:
        yield _ok("memory", text)


def _output(machine: MachineInfo) -> Iterator[Finding]:
    folder = machine.output
    if folder.problem:
        problem = f"{folder.path!r} cannot be written: {folder.problem}"
        yield _wrong("output", problem, Call("train", output_dir="my-models"))
        return
    text = f"{folder.path!r}, {_size(folder.free_bytes)} free on its disk"
    if folder.free_bytes is not None and folder.free_bytes < NO_DISK:
        yield _wrong("output", f"{text}, too little for any run", Call("runs prune"))
        return
    small = folder.free_bytes is not None and folder.free_bytes < LITTLE_DISK
    lacks = ["a gpt2-small run needs 4 GB"] if small else []
    if folder.hard_links is False:
        lacks.append("it has no hard links, so models are copied and take twice the space")
    if folder.locks is False:
        lacks.append("it has no locks, so two processes could train one run")
    if lacks:
        command = Call("runs prune") if small else Call("train", output_dir="FOLDER")
        yield _better("output", "; ".join([text, *lacks]), command)
    else:
        yield _ok("output", text)


def _cache(machine: MachineInfo) -> Iterator[Finding]:
    yield _written(machine.cache, "cache", "prepared data", Shell("export DIALOGKIT_CACHE=FOLDER"))


def _written(folder: FolderInfo, area: str, what: str, command: Shell) -> Finding:
    if folder.problem:
        return _better(area, f"{what}: {folder.path!r} cannot be written: {folder.problem}", command)
    return _ok(area, f"{what}: {folder.path!r}, {_size(folder.free_bytes)} free")


def _wandb(machine: MachineInfo) -> Iterator[Finding]:
    wandb = machine.wandb
    key = f"a key is set (not shown, from {wandb.key_from})" if wandb.key else "no key"
    server = wandb.server if wandb.server_from == "default" else f"{wandb.server} (from {wandb.server_from})"
    asked = machine.environment.get("WANDB_MODE", "")
    command: Hint | None = None
    if asked in ("offline", "disabled"):
        mode = f"runs are {'not logged' if asked == 'disabled' else 'logged offline'}, as WANDB_MODE is {asked}"
    elif not wandb.key:
        mode, command = "runs are logged offline", Shell("wandb login")
    elif machine.server_answers is None:
        mode = f"runs are logged online if {server} answers, offline otherwise"
        command = Call("doctor", network=True)
    else:
        answer = "answers" if machine.server_answers else "does not answer"
        mode = f"runs are logged {'online' if machine.server_answers else 'offline'}: {server} {answer}"
    yield _ok("wandb", f"{key}; {mode}", command)
    for note in wandb.notes:
        yield _better("wandb", note, Shell("unset WANDB_BASE_URL") if note == wandb.problem else None)
    if machine.open_dotenv:
        yield _better("wandb", ".env holds the key, and other users can read it", Shell("chmod 600 .env"))


def _hub(machine: MachineInfo) -> Iterator[Finding]:
    token = "no token, which public models do not need"
    if machine.hub_token_from:
        token = f"a token is set (not shown, from {machine.hub_token_from})"
    if machine.hub_problem:
        yield _better("hub", f"HF_ENDPOINT is {machine.hub_problem}", Shell("unset HF_ENDPOINT"))
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    offline = [name for name in names if is_on(machine.environment.get(name, ""))]
    if offline:
        text = f"{token}; {offline[0]} forbids downloads, so only cached files are found"
        yield _better("hub", text, Shell(f"unset {' '.join(offline)}"))
    elif machine.hub_answers is None:
        yield _ok("hub", f"{token}; the hub was not asked", Call("doctor", network=True))
    elif machine.hub_answers:
        yield _ok("hub", f"{token}; the hub answers")
    else:
        yield _better("hub", f"{token}; the hub does not answer")
    yield _written(machine.hub_cache, "hub", "models and datasets", Shell("export HF_HOME=FOLDER"))


def _devices(machine: MachineInfo) -> Iterator[Finding]:
    """Report how many processes can train together on this machine."""
    hidden = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if machine.gpus and hidden is not None:
        shown = len([part for part in hidden.split(",") if part.strip() not in ("", "-1")])
        if shown < len(machine.gpus):
            text = f"CUDA_VISIBLE_DEVICES={hidden} shows {shown} of {counted(len(machine.gpus), 'GPU')}"
            yield _better("devices", text, Shell("unset CUDA_VISIBLE_DEVICES"))
            return
    usable = len(machine.gpus) if machine.torch_cuda or machine.torch_hip else 0
    backend = "nccl" if usable else "gloo"
    if usable > 1:
        text = f"{usable} GPUs, which train together over {backend}"
        yield _ok("devices", text, Call("train", "custom-tiny", devices=usable))
    else:
        what = "one GPU" if usable else "the CPU"
        yield _ok("devices", f"{what}; several machines would train together over {backend}")


def _joined(machine: MachineInfo) -> bool:
    """Return whether a launcher started this process as one of several ranks."""
    around = machine.environment
    by_torch = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= around.keys()
    return by_torch or ("SLURM_PROCID" in around and around.get("SLURM_STEP_NUM_TASKS", "1") != "1")


def _cluster(machine: MachineInfo) -> Iterator[Finding]:
    """Report what started this process, and how training runs there."""
    around = machine.environment
    if {"RANK", "WORLD_SIZE"} <= around.keys():
        what = "torchrun" if "TORCHELASTIC_RUN_ID" in around else "a launcher"
        text = f"started by {what} as rank {around['RANK']} of {around['WORLD_SIZE']}"
        if _joined(machine):
            yield _ok("cluster", f"{text}; training joins the other ranks")
        else:
            text += ", but MASTER_ADDR does not say where the other ranks are, so training would refuse to start"
            yield _better("cluster", text)
    elif "SLURM_JOB_ID" in around:
        job, nodes = around["SLURM_JOB_ID"], around.get("SLURM_JOB_NUM_NODES", "1")
        if _joined(machine):
            task = f"task {around['SLURM_PROCID']} of {around['SLURM_STEP_NUM_TASKS']}"
            yield _ok("cluster", f"Slurm job {job}, started by srun as {task}; training joins the other ranks")
        elif nodes != "1":
            text = f"Slurm job {job} on {nodes} nodes, of which this shell uses one"
            yield _better("cluster", text, Call("launch slurm", "train", "custom-tiny", nodes=nodes))
        else:
            yield _ok("cluster", f"Slurm job {job} on one node")
    elif "KUBERNETES_SERVICE_HOST" in around:
        yield _ok("cluster", "a Kubernetes pod, in which training runs as it is")
    elif "sbatch" in machine.commands:
        text = "Slurm is available; to write a job file"
        yield _ok("cluster", text, Call("launch slurm", "train", "custom-tiny", gpus=1))
    elif "kubectl" in machine.commands:
        command = Call("launch kubernetes", "train", "custom-tiny", gpus=1, image="IMAGE", claim="CLAIM")
        yield _ok("cluster", "kubectl is available; to write a job file", command)


def _shm(machine: MachineInfo) -> Iterator[Finding]:
    if machine.shm_bytes is None:
        return
    text = f"/dev/shm has {_size(machine.shm_bytes)}"
    if machine.shm_bytes < LITTLE_SHM and len(machine.gpus) > 1:
        text += ", too little for several GPUs or data.workers"
        yield _better("shm", text, Shell("docker run --shm-size=8g ..."))
    else:
        yield _ok("shm", text)


def _size(count: int | None) -> str:
    return "?" if count is None else byte_size(count)


CHECKS: tuple[Callable[[MachineInfo], Iterator[Finding]], ...] = (
    *(_python, _packages, _extras, _torch, _gpus, _cpu, _threads, _memory, _shm),
    *(_output, _cache, _wandb, _hub, _devices, _cluster),
)
