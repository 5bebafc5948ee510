"""Job files: checked by the shell and by the APIs' rules, and run with what a cluster would call."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dialogkit.cli.hints import click_command
from dialogkit.cli.launch import NOT_IN_A_JOB
from dialogkit.cli.options import sets_of
from dialogkit.cli.train import train_command
from dialogkit.config.load import load_run_config
from dialogkit.errors import ConfigError
from dialogkit.services.cluster.job import Resources, plan
from dialogkit.services.cluster.kubernetes import kubernetes_name
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, SMALL, Finished, typed
from tests.services.cluster.kubernetes_schema import Job, PyTorchJob

Run = Callable[..., Finished]

KUBERNETES = ("launch", "kubernetes", "--image", "registry.example/dialogkit:1", "--claim", "work")
HOSTILE = 'it\'s $(touch pwned) `touch pwned` $$ "x" ; touch pwned\n#SBATCH --uid=0\n*  \\ end'
"""Text that a shell, Slurm or Kubernetes would take for more than text."""

CLUSTER = {
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done\n'
    "export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2\n"
    '"$@" &\necho $! >srun.pid\nwait $!\n',
    "scontrol": 'case "$1" in\nshow) printf "node1\\nnode2\\n";;\n*) echo "$@" >>scontrol.log;;\nesac\n',
}
"""What a node of a cluster has, as far as a job calls it."""

RECORD = """\
if [ "$1 $2" = "runs show" ]; then [ -e run-is-there ]; exit; fi
printf '%s\\0' "${RANK-}${SLURM_PROCID-}" "$@" >call
exit "${ENDS_WITH:-0}"
"""
"""A dialogkit that writes down how it is called to train."""


def install(folder: Path, programs: dict[str, str]) -> dict[str, str]:
    """Put programs of shell into a folder; return an environment in which they are found first."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}


def recorded() -> list[str]:
    """Return the words with which dialogkit was last called to train, where nothing around it misleads it."""
    misleading, *words, end = Path("call").read_text().split("\0")
    assert (misleading, end) == ("", ""), "dialogkit would take the node for one of its processes"
    return words


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose dialogkit writes down how it is called."""
    return {
        **install(tmp_path / "bin", {**CLUSTER, "dialogkit": RECORD}),
        "SLURM_JOB_ID": "1007",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }


def script(dialogkit: Run, *words: str) -> str:
    done = dialogkit("launch", "slurm", *words)
    assert done.code == 0, done.err
    assert done.err == "next: --output job.sh writes it; then sbatch job.sh\n"
    checked = subprocess.run(["bash", "-n"], input=done.out, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-"], input=done.out, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
    return done.out


def run_job(text: str, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    Path("job.sh").write_text(text)
    return subprocess.run(
        ["bash", "job.sh"], env={**environment, **more}, capture_output=True, text=True, timeout=240
    )


def manifest(dialogkit: Run, *words: str) -> tuple[str, Any]:
    done = dialogkit(*KUBERNETES, *words)
    assert done.code == 0, done.err
    assert done.err.endswith("next: --output job.yaml writes it; then kubectl apply -f job.yaml\n")
    return done.out, yaml.safe_load(done.out)


def expanded(text: str) -> str:
    """Return a word of a container's command as Kubernetes hands it on, in an environment without the names."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda found: "$" if found[0] == "$$" else found[0], text)


# Slurm


def test_a_slurm_job_trains_at_first_and_later_continues(dialogkit: Run, cluster: dict[str, str]) -> None:
    text = script(dialogkit, "--name", "long", "--", "train", "custom-nano", "--samples", "8")
    assert run_job(text, cluster).returncode == 0
    assert recorded() == ["train", "custom-nano", "--samples", "8", "--name", "long"]
    Path("run-is-there").touch()
    assert run_job(text, cluster).returncode == 0
    assert recorded() == ["train", "--resume", "long", "--output-dir", "models"]


