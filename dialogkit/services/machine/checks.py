"""Says what is there to train with, and how to use it. Every check is a function of facts alone."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.hints import Call, Hint, Shell
from dialogkit.services.machine.probe import Facts, Place, gather
from dialogkit.services.result import Result

Verdict = Literal["ok", "could be better", "wrong"]
ORDER: tuple[Verdict, ...] = ("ok", "could be better", "wrong")

GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK, NO_DISK, LITTLE_SHM = 3 * GIB, 5 * GIB, GIB // 5, GIB
"""Bytes below which something is told.

custom-tiny trains within 3 GiB; its run takes some 200 MB, and gpt2-small's about 4 GB; NCCL and workers share
batches in `/dev/shm`, of which a container has 64 MB if nobody says otherwise.
"""


class Finding(Result):
    """One thing that was looked at."""

    area: str
    verdict: Verdict
    text: str
    command: Hint | None = None
    """What to do about it; the command line puts the words to type in its place."""


class DoctorResult(Result):
    """Everything that was looked at."""

    verdict: Verdict
    """The worst of all. Wrong: training cannot work."""
    findings: list[Finding]


def doctor(output: str | Path = DEFAULT_OUTPUT, *, network: bool = False) -> DoctorResult:
    """Look at this machine.

    Args:
        output: the folder of models and runs that would be used.
        network: ask the hub and W&B's server whether they answer; otherwise nobody is asked anything.
    """
    return examine(gather(Path(output), network=network))


def examine(facts: Facts) -> DoctorResult:
    """Return what is to be said of a machine."""
    findings = [finding for check in CHECKS for finding in check(facts)]
    worst = max((finding.verdict for finding in findings), key=ORDER.index)
    return DoctorResult(verdict=worst, findings=findings)


def _python(facts: Facts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        yield Finding(area="python", verdict="wrong", text=f"{version}, and dialogkit needs 3.11 or newer")
    else:
        yield Finding(area="python", verdict="ok", text=f"{version}, dialogkit {facts.dialogkit}")


def _packages(facts: Facts) -> Iterator[Finding]:
    needed = [package for package in facts.packages if package.extra is None]
    if not needed:
        text = "dialogkit runs from a folder without being installed, so what it needs is not known"
        yield Finding(area="packages", verdict="could be better", text=text, command=Shell("pip install -e ."))
        return
    missing = [package for package in needed if package.installed is None]
    unfit = [package for package in needed if package.installed is not None and not package.fits]
    wanted = [shlex.quote(f"{package.name}{package.supported}") for package in (*missing, *unfit)]
    command = Shell(f"pip install {' '.join(wanted)}") if wanted else None
    if missing:
        names = ", ".join(package.name for package in missing)
        yield Finding(area="packages", verdict="wrong", text=f"not installed: {names}", command=command)
    if unfit:
        told = ", ".join(f"{package.name} {package.installed} (not {package.supported})" for package in unfit)
        text = f"outside of the versions that dialogkit is made for: {told}"
        yield Finding(area="packages", verdict="could be better", text=text, command=None if missing else command)
    if not wanted:
        told = ", ".join(f"{p.name} {p.installed}" for p in needed if p.name in ("transformers", "accelerate"))
        yield Finding(area="packages", verdict="ok", text=f"all {len(needed)} in supported versions: {told}")


def _extras(facts: Facts) -> Iterator[Finding]:
    extras = {package.extra for package in facts.packages if package.extra}
    lacking = {p.extra for p in facts.packages if p.extra and not (p.installed and p.fits)}
    if extras:
        told = f"installed: {', '.join(sorted(extras - lacking)) or 'none'}"
        command = Shell(f"pip install 'dialogkit[{','.join(sorted(lacking))}]'") if lacking else None
        more = f"; there are also {', '.join(sorted(lacking))}" if lacking else ""
        yield Finding(area="extras", verdict="ok", text=told + more, command=command)


def _torch(facts: Facts) -> Iterator[Finding]:
    """Look at whether torch is built for the GPUs that are there."""
    if facts.torch is None:
        return  # told with the packages, or in need of nothing that a command could tell
    build = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else f"ROCm {facts.torch_hip}"
    build = build if facts.torch_cuda or facts.torch_hip else "the CPU"
    text = f"{facts.torch}, built for {build}"
    if facts.gpus and not (facts.torch_cuda or facts.torch_hip):
        text += f", so the {facts.gpus[0].name} here is not used"
        yield Finding(area="torch", verdict="could be better", text=text, command=_install(facts))
    elif facts.gpus and facts.torch_cuda and _major(facts.driver_cuda) < _major(facts.torch_cuda):
        text += f", and the driver {facts.driver} knows CUDA up to {facts.driver_cuda}: no GPU is used"
        yield Finding(area="torch", verdict="could be better", text=text, command=_install(facts))
    else:
        yield Finding(area="torch", verdict="ok", text=text)


def _install(facts: Facts) -> Shell:
    supported = next((package.supported for package in facts.packages if package.name == "torch"), "")
    command = f"pip install --force-reinstall {shlex.quote('torch' + supported)}"
    build = "cu130" if _major(facts.driver_cuda) >= 13 else "cu126"
    return Shell(f"{command} --index-url https://download.pytorch.org/whl/{build}")


def _major(version: str | None) -> int:
    return int(version.split(".")[0]) if version else 99


def _gpus(facts: Facts) -> Iterator[Finding]:
    for gpu in facts.gpus:
        capability = gpu.capability
        bf16 = "bf16" if capability is None or capability >= (8, 0) else "no bf16, so float32"
        told = f", compute capability {capability[0]}.{capability[1]}: {bf16}" if capability else ""
        text = f"{gpu.name}, {_size(gpu.free_bytes)} of {_size(gpu.memory_bytes)} free{told}"
        taken = gpu.free_bytes < gpu.memory_bytes / 2
        if taken:
            text += "; another process holds most of its memory"
        verdict: Verdict = "could be better" if taken else "ok"
        yield Finding(area="gpu", verdict=verdict, text=text, command=Shell("nvidia-smi") if taken else None)
    if facts.gpus:
        return
    if "nvidia-smi" in facts.commands:
        text = "nvidia-smi is there and tells of no GPU, so the CPU trains"
        yield Finding(area="gpu", verdict="could be better", text=text, command=Shell("nvidia-smi"))
    elif facts.system == "Darwin" and facts.processor.startswith("Apple"):
        yield Finding(area="gpu", verdict="ok", text="Apple MPS, in float32")
    else:
        yield Finding(area="gpu", verdict="ok", text="none, so the CPU trains")


def _cpu(facts: Facts) -> Iterator[Finding]:
    flag = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in facts.flags), None)
    how = f"{flag}, so matrix products are in bf16" if flag else "no bf16, so float32"
    text = f"{facts.processor or 'unknown'}, {_counted(facts.cores, 'core')} to use; {how}"
    yield Finding(area="cpu", verdict="ok", text=text)


def _threads(facts: Facts) -> Iterator[Finding]:
    value = facts.environment.get("OMP_NUM_THREADS")
    if value is None or _joined(facts):
        return
    there = f"OMP_NUM_THREADS is {value!r}, and there are {_counted(facts.cores, 'core')}"
    if not value.isdigit() or value == "0":
        text = f"OMP_NUM_THREADS is {value!r}, which is no number of threads"
    elif int(value) > facts.cores:
        text = f"{there}: threads wait for each other"
    elif int(value) < facts.cores and not facts.gpus:
        text = f"{there}: some stand idle"
    else:
        yield Finding(area="threads", verdict="ok", text=f"OMP_NUM_THREADS is {value}")
        return
    yield Finding(area="threads", verdict="could be better", text=text, command=Shell("unset OMP_NUM_THREADS"))


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory_bytes is None:
        return
    left = [free for free in (facts.memory_free_bytes, facts.container_free_bytes) if free is not None]
    free = min(left, default=facts.memory_bytes)
    text = f"{_size(free)} free of {_size(facts.memory_bytes)}"
    if facts.container_bytes is not None and facts.container_bytes < facts.memory_bytes:
        text += f", and this container or job may hold {_size(facts.container_bytes)}"
    if free < LITTLE_MEMORY:
        text += "; a batch can be split by itself"
        command = Call("train", "custom-nano", preset="test", fit_batch=True)
        yield Finding(area="memory", verdict="could be better", text=text, command=command)
    else:
        yield Finding(area="memory", verdict="ok", text=text)


def _output(facts: Facts) -> Iterator[Finding]:
    folder = facts.output
    if folder.problem:
        text = f"{folder.path!r} cannot be written: {folder.problem}"
        yield Finding(area="output", verdict="wrong", text=text, command=Call("train", output_dir="my-models"))
        return
    text = f"{folder.path!r}, {_size(folder.free_bytes)} free on its disk"
    if folder.free_bytes is not None and folder.free_bytes < NO_DISK:
        text += ", too little for any run"
        yield Finding(area="output", verdict="wrong", text=text, command=Call("runs prune"))
        return
    lacks = []
    if folder.free_bytes is not None and folder.free_bytes < LITTLE_DISK:
        lacks.append("a run of gpt2-small needs 4 GB")
    if folder.hard_links is False:
        lacks.append("it has no hard links, so models are copied and take twice the space")
    if folder.locks is False:
        lacks.append("it has no locks, so two processes could train one run")
    verdict: Verdict = "could be better" if lacks else "ok"
    small = folder.free_bytes is not None and folder.free_bytes < LITTLE_DISK
    command = Call("runs prune") if small else Call("train", output_dir="FOLDER") if lacks else None
    yield Finding(area="output", verdict=verdict, text="; ".join([text, *lacks]), command=command)


def _cache(facts: Facts) -> Iterator[Finding]:
    yield _written(facts.cache, "cache", "prepared data", Shell("export DIALOGKIT_CACHE=FOLDER"))


def _written(folder: Place, area: str, what: str, command: Shell) -> Finding:
    if folder.problem:
        text = f"{what}: {folder.path!r} cannot be written: {folder.problem}"
        return Finding(area=area, verdict="could be better", text=text, command=command)
    return Finding(area=area, verdict="ok", text=f"{what}: {folder.path!r}, {_size(folder.free_bytes)} free")


def _wandb(facts: Facts) -> Iterator[Finding]:
    origin = f", from {facts.wandb_key_from}" if facts.wandb_key_from else ""
    key = f"a key is there (it is not shown{origin})" if facts.wandb_key else "there is no key"
    server = facts.wandb_server
    if facts.wandb_server_from != "default":
        server += f" (from {facts.wandb_server_from})"
    asked = facts.environment.get("WANDB_MODE", "")
    command: Hint | None = None
    if asked in ("offline", "disabled"):
        mode = f"runs are {'not logged' if asked == 'disabled' else 'logged offline'}, for WANDB_MODE is {asked}"
    elif not facts.wandb_key:
        mode, command = "runs are logged offline", Shell("wandb login")
    elif facts.server_answers is None:
        mode = f"runs are logged online if {server} answers, offline otherwise"
        command = Call("doctor", network=True)
    else:
        answer = "answers" if facts.server_answers else "does not answer"
        mode = f"runs are logged {'online' if facts.server_answers else 'offline'}: {server} {answer}"
    yield Finding(area="wandb", verdict="ok", text=f"{key}; {mode}", command=command)
    if facts.wandb_problem:
        text = facts.wandb_problem
        yield Finding(area="wandb", verdict="could be better", text=text, command=Shell("unset WANDB_BASE_URL"))
    for note in facts.wandb_notes:
        if note != facts.wandb_problem:
            yield Finding(area="wandb", verdict="could be better", text=note)
    if facts.open_dotenv:
        text = ".env holds the key, and others can read it"
        yield Finding(area="wandb", verdict="could be better", text=text, command=Shell("chmod 600 .env"))


def _hub(facts: Facts) -> Iterator[Finding]:
    origin = f", from {facts.hub_token_from}" if facts.hub_token_from else ""
    token = (
        f"a token is there (it is not shown{origin})"
        if facts.hub_token
        else "no token, which public models do not need"
    )
    if facts.hub_problem:
        text = f"HF_ENDPOINT is {facts.hub_problem}"
        yield Finding(area="hub", verdict="could be better", text=text, command=Shell("unset HF_ENDPOINT"))
    offline = [
        name
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        if facts.environment.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")
    ]
    if offline:
        text = f"{token}; {offline[0]} forbids downloads, so only what is in the cache is found"
        command = Shell(f"unset {' '.join(offline)}")
        yield Finding(area="hub", verdict="could be better", text=text, command=command)
    elif facts.hub_answers is not None:
        yield Finding(
            area="hub",
            verdict="ok" if facts.hub_answers else "could be better",
            text=f"{token}; the hub {'answers' if facts.hub_answers else 'does not answer'}",
        )
    else:
        yield Finding(
            area="hub", verdict="ok", text=f"{token}; the hub was not asked", command=Call("doctor", network=True)
        )
    yield _written(facts.hub_cache, "hub", "models and datasets", Shell("export HF_HOME=FOLDER"))


def _devices(facts: Facts) -> Iterator[Finding]:
    """Look at how many processes could train together on this machine."""
    hidden = facts.environment.get("CUDA_VISIBLE_DEVICES")
    if facts.gpus and hidden is not None:
        shown = len([part for part in hidden.split(",") if part.strip() not in ("", "-1")])
        if shown < len(facts.gpus):
            text = f"CUDA_VISIBLE_DEVICES={hidden} shows {shown} of {_counted(len(facts.gpus), 'GPU')}"
            unset = Shell("unset CUDA_VISIBLE_DEVICES")
            yield Finding(area="devices", verdict="could be better", text=text, command=unset)
            return
    usable = len(facts.gpus) if facts.torch_cuda or facts.torch_hip else 0
    backend = "nccl" if usable else "gloo"
    if usable > 1:
        text = f"{usable} GPUs, which train together by {backend}"
        command = Call("train", "MODEL", devices=usable)
        yield Finding(area="devices", verdict="ok", text=text, command=command)
    else:
        what = "one GPU" if usable else "the CPU"
        text = f"{what}; several machines would train together by {backend}"
        yield Finding(area="devices", verdict="ok", text=text)


def _joined(facts: Facts) -> bool:
    """Return whether a launcher has started this process as one of several."""
    around = facts.environment
    by_torch = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= around.keys()
    return by_torch or ("SLURM_PROCID" in around and around.get("SLURM_STEP_NUM_TASKS", "1") != "1")


def _cluster(facts: Facts) -> Iterator[Finding]:
    """Look at who started this process, and what dialogkit does under it."""
    around: Mapping[str, str] = facts.environment
    if {"RANK", "WORLD_SIZE"} <= around.keys():
        what = "torchrun" if "TORCHELASTIC_RUN_ID" in around else "a launcher"
        text = f"started by {what} as rank {around['RANK']} of {around['WORLD_SIZE']}"
        if _joined(facts):
            yield Finding(area="cluster", verdict="ok", text=f"{text}; a training joins the other ranks")
        else:
            text += ", but MASTER_ADDR does not say where the other ranks are, so a training would refuse to start"
            yield Finding(area="cluster", verdict="could be better", text=text)
    elif "SLURM_JOB_ID" in around:
        job, nodes = around["SLURM_JOB_ID"], around.get("SLURM_JOB_NUM_NODES", "1")
        if _joined(facts):
            task = f"task {around['SLURM_PROCID']} of {around['SLURM_STEP_NUM_TASKS']}"
            text = f"Slurm job {job}, started by srun as {task}; a training joins the other ranks"
            yield Finding(area="cluster", verdict="ok", text=text)
        elif nodes != "1":
            text = f"Slurm job {job} on {nodes} nodes, of which this shell uses one"
            command = Call("launch slurm", "train", "MODEL", nodes=nodes)
            yield Finding(area="cluster", verdict="could be better", text=text, command=command)
        else:
            yield Finding(area="cluster", verdict="ok", text=f"Slurm job {job} on one node")
    elif "KUBERNETES_SERVICE_HOST" in around:
        yield Finding(area="cluster", verdict="ok", text="a pod of Kubernetes, in which a training runs as it is")
    elif "sbatch" in facts.commands:
        command = Call("launch slurm", "train", "MODEL", gpus=1)
        yield Finding(
            area="cluster", verdict="ok", text="Slurm is here; a job file is written by", command=command
        )
    elif "kubectl" in facts.commands:
        command = Call("launch kubernetes", "train", "MODEL", gpus=1, image="IMAGE", claim="CLAIM")
        text = "kubectl is here; a job file for a cluster is written by"
        yield Finding(area="cluster", verdict="ok", text=text, command=command)


def _shm(facts: Facts) -> Iterator[Finding]:
    if facts.shm_bytes is None:
        return
    text = f"/dev/shm has {_size(facts.shm_bytes)}"
    if facts.shm_bytes < LITTLE_SHM and len(facts.gpus) > 1:
        text += ", too little for several GPUs or data.workers"
        yield Finding(
            area="shm", verdict="could be better", text=text, command=Shell("docker run --shm-size=8g ...")
        )
    else:
        yield Finding(area="shm", verdict="ok", text=text)


def _size(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.0f} MiB"


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    *(_python, _packages, _extras, _torch, _gpus, _cpu, _threads, _memory, _shm),
    *(_output, _cache, _wandb, _hub, _devices, _cluster),
)
