"""`dialogkit launch`."""

import os
import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli import hints, options
from dialogkit.cli.output import Output
from dialogkit.cli.train import train_command
from dialogkit.cli.train_arguments import TrainArguments
from dialogkit.errors import ConfigError, StorageError
from dialogkit.hints import Change

if TYPE_CHECKING:
    from dialogkit.config.run import RunConfig
    from dialogkit.services.cluster.job import Commands, Job


def slurm_command(
    words: options.WordsArgument,
    nodes: options.NodesOption = 1,
    gpus: options.GpusOption = 1,
    cpus: options.CpusOption = None,
    memory: options.MemoryOption = None,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="TIME", help="90m, 12h or 2-12:00:00; then the job is queued again."),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Account to charge.")] = None,
    setup: Annotated[
        list[str] | None, typer.Option("--setup", metavar="LINE", help="Shell line to run first; may be repeated.")
    ] = None,
    max_restarts: options.RestartsOption = 3,
    name: options.NameOption = None,
    output: options.OutputFileOption = None,
) -> None:
    """Print an sbatch script that trains, and resumes after a requeue or the time limit."""
    from dialogkit.services.cluster.job import Resources, plan, require_dataset
    from dialogkit.services.cluster.slurm import refusal, slurm_script

    config, arguments = _training(words, name)
    if not setup:  # which may change to another folder, or copy the data there
        require_dataset(config)
    job = plan(config, arguments, Resources(nodes, gpus, cpus, memory, options.time_limit(time), max_restarts))
    commands = _commands(job, arguments)
    script = slurm_script(job, commands, partition=partition, account=account, setup=setup or [])
    reason = refusal(script)
    _write(script, output, "sbatch", "job.sh", warning=reason and f"Slurm would reject it here: {reason}")


def kubernetes_command(
    words: options.WordsArgument,
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="Image that contains dialogkit.")],
    claim: Annotated[
        str, typer.Option("--claim", metavar="NAME", help="PersistentVolumeClaim for models, runs and caches.")
    ],
    namespace: Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="Namespace.")] = None,
    secret: Annotated[
        str | None, typer.Option("--secret", metavar="NAME", help="Secret with WANDB_API_KEY or HF_TOKEN.")
    ] = None,
    nodes: options.NodesOption = 1,
    gpus: options.GpusOption = 1,
    cpus: options.CpusOption = None,
    memory: options.MemoryOption = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="90m or 12h; then the job is ended.")
    ] = None,
    max_restarts: options.RestartsOption = 3,
    name: options.NameOption = None,
    output: options.OutputFileOption = None,
) -> None:
    """Print a Job, or a PyTorchJob for several nodes, that trains, and resumes after a restart."""
    from dialogkit.services.cluster.job import Resources, plan
    from dialogkit.services.cluster.kubernetes import FOLDER, kubernetes_manifest

    config, arguments = _training(words, name)
    job = plan(config, arguments, Resources(nodes, gpus, cpus, memory, options.time_limit(time), max_restarts))
    commands = _commands(job, arguments)
    manifest = kubernetes_manifest(job, commands, image=image, claim=claim, namespace=namespace, secret=secret)
    kind = "a PyTorchJob, for which the cluster needs Kubeflow's training operator" if nodes > 1 else "a Job"
    Output().note(f"{kind}; relative paths are looked up in {FOLDER}, on the claim")
    _write(manifest, output, "kubectl apply -f", "job.yaml")


NOT_IN_A_JOB = {
    "dry": "--dry-run measures where it is typed",
    "resume_run": "--resume is what a job does by itself with the run of its name",
    "devices": "--devices is in the job file already",
    "nodes": "--nodes is in the job file already",
    "node_rank": "--node-rank is in the job file already",
    "rendezvous": "--rendezvous is in the job file already",
    "max_restarts": "--max-restarts is in the job file already",
}
"""Options of `train` that have no place in a job, by their parameters, and why."""


def _meant(words: list[str]) -> list[str]:
    """Return the words after `train` if they begin with a model, also one that is misspelt; else a model."""
    from dialogkit.config.load import model_names

    near = get_close_matches(words[0], model_names(), n=1)
    return [*near, *words[1:]] if near else ["custom-tiny"]


