"""`dialogkit launch`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dialogkit.cli.output import Output, untrusted
from dialogkit.cli.overrides import FLAGS, as_flags, require_lora, seconds_of
from dialogkit.cli.train import train_command
from dialogkit.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from dialogkit.config.run import RunConfig

WordsArgument = Annotated[list[str], typer.Argument(metavar="-- train ...", help="The training, as it is typed.")]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, max=4096, metavar="N", help="Machines.")]
GpusOption = Annotated[
    int, typer.Option("--gpus", min=0, max=64, metavar="N", help="GPUs of a machine, one a process; 0: none.")
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus", min=1, max=4096, metavar="N", help="CPU cores of a machine. [4 a process]")
]
MemoryOption = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="Memory of a machine, such as 64G.")
]
RestartsOption = Annotated[
    int, typer.Option("--max-restarts", min=0, metavar="N", help="Restarts of the processes after a failure.")
]
NameOption = Annotated[str | None, typer.Option("--name", metavar="RUN", help="Name of the job and its run.")]
OutputFileOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help=r"Where to write it. \[standard output]")
]


def slurm_command(
    words: WordsArgument,
    nodes: NodesOption = 1,
    gpus: GpusOption = 1,
    cpus: CpusOption = None,
    memory: MemoryOption = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="90m, 12h or 2-12:00:00; then it is queued again.")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Account to charge.")] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option("--setup", metavar="LINE", help="Shell line to run first; may be repeated."),
    ] = None,
    max_restarts: RestartsOption = 3,
    name: NameOption = None,
    output: OutputFileOption = None,
) -> None:
    """Print an sbatch script that trains, and that goes on after a requeue or the time limit."""
    from dialogkit.services.cluster.job import plan, require_dataset
    from dialogkit.services.cluster.slurm import refusal, slurm_script

    config, typed = _training(words, name, "dialogkit launch slurm")
    if not setup:  # which may lead to another folder, or put the data there
        require_dataset(config)
    asked: dict[str, Any] = {"nodes": nodes, "gpus": gpus, "cpus": cpus, "max_restarts": max_restarts}
    job = plan(config, typed, memory=memory, time=time, **asked)
    command = ["dialogkit", *sys.argv[1:]]
    script = slurm_script(job, command, partition=partition, account=account, setup=setup or [])
    told = refusal(script)
    _give(script, output, "sbatch", "job.sh", warning=told and f"Slurm would not take it here: {told}")


def kubernetes_command(
    words: WordsArgument,
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="Image that holds dialogkit.")],
    claim: Annotated[
        str, typer.Option("--claim", metavar="NAME", help="PersistentVolumeClaim for models, runs and caches.")
    ],
    namespace: Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="Namespace.")] = None,
    secret: Annotated[
        str | None, typer.Option("--secret", metavar="NAME", help="Secret that holds WANDB_API_KEY or HF_TOKEN.")
    ] = None,
    nodes: NodesOption = 1,
    gpus: GpusOption = 1,
    cpus: CpusOption = None,
    memory: MemoryOption = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="TIME", help="90m or 12h; then the job is ended.")
    ] = None,
    max_restarts: RestartsOption = 3,
    name: NameOption = None,
    output: OutputFileOption = None,
) -> None:
    """Print a Job or, for several nodes, a PyTorchJob that trains, and that goes on after a restart."""
    from dialogkit.services.cluster.job import plan
    from dialogkit.services.cluster.kubernetes import FOLDER, kubernetes_manifest

    config, typed = _training(words, name, f"dialogkit launch kubernetes --image {image} --claim {claim}")
    asked: dict[str, Any] = {"nodes": nodes, "gpus": gpus, "cpus": cpus, "max_restarts": max_restarts}
    job = plan(config, typed, memory=memory, time=time, **asked)
    command = ["dialogkit", *sys.argv[1:]]
    manifest = kubernetes_manifest(job, command, image=image, claim=claim, namespace=namespace, secret=secret)
    kind = "a PyTorchJob, for which the cluster needs Kubeflow's training operator" if nodes > 1 else "a Job"
    Output().err.print(f"{kind}; files that the words name are looked for in {FOLDER}, on the claim")
    _give(manifest, output, "kubectl apply -f", "job.yaml")


def _training(words: list[str], name: str | None, command: str) -> "tuple[RunConfig, list[str]]":
    """Return the settings that words give to a training, checked as `train` checks them, and what follows `train`.

    Raises: ConfigError, also for words that only make sense where one types them.
    """
    from dialogkit.config.load import NEWEST, load_with_origins, parse_sets
    from dialogkit.config.paths import DEFAULT_OUTPUT
    from dialogkit.services.training.resume import find_start

    words = words[1:] if words[:1] == ["dialogkit"] else words
    if words[:1] != ["train"]:
        raise ConfigError(
            f"a job is a training, so its words begin with train and not {words[0]!r}",
            hint=f"{command} -- train custom-tiny",
        )
    if name is not None:
        if any(word.split("=")[0] == "--name" for word in words):
            raise ConfigError("the run has two names", hint=f"--name {name} before the -- alone")
        words = [*words, "--name", name]
    parser = typer.Typer(add_completion=False)
    parser.command("train")(train_command)
    given = typer.main.get_command(parser).make_context("dialogkit train", list(words[1:])).params
    goes_on = f"--name {'my-run' if given['resume_run'] == NEWEST else given['resume_run']}"
    for parameter, reason, hint in (
        ("dry", "--dry-run measures where it is typed", f"dialogkit {shlex.join(words)}"),
        ("resume_run", "--resume is what a job does by itself with the run of its name", goes_on),
        ("devices", "--devices is in the job file already", "--gpus 8"),
        ("nodes", "--nodes is in the job file already", "--nodes, before the --"),
        ("node_rank", "--node-rank is in the job file already", None),
        ("rendezvous", "--rendezvous is in the job file already", None),
        ("max_restarts", "--max-restarts is in the job file already", "--max-restarts, before the --"),
    ):
        value = given.get(parameter)
        if value is not None and value is not False:
            raise ConfigError(reason, hint=hint)
    settings = {flag: setting for setting, flag in FLAGS.items()}
    overrides: dict[str, Any] = {
        "runtime.device": "cpu" if given["no_cuda"] else None,
        "runtime.output_dir": given["output_dir"],
        "tracking.log_model": given["log_model"] or None,
        "train.fit_batch": given["fit_batch"] or None,
    }
    for option in typer.main.get_command(parser).params:
        setting = next((settings[flag] for flag in option.opts if flag in settings), None)
        if setting is not None:
            value = given[option.name]
            overrides[setting] = None if value == [] else value
    if given["budget"] is not None:
        overrides["train.budget_s"] = seconds_of(given["budget"])
    model = given["model"]
    if given["from_run"] is not None:
        start, trained = find_start(given["from_run"], output=Path(given["output_dir"] or DEFAULT_OUTPUT))
        model, overrides = str(start), {"model.name": trained, **overrides}
    typed = {name: value for name, value in overrides.items() if value is not None}
    try:
        loaded = load_with_origins(
            model,
            preset=given["preset"],
            config_file=given["config"],
            overrides=typed | parse_sets(given["sets"] or []),
        )
    except ConfigError as error:
        raise as_flags(error, list(typed)) from None
    require_lora(loaded.config, no_merge=given["no_merge"])
    if loaded.config.runtime.devices != 1:
        raise ConfigError("runtime.devices is in the job file already", hint="--gpus 8")
    return loaded.config, list(words[1:])


def _give(text: str, file: Path | None, submit: str, usual: str, *, warning: str | None = None) -> None:
    """Print a job file or write it, and tell what is against it and how it is submitted."""
    from dialogkit.system.files import write_signed

    output = Output()
    if file is None:
        output.text(text)
    else:
        _require_own(file, usual)
        try:
            write_signed(file, text, comment="# {}")
        except StorageError as error:
            error.hint = f"--output {usual}"
            raise
    if warning:
        output.err.print(untrusted(f"warning: {warning}"))
    if file is None:
        output.hint(f"--output {usual} writes it; then {submit} {usual}")
    else:
        output.hint(f"{submit} {shlex.quote(str(file))}")


def _require_own(file: Path, usual: str) -> None:
    """Raise StorageError unless nothing but a job file as dialogkit wrote it would be lost by writing there."""
    from dialogkit.system.ownership import is_signed

    if file.is_dir():
        raise StorageError(
            f"--output {str(file)!r} is a folder", hint=f"--output {shlex.quote(str(file / usual))}"
        )
    if os.path.lexists(file) and not is_signed(file):
        raise StorageError(
            f"{str(file)!r} is there already and is not a job file as dialogkit wrote it, so it is left as it is",
            hint=f"--output {shlex.quote(str(file.with_name(f'{file.stem}-2{file.suffix}')))}",
        )
