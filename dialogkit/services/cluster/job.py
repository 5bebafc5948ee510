"""What a job on a cluster runs: a training of its own name, which goes on when the job is started again."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError
from dialogkit.redaction import secret_in, secrets_of, without_secrets
from dialogkit.text import duration, sanitize
from dialogkit.tracking.run_dir import run_name

_MEMORY = re.compile(r"([1-9]\d{0,6}[MGT])I?B?")
WRITTEN_BY = "# Written by: "
"""What a line of each job file begins with."""


@dataclass(frozen=True)
class Job:
    """A training and what it asks of a cluster."""

    config: RunConfig
    run: str
    """Name of the run, the same whenever the job is started again."""
    words: tuple[str, ...]
    """The words after `dialogkit train`, its own name of the run among them."""
    nodes: int = 1
    devices: int = 1
    """Processes on a node, each with a GPU of its own unless `gpus` is 0."""
    gpus: int = 1
    """GPUs of a node."""
    cpus: int = 4
    """CPU cores of a node."""
    memory: str | None = None
    """Memory of a node, such as 64G. None: what the cluster gives."""
    max_restarts: int = 3
    """How often the processes that train together are started again after a failure."""
    time_s: int | None = None
    """Seconds that the job may take. None: what the cluster gives."""

    @property
    def processes(self) -> int:
        """Processes that train together."""
        return self.nodes * self.devices

    @property
    def output(self) -> str:
        """Folder of models and runs."""
        return self.config.runtime.output_dir

    def summary(self) -> list[str]:
        """Return what the job is, for people who read its file."""
        train = self.config.train
        each = train.batch_size // (self.processes * train.accumulation_steps)
        size = f"{train.batch_size} dialogs in a step: {each} at once"
        size += f" on each of {self.processes} processes" if self.processes > 1 else ""
        size += f", {train.accumulation_steps} times" if train.accumulation_steps > 1 else ""
        return [f"{self.config.model.name}, preset {self.config.preset}, run {self.run}", size]


def plan(
    config: RunConfig,
    words: Sequence[str],
    *,
    nodes: int = 1,
    gpus: int = 1,
    cpus: int | None = None,
    memory: str | None = None,
    time: str | None = None,
    max_restarts: int = 3,
) -> Job:
    """Return the job of a training.

    Args:
        config: the configuration that the words give.
        words: what follows `dialogkit train`.
        nodes: machines.
        gpus: GPUs of each; 0: the CPU trains.
        cpus: CPU cores of each. None: four for each process.
        memory: memory of each, such as 64G.
        time: what the job may take, such as 90m, 12h or 2-12:00:00.
        max_restarts: how often processes that train together are started again after a failure.

    Raises: ConfigError for what no cluster could run, secrets among the words included.
    """
    run = config.name or run_name(config.model.name, config.preset, Path(config.runtime.output_dir))
    if list(words) != without_secrets(list(words)):
        raise ConfigError(
            "the words of the training hold what seems to be a secret, and a job file is read by many",
            hint="set it in the environment of the job, as WANDB_API_KEY",
        )
    size = memory and _MEMORY.fullmatch(memory.upper())
    if memory is not None and not size:
        raise ConfigError(f"--memory {memory!r} is not a size such as 64G", hint="--memory 64G")
    if gpus and config.runtime.device == "cpu":
        raise ConfigError(f"--gpus {gpus} reserves what a training on the CPU does not use", hint="--gpus 0")
    if not gpus and config.runtime.device == "cuda":
        raise ConfigError("runtime.device is 'cuda', and --gpus 0 reserves no GPU", hint="--gpus 1")
    devices = max(1, gpus)
    job = Job(
        config=config,
        run=run,
        words=(*words, *(["--name", run] if config.name is None else [])),
        nodes=nodes,
        devices=devices,
        gpus=gpus,
        cpus=cpus or 4 * devices,
        memory=size[1] if size else None,
        max_restarts=max_restarts,
        time_s=None if time is None else seconds_of(time),
    )
    config.train.require_divisible(job.processes)
    return job


def require_dataset(config: RunConfig) -> None:
    """Raise DataError if the dataset is no file or folder here that can be read; of the hub nothing is asked."""
    from dialogkit.data.shards import find_stream
    from dialogkit.data.sources import NAMED, find_source, looks_like_file

    name = config.data.dataset
    # Unlike pathlib's, these functions answer for any text, be it too long for a name.
    if name in NAMED or not (looks_like_file(name) or os.path.exists(os.path.expanduser(name))):
        return
    if config.data.streaming:
        find_stream(config.data)
    else:
        find_source(config.data)


def seconds_of(text: str) -> int:
    """Return the seconds of 90m, 12h, 2d, 1h30m, 12:00:00 or 2-12:00:00. Raises: ConfigError for anything else."""
    asked = text.strip().lower()
    clock = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", asked)
    units = re.fullmatch(r"(?:(\d{1,3})d)?(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?", asked)
    found = clock or units
    days, hours, minutes, seconds = (int(part or 0) for part in (found.groups() if found else "0000"))
    if (total := 86_400 * days + 3600 * hours + 60 * minutes + seconds) < 60:
        raise ConfigError(
            f"--time {text!r} is not a time of at least a minute such as 90m, 12h or 2-12:00:00",
            hint="--time 12h",
        )
    return total


def comment(text: str) -> str:
    """Return text from outside as one line that no reader of a comment takes for more."""
    return sanitize(text.replace("\n", "\\n").replace("\t", "\\t"))


def heading(job: Job, command: Sequence[str], *, goes_on: bool) -> list[str]:
    """Return the lines of comment that a job file begins with; `goes_on` after its time is over."""
    told = [shlex.join(command), *job.summary()]
    if job.time_s is not None:
        told.append(f"at most {duration(job.time_s)}{' at a time' if goes_on else ''}")
    first, *others = map(comment, told)
    return [f"{WRITTEN_BY}{first}", *(f"# {line}" for line in others)]


def require_no_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text of a job file. Raises: ConfigError if it holds the value of a secret of this shell."""
    for name, value in secrets_of(environment).items():
        if value in text:
            raise ConfigError(
                f"the job file would hold the value of {name}, and a job file is read by many",
                hint=f"leave it out of the words: the job takes {name} from its environment",
            )
    if secret_in(text, named=False):
        raise ConfigError(
            "the job file would hold what seems to be a secret, and a job file is read by many",
            hint="set it in the environment of the job, as WANDB_API_KEY",
        )
    return text


def shell_words(job: Job) -> list[str]:
    """Return the lines of shell after which `$@` is what `dialogkit` is called with, and `$run` the run's name.

    Where the processes of several nodes meet is not among it.
    """
    lines = [
        f"run={shlex.quote(job.run)}",
        f"output={shlex.quote(job.output)}",
        "# The first time it trains. Later it goes on with the run, and does nothing where it is finished.",
        'if dialogkit runs show "$run" --output-dir "$output" >/dev/null 2>&1; then',
        '    set -- train --resume "$run" --output-dir "$output"',
        "else",
        f"    set -- train {shlex.join(job.words)}",
        "fi",
    ]
    if job.processes > 1:
        words = ["--devices", job.devices, "--nodes", job.nodes, "--max-restarts", job.max_restarts]
        lines.append(f'set -- "$@" {shlex.join(map(str, words))}')
    return lines