def _training(words: list[str], name: str | None) -> "tuple[RunConfig, list[str]]":
    """Return the configuration of a run and the words after `train`, checked as `train` checks them.

    Raises: ConfigError, also for options that only make sense where they are typed.
    """
    words = words[1:] if words[:1] == ["dialogkit"] else words
    if words[:1] != ["train"]:
        raise ConfigError(
            f"the command of a job begins with train and not {words[0]!r}",
            hint=hints.job_line({}, ["train", *_meant(words)], misplaced=words),
        )
    if name is not None:
        if any(word.split("=")[0] == "--name" for word in words):
            raise ConfigError("the run has two names", hint=hints.job_line({}, hints.without(words, ["--name"])))
        words = [*words, "--name", name]
    parsed = hints.click_command("train").make_context("dialogkit train", words[1:])
    given = TrainArguments(train_command, parsed.params)
    _require_fit_for_a_job(given, words)
    config = given.load().config
    if config.runtime.devices != 1:
        gpus = {"--gpus": ["--gpus", str(config.runtime.devices)]} if config.runtime.devices != "auto" else {}
        raise ConfigError(
            "runtime.devices is in the job file already",
            hint=hints.job_line(gpus, hints.without(words, ["--set"], value="runtime.devices=")),
        )
    return config, words[1:]


def _require_fit_for_a_job(arguments: TrainArguments, words: list[str]) -> None:
    """Raise ConfigError for an option that has no place in a job."""
    from dialogkit.config.paths import NEWEST

    for parameter, problem in NOT_IN_A_JOB.items():
        given = arguments.given[parameter]
        if given is None or given is False:
            continue
        flag = problem.split()[0]
        training = hints.without(words, [flag])
        of_job: dict[str, list[str]] = {}
        if parameter == "resume_run":
            training += ["--name", "my-run" if given == NEWEST else given]
        elif parameter in ("nodes", "max_restarts"):
            of_job = {flag: [flag, str(given)]}
        elif parameter == "devices" and given != "auto":
            of_job = {"--gpus": ["--gpus", str(given)]}
        hint = f"dialogkit {shlex.join(words)}" if parameter == "dry" else hints.job_line(of_job, training)
        raise ConfigError(problem, hint=hint)


def _commands(job: "Job", arguments: list[str]) -> "Commands":
    """Return what a job calls to train, and to resume its run when it is started again."""
    from dialogkit.services.cluster.job import Commands

    numbers = {"--devices": job.devices, "--nodes": job.nodes, "--max-restarts": job.max_restarts}
    place = ["--output-dir", job.output]
    return Commands(
        written_by=hints.typed(),
        find=["runs", "show", job.run, *place],
        train=["train", *arguments, *([] if job.config.name else ["--name", job.run])],
        resume=["train", "--resume", job.run, *place],
        together=[word for flag, number in numbers.items() for word in (flag, str(number))],
        node_rank="--node-rank",
        rendezvous="--rendezvous",
    )


def _write(text: str, file: Path | None, submit: str, usual: str, *, warning: str | None = None) -> None:
    """Print a job file or write it, and say how to submit it."""
    from dialogkit.system.files import write_signed

    output = Output()
    if file is None:
        output.text(text)
        following = f"--output {usual} writes it; then {submit} {usual}"
    else:
        following = f"{submit} {shlex.quote(str(file))}"
        _require_replaceable(file, usual)
        try:
            write_signed(file, text, comment="# {}")
        except StorageError as error:
            error.hint = Change({"output": usual})
            raise
    if warning:
        output.note(f"warning: {warning}")
    output.hint(following)


def _require_replaceable(file: Path, usual: str) -> None:
    """Raise StorageError if writing there would replace anything but an unchanged job file of dialogkit."""
    from dialogkit.system.ownership import is_signed

    if file.is_dir():
        raise StorageError(f"--output {str(file)!r} is a folder", hint=Change({"output": file / usual}))
    if os.path.lexists(file) and not is_signed(file):
        raise StorageError(
            f"{str(file)!r} exists, and is not a job file as dialogkit wrote it: it is left as it is",
            hint=Change({"output": file.with_name(f"{file.stem}-2{file.suffix}")}),
        )