def test_several_nodes_meet_at_the_first(dialogkit: Run, cluster: dict[str, str]) -> None:
    options = ["--nodes", "2", "--gpus", "8", "--max-restarts", "5", "--name", "wide"]
    text = script(dialogkit, *options, "--", "train", "custom-nano", "--set", "train.batch_size=32")
    assert run_job(text, cluster).returncode == 0
    together = "--devices 8 --nodes 2 --max-restarts 5 --rendezvous node1:21007 --node-rank 0"
    assert shlex.join(recorded()) == f"train custom-nano --set train.batch_size=32 --name wide {together}"


def test_what_slurm_is_asked_for(dialogkit: Run) -> None:
    words = shlex.split(
        "--nodes 2 --gpus 4 --cpus 24 --memory 96G --time 2h30m --partition a100 --account lab --name r"
    )
    text = script(dialogkit, *words, "--setup", "module load cuda", "--", "train", "--set", "train.batch_size=8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert asked == {
        "job-name": "r",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "24",
        "gres": "gpu:4",
        "mem": "96G",
        "time": "0-02:30:00",
        "partition": "a100",
        "account": "lab",
        "signal": "USR1@300",
        "requeue": "",
        "open-mode": "append",
        "output": "%x-%j.out",
    }
    assert "\nmodule load cuda\n" in text
    assert "OMP_NUM_THREADS=6" in text
    assert "gres" not in script(dialogkit, "--gpus", "0", "--", "train")


