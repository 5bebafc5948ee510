"""A job on a cluster: it trains a run of a fixed name, and resumes it when it is started again."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError, wrong_setting
from dialogkit.hints import Change
from dialogkit.redaction import secret_in, secrets_of, without_secrets
from dialogkit.text import counted, duration, sanitize
from dialogkit.tracking.run_list import run_name

_MEMORY = re.compile(r"([1-9]\d{0,6}[MGT])I?B?")
WRITTEN_BY = "# Written by: "
"""What a line of each job file begins with."""
_READABLE = "and others can read job files"
_FROM_OUTSIDE = "set it in the environment of the job, as WANDB_API_KEY"


@dataclass(frozen=True)
class Resources:
    """The resources that a run needs from a cluster."""

    nodes: int = 1
    gpus: int = 1
    """GPUs per node, one process each. 0: one process, on the CPU."""
    cpus: int | None = None
    """CPU cores per node. None: four per process."""
    memory: str | None = None
    """Memory per node, such as 64G. None: what the cluster gives."""
    time_s: int | None = None
    """Seconds that the job may take. None: what the cluster gives."""
    max_restarts: int = 3
    """Restarts of the processes that train together, after a failure."""

    @property
    def devices(self) -> int:
        """Processes per node, each with a GPU of its own unless `gpus` is 0."""
        return max(1, self.gpus)


@dataclass(frozen=True, kw_only=True)
class Job(Resources):
    """A run, and the resources that it needs from a cluster."""

    config: RunConfig
    run: str
    """Name of the run, the same whenever the job is started again."""
    cpus: int

    @property
    def processes(self) -> int:
        """Processes that train together."""
        return self.nodes * self.devices

    @property
    def output(self) -> str:
        """Folder of models and runs."""
        return self.config.runtime.output_dir

    @property
    def threads(self) -> int:
        """CPU threads per process."""
        return max(1, self.cpus // self.devices)

    def summary(self) -> list[str]:
        """Return lines that describe the job to whoever reads its file."""
        train = self.config.train
        each = train.batch_size // (self.processes * train.accumulation_steps)
        size = f"{train.batch_size} dialogs per step: {each} at once"
        size += f" on each of {self.processes} processes" if self.processes > 1 else ""
        size += f", {train.accumulation_steps} times" if train.accumulation_steps > 1 else ""
        size += f", in parts of at most {train.micro_batch_tokens} tokens" if train.micro_batch_tokens else ""
        return [f"{self.config.model.name}, preset {self.config.preset}, run {self.run}", size]


@dataclass(frozen=True)
class Commands:
    """What a job calls: the arguments of `dialogkit`, as the command line has them."""

    written_by: Sequence[str]
    """The command that writes the job file."""
    find: Sequence[str]
    """Succeeds if the run exists."""
    train: Sequence[str]
    resume: Sequence[str]
    together: Sequence[str]
    """Arguments appended to `train` and `resume` for multi-process jobs."""
    node_rank: str
    """The option that takes the number of a node."""
    rendezvous: str
    """The option that takes the HOST:PORT at which the nodes meet."""


def plan(config: RunConfig, arguments: Sequence[str], resources: Resources) -> Job:
    """Return the job of a run.

    Args:
        config: the configuration that the arguments give.
        arguments: the arguments of `train`, which the job file will contain.
        resources: what the run needs from the cluster.

    Raises: ConfigError for what no cluster could run, and for a secret among the arguments.
    """
    if list(arguments) != without_secrets(list(arguments)):
        raise ConfigError(f"the arguments contain what looks like a secret, {_READABLE}", hint=_FROM_OUTSIDE)
    size = resources.memory and _MEMORY.fullmatch(resources.memory.upper())
    if resources.memory is not None and not size:
        raise wrong_setting("memory", f"{resources.memory!r} is not a size such as 64G", Change({"memory": "64G"}))
    if resources.gpus and config.runtime.device == "cpu":
        idle = f"the run uses the CPU and would leave {counted(resources.gpus, 'GPU')} per machine idle"
        raise wrong_setting("gpus", idle, Change({"gpus": 0}))
    if not resources.gpus and config.runtime.device == "cuda":
        raise wrong_setting("gpus", "runtime.device is 'cuda', and no GPU is reserved", Change({"gpus": 1}))
    config.train.require_divisible(resources.nodes * resources.devices)
    run = config.name or run_name(config.model.name, config.preset, Path(config.runtime.output_dir))
    resolved = {"cpus": resources.cpus or 4 * resources.devices, "memory": size[1] if size else None}
    return Job(config=config, run=run, **{**vars(resources), **resolved})


def require_dataset(config: RunConfig) -> None:
    """Raise DataError if the dataset is a path and cannot be read here. The hub is not asked for the others."""
    from dialogkit.data.shards import find_stream
    from dialogkit.data.sources import NAMED, find_source, looks_like_file

    name = config.data.dataset
    # Unlike pathlib's, these functions accept any text, even one too long for a file name.
    if name in NAMED or not (looks_like_file(name) or os.path.exists(os.path.expanduser(name))):
        return
    if config.data.streaming:
        find_stream(config.data)
    else:
        find_source(config.data)


def comment(text: str) -> str:
    """Return text from outside as one line, which cannot end the comment that it is part of."""
    return sanitize(text.replace("\n", "\\n").replace("\t", "\\t"))


def heading(job: Job, commands: Commands, *, repeats: bool) -> list[str]:
    """Return the comment that a job file begins with; `repeats` if the job is queued again at its time limit."""
    lines = [shlex.join(commands.written_by), *job.summary()]
    if job.time_s is not None:
        lines.append(f"at most {duration(job.time_s)}{' at a time' if repeats else ''}")
    first, *others = map(comment, lines)
    return [f"{WRITTEN_BY}{first}", *(f"# {line}" for line in others)]


def require_no_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text of a job file. Raises: ConfigError if it contains a secret, such as one of this shell."""
    for name, value in secrets_of(environment).items():
        if value in text:
            raise ConfigError(
                f"the job file would contain the value of {name}, {_READABLE}",
                hint=f"leave it out of the command: the job takes {name} from its environment",
            )
    if secret_in(text, named=False):
        raise ConfigError(f"the job file would contain what looks like a secret, {_READABLE}", hint=_FROM_OUTSIDE)
    return text


def shell_lines(job: Job, commands: Commands) -> list[str]:
    """Return shell lines that set `$@` to the arguments of `dialogkit`.

    They do not say where the processes of several nodes meet.
    """
    lines = [
        "# The first start trains. Later ones resume the run, or do nothing if it is finished.",
        f"if dialogkit {shlex.join(commands.find)} >/dev/null 2>&1; then",
        f"    set -- {shlex.join(commands.resume)}",
        "else",
        f"    set -- {shlex.join(commands.train)}",
        "fi",
    ]
    if job.processes > 1:
        lines.append(f'set -- "$@" {shlex.join(commands.together)}')
    return lines