@pytest.mark.parametrize(
    ("ends_with", "restarts", "again"),
    [("143", "0", True), ("143", "100", False), ("0", "0", False), ("1", "0", False)],
)
def test_a_job_that_was_stopped_is_put_back_into_the_queue(
    ends_with: str, restarts: str, again: bool, dialogkit: Run, cluster: dict[str, str]
) -> None:
    text = script(dialogkit, "--", "train", "custom-nano")
    done = run_job(text, cluster, ENDS_WITH=ends_with, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == int(ends_with)
    assert Path("scontrol.log").exists() is again
    assert not again or Path("scontrol.log").read_text() == "requeue 1007\n"


def test_slurms_signal_reaches_dialogkit_once_and_as_sigterm(
    dialogkit: Run, cluster: dict[str, str], tmp_path: Path
) -> None:
    waits = (
        '[ "$1" = train ] || exit 2\ntrap "echo USR1 >>signals" USR1\n'
        'trap "echo TERM >>signals; sleep 0.2; exit 143" TERM\necho $$ >there\nwhile :; do sleep 0.02; done\n'
    )
    install(tmp_path / "bin", {"dialogkit": waits})
    Path("job.sh").write_text(script(dialogkit, "--", "train", "custom-nano"))
    job = subprocess.Popen(["bash", "job.sh"], env=cluster, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(Path("there"))
    training, step = (int(Path(file).read_text()) for file in ("there", "srun.pid"))
    wait_for_handler(step, signal.SIGUSR1)
    # Slurm sends it to every process of the step.
    for process in (training, step):
        os.kill(process, signal.SIGUSR1)
    assert job.wait(30) == 143
    assert Path("signals").read_text() == "TERM\n"
    assert Path("scontrol.log").read_text() == "requeue 1007\n"


def wait_for_handler(process: int, signum: int, seconds: float = 60) -> None:
    """Wait until a process handles a signal. Before that, it ignores it."""
    end = time.monotonic() + seconds
    caught = re.compile(r"^SigCgt:\s*(\w+)$", re.MULTILINE)
    while not int(caught.findall(Path(f"/proc/{process}/status").read_text())[0], 16) >> (signum - 1) & 1:
        assert time.monotonic() < end, f"process {process} does not handle signal {signum}"
        time.sleep(0.005)


def wait_for(path: Path, holding: str = "", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size and holding in path.read_text()):
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.005)


def test_without_dialogkit_a_job_says_what_to_do(dialogkit: Run, cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin/dialogkit").unlink()
    text = script(dialogkit, "--", "train").replace("command -v dialogkit", "command -v no-such-dialogkit")
    done = run_job(text, cluster)
    assert (done.returncode, "not on the PATH" in done.stderr) == (2, True)


@pytest.mark.faults
def test_a_real_run_is_stopped_continues_and_is_then_left_alone(dialogkit: Run, tmp_path: Path) -> None:
    real = f'exec {sys.executable} -m dialogkit "$@"\n'
    environment = {**install(tmp_path / "bin", {**CLUSTER, "dialogkit": real}), "SLURM_JOB_ID": "1"}
    settings = {**SMALL, "train.max_steps": 300, "train.eval_every_steps": 300, "train.log_every_steps": 1}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    text = script(dialogkit, "--gpus", "0", "--cpus", "1", "--name", "it", "--", "train", "custom-nano", *sets)
    Path("job.sh").write_text(text)
    run = RunDir(Path("models/runs/it"))
    with open("first.log", "wb") as log:
        job = subprocess.Popen(["bash", "job.sh"], env=environment, stderr=log, stdout=log, start_new_session=True)
        wait_for(run.path / "metrics.jsonl", '"step": 3,')
        os.kill(int(Path("srun.pid").read_text()), signal.SIGUSR1)
        assert job.wait(120) == 143, Path("first.log").read_text()
    assert run.read().status == "interrupted"
    assert Path("scontrol.log").read_text() == "requeue 1\n"
    done = run_job(text, environment, SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    record = run.read()
    assert (record.status, len(record.resumed)) == ("completed", 1)
    assert (record.resumed[0].step or 0) > 0
    assert [point["step"] for point in run.metrics() if "train/loss" in point] == list(range(1, 301))
    before = {path: path.stat().st_mtime_ns for path in Path("models").rglob("*") if path.is_file()}
    done = run_job(text, environment, SLURM_RESTART_COUNT="2")
    assert (done.returncode, "is finished" in done.stdout) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in Path("models").rglob("*") if path.is_file()} == before


# Kubernetes


def test_one_node_is_a_job_and_several_are_a_pytorchjob(dialogkit: Run) -> None:
    words = ["--gpus", "2", "--memory", "64Gi", "--time", "12h", "--namespace", "lab", "--secret", "keys"]
    rest = ["--name", "Long_run.2", "--", "train", "custom-nano", "--set", "train.batch_size=8"]
    one = Job.model_validate(manifest(dialogkit, *words, *rest)[1])
    several = PyTorchJob.model_validate(manifest(dialogkit, "--nodes", "4", *words, *rest)[1])
    for made in (one, several):
        assert (made.metadata.name, made.metadata.namespace) == ("long-run-2", "lab")
        assert made.metadata.annotations == {"dialogkit/run": "Long_run.2"}
    assert one.spec.activeDeadlineSeconds == several.spec.runPolicy.activeDeadlineSeconds == 43_200
    assert several.spec.nprocPerNode == "2"
    assert several.spec.pytorchReplicaSpecs.Worker.replicas == 3
    for pod in (one.spec.template.spec, several.spec.pytorchReplicaSpecs.Worker.template.spec):
        container = pod.containers[0]
        assert container.resources.limits == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
        assert container.envFrom[0].secretRef.name == "keys"
        claim = pod.volumes[0].persistentVolumeClaim
        assert claim is not None
        assert claim.claimName == "work"


def run_pod(dialogkit: Run, environment: dict[str, str], *words: str) -> list[str]:
    made = manifest(dialogkit, *words)[1]["spec"]
    pod = (made["template"] if "template" in made else made["pytorchReplicaSpecs"]["Worker"]["template"])["spec"]
    command = [expanded(word) for word in pod["containers"][0]["command"]]
    subprocess.run(command, env=environment, check=True, timeout=60)
    return recorded()


def test_a_pod_trains_at_first_and_later_continues(dialogkit: Run, cluster: dict[str, str]) -> None:
    words = ["--name", "long", "--", "train", "custom-nano"]
    assert run_pod(dialogkit, cluster, *words) == ["train", "custom-nano", "--name", "long"]
    Path("run-is-there").touch()
    assert run_pod(dialogkit, cluster, *words) == ["train", "--resume", "long", "--output-dir", "models"]


def test_pods_of_several_nodes_meet_at_the_first(dialogkit: Run, cluster: dict[str, str]) -> None:
    around = {**cluster, "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "wide-master-0", "MASTER_PORT": "23456"}
    words = ["--nodes", "2", "--gpus", "4", "--name", "wide", "--", "train", "--set", "train.batch_size=8"]
    together = "--devices 4 --nodes 2 --max-restarts 3 --node-rank 1 --rendezvous wide-master-0:23456"
    assert shlex.join(run_pod(dialogkit, around, *words)).endswith(f" {together}")


@pytest.mark.parametrize("run", ["long", "2024-run", "A.B_c", "x" * 64, "9", "a-" * 32, "--"])
def test_every_name_of_a_run_gives_a_name_for_kubernetes(run: str) -> None:
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?", kubernetes_name(run))


# What is refused, and what is only text


def test_hostile_text_stays_text(dialogkit: Run, cluster: dict[str, str]) -> None:
    words = ["custom-nano", "--set", f"tracking.notes={HOSTILE}", "--tag", "$(HOME) $$(HOME)", "--name", "it"]
    asked = ["--gpus", "0", "--", "train", *words]
    text = script(dialogkit, *asked)
    head, *_ = text.partition("\nset -u\n")
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert "--uid" not in re.findall(r"^#SBATCH --(\w+)", head, re.MULTILINE)
    assert run_job(text, cluster).returncode == 0
    assert recorded() == ["train", *words]
    assert run_pod(dialogkit, cluster, *asked) == ["train", *words]
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["custom-huge"],
        ["custom-tiny", "--set", "train.epochs=-1"],
        ["custom-tiny", "--preset", "tset"],
        ["custom-tiny", "--samples", "0"],
        ["custom-tiny", "--budget", "soon"],
        ["custom-tiny", "--name", "a/b"],
        ["custom-tiny", "--config", "none.json"],
        ["custom-tiny", "--from", "no-such-run"],
        ["custom-tiny", "--sample", "5"],
        ["custom-tiny", "--tracker", "none"],
        ["custom-tiny", "--wandb", "of"],
        ["custom-tiny", "--no-merge"],
        ["custom-tiny", "--set", "runtime.sharding=fspd"],
    ],
)
def test_what_train_refuses_is_refused_in_the_same_words(words: list[str], dialogkit: Run) -> None:
    known = dialogkit("train", *words)
    assert known.code == 2
    for command in (("launch", "slurm"), KUBERNETES):
        done = dialogkit(*command, "--", "train", *words)
        # A misspelt word is answered with the whole line that was meant.
        whole = shlex.join(["dialogkit", *command, "--", "train"])
        assert done in (known, known._replace(err=known.err.replace("try: dialogkit train", f"try: {whole}")))


@pytest.mark.parametrize(
    ("sbatch", "warning"),
    [
        ("echo 'sbatch: Job 7 to start at noon' >&2", None),
        (
            "echo 'sbatch: error: invalid partition specified: x\x1b[2J' >&2\n"
            "echo 'allocation failure: Invalid partition name specified' >&2\nexit 1",
            "warning: Slurm would reject it here: invalid partition specified: x\\x1b[2J\n",
        ),
        ("exit 3", "warning: Slurm would reject it here: sbatch --test-only exits with 3\n"),
    ],
)
def test_slurm_is_asked_whether_it_would_take_the_job(
    sbatch: str, warning: str | None, dialogkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = script(dialogkit, "--name", "it", "--", "train")
    environment = install(tmp_path / "slurm", {"sbatch": f'echo "$@" >asked\ncat >script\n{sbatch}\n'})
    monkeypatch.setenv("PATH", environment["PATH"])
    done = dialogkit("launch", "slurm", "--name", "it", "--", "train")
    assert done == Finished(0, text, (warning or "") + "next: --output job.sh writes it; then sbatch job.sh\n")
    assert Path("asked").read_text() == "--test-only\n"
    assert Path("script").read_text() == text


@pytest.mark.parametrize("more", [[], ["--set", "data.streaming=true"]])
@pytest.mark.parametrize(
    "dataset",
    [
        "nosuch.jsonl",
        "no/such/folder",
        pytest.param("empty", marks=pytest.mark.faults),
        pytest.param(f"{'a' * 300}.jsonl", marks=pytest.mark.faults),
    ],
)
def test_a_slurm_job_without_its_data_is_refused_in_the_words_of_train(
    dataset: str, more: list[str], dialogkit: Run
) -> None:
    Path("empty").mkdir()
    words = ["custom-nano", "--no-cuda", "--dataset", dataset, "--set", "train.max_steps=2", *more]
    known = dialogkit("train", *words)
    assert known.code == 2
    assert dialogkit("launch", "slurm", "--gpus", "0", "--", "train", *words) == known
    # What lies on the claim, or where the set-up of the job leads to, cannot be seen from here.
    assert dialogkit(*KUBERNETES, "--gpus", "0", "--", "train", *words).code == 0
    assert dialogkit("launch", "slurm", "--gpus", "0", "--setup", "cd /scratch", "--", "train", *words).code == 0


def test_a_slurm_job_with_data_of_the_hub_asks_nobody(dialogkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", None)
    for name in ("alpaca-gpt4", "somebody/something"):
        script(dialogkit, "--", "train", "--dataset", name, "--set", "data.streaming=true")


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        ([], ["evaluate", "custom-tiny"], "the command of a job begins with train"),
        ([], ["train", "--dry-run"], "--dry-run measures"),
        ([], ["train", "--resume", "it"], "--resume is what a job does by itself"),
        ([], ["train", "--set", "tracking.api_key=abc"], "unknown setting 'tracking.api_key'"),
        (["--name", "a"], ["train", "--name", "b"], "the run has two names"),
        (["--name", "a b"], ["train"], "--name: must be at most 64 letters"),
        (["--memory", "64Gi\n#SBATCH -x"], ["train"], "is not a size"),
        (["--time", "soon"], ["train"], "--time: 'soon' is not a time"),
        (["--partition", "a\n#SBATCH -x"], ["train"], "--partition"),
        (["--account", "$(x)"], ["train"], "--account"),
        (["--setup", "export WANDB_API_KEY=abc"], ["train"], "sets what looks like a secret"),
        (["--gpus", "3"], ["train", "--set", "train.batch_size=8"], "batch_size 8 does not split evenly over 3"),
        (["--gpus", "-1"], ["train"], "--gpus"),
        ([], ["train", "--no-cuda"], "--gpus: the run uses the CPU and would leave 1 GPU per machine idle"),
        (
            ["--gpus", "0"],
            ["train", "--set", "runtime.device=cuda"],
            "runtime.device is 'cuda', and no GPU",
        ),
        ([], ["train", "--set", "runtime.devices=4"], "runtime.devices is in the job file already"),
        ([], ["train", "--resume", "last"], "-- train --name my-run"),
        ([], ["train", "--set", "tracking.notes=WANDB_API_KEY=01234567"], "hold what seems to be a secret"),
        ([], ["train", "--tag", "hf_" + "a" * 30], "hold what seems to be a secret"),
        ([], ["train", "--project", "0123456789" * 4], "hold what seems to be a secret"),
        (["--setup", "if true"], ["train"], "--setup: 'if true' is not valid shell (unexpected end of file)"),
        (["--time", "25:61:61"], ["train"], "--time: '25:61:61' is not a time"),
    ],
)
def test_what_no_job_could_run_is_reported_now(
    options: list[str], words: list[str], message: str, dialogkit: Run
) -> None:
    done = dialogkit("launch", "slurm", *options, "--", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize(
    "options",
    [
        ["--claim", "a b"],
        ["--namespace", "A"],
        ["--secret", "x\ny"],
        ["--secret", "WANDB_API_KEY=0123456789abcdef"],
        ["--image", "a b"],
        ["--image", "-x"],
    ],
)
def test_names_that_kubernetes_does_not_know_are_refused(options: list[str], dialogkit: Run) -> None:
    done = dialogkit(*KUBERNETES, *options, "--", "train")
    assert (done.code, done.out) == (2, "")
    assert options[0] in done.err
    assert "0123456789abcdef" not in done.err


@pytest.mark.parametrize(("option", "place"), [("--output-dir", "/elsewhere"), ("--dataset", "/data/rows.jsonl")])
def test_what_no_pod_would_see_is_refused(option: str, place: str, dialogkit: Run) -> None:
    done = dialogkit(*KUBERNETES, "--", "train", option, place)
    assert (done.code, done.out) == (2, "")
    assert f"{option}: {place!r} is not on the claim" in done.err
    assert dialogkit(*KUBERNETES, "--", "train", option, f"/workspace{place}").code == 0


def test_a_commit_is_no_secret(dialogkit: Run) -> None:
    assert f"data.revision={'a1' * 20}" in script(dialogkit, "--", "train", "--set", f"data.revision={'a1' * 20}")


def test_a_job_file_replaces_nothing_but_a_job_file(dialogkit: Run) -> None:
    Path("rows.jsonl").write_text("my only copy\n")
    Path("folder").mkdir()
    for file, reported in (("rows.jsonl", "is not a job file as dialogkit wrote it"), ("folder", "is a folder")):
        done = dialogkit("launch", "slurm", "--output", file, "--", "train")
        assert (done.code, done.out) == (2, "")
        assert reported in done.err
    assert Path("rows.jsonl").read_text() == "my only copy\n"
    for seed in ("1", "2"):
        words = ["--output", "job.sh", "--", "train", "--set", f"train.seed={seed}"]
        assert dialogkit("launch", "slurm", *words).code == 0
    assert "train.seed=2" in Path("job.sh").read_text()
    edited = Path("job.sh").read_text().replace("#SBATCH", "#SBATCH --account=mine\n#SBATCH", 1)
    Path("job.sh").write_text(edited)
    assert dialogkit("launch", "slurm", *words).code == 2
    assert Path("job.sh").read_text() == edited


def test_no_secret_of_the_shell_comes_into_a_job_file(dialogkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert "0123456789abcdef" not in script(dialogkit, "--", "train")
    done = dialogkit("launch", "slurm", "--", "train", "--set", "tracking.notes=with 0123456789abcdef")
    assert (done.code, done.out) == (2, "")
    assert "0123456789abcdef" not in done.err
    assert "WANDB_API_KEY" in done.err


def test_a_job_file_is_written_where_it_is_asked_for(dialogkit: Run) -> None:
    done = dialogkit("launch", "slurm", "--name", "it", "--output", "my job.sh", "--", "train")
    assert done == Finished(0, "", "next: sbatch 'my job.sh'\n")
    assert Path("my job.sh").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=it\n")


def test_what_to_try_of_a_job(dialogkit: Run) -> None:
    done = dialogkit("launch", "slurm", "--output", "no/where.sh", "--", "train")
    assert (done.code, done.err.splitlines()[-1]) == (2, "try: dialogkit launch slurm --output job.sh -- train")
    done = dialogkit("launch", "slurm", "--gpus", "2", "train", "custom-tiny", "--preset", "test")
    meant = "try: dialogkit launch slurm --gpus 2 -- train custom-tiny --preset test"
    assert (done.code, done.err.splitlines()[-1]) == (2, meant)


def test_a_batch_that_cannot_be_split_is_refused_with_one_that_can() -> None:
    config = load_run_config(overrides={"train.batch_size": 12, "train.accumulation_steps": 2})
    with pytest.raises(ConfigError) as refused:
        plan(config, [], Resources(nodes=2, gpus=4))
    assert typed(refused.value, "launch", "slurm") == "--batch-size 16"


def test_every_option_of_train_gives_a_setting_or_is_known_to_a_job() -> None:
    known = {"model", "model_option", "preset", "config", "sets", "from_run"} | {"force", "json_output"}
    parameters = {parameter.name for parameter in click_command("train").params}
    assert parameters - {"help"} == sets_of(train_command).keys() | NOT_IN_A_JOB.keys() | known
