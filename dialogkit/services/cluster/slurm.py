"""A training as a batch script of Slurm."""

import re
import shutil
import subprocess
from collections.abc import Sequence

from dialogkit.errors import ConfigError
from dialogkit.redaction import redact, secret_in
from dialogkit.services.cluster.job import Job, heading, require_no_secrets, shell_words

MOST_REQUEUES = 100
"""How often a job puts itself back into the queue: a job that never comes to a checkpoint ends some time."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]{0,127}")

_STEP = """\
# What srun starts on each node. Slurm's signal reaches every process of the step, so all but this shell ignore it;
# this shell passes it on once, as the SIGTERM at which dialogkit saves and ends with 143.
step='
node=$SLURM_NODEID
unset SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_NPROCS  # a node is none of the processes of a training
trap "" USR1
dialogkit "$@"@NODE@ &
child=$!
trap "kill -TERM $child" USR1
trap : TERM
code=138
while [ "$code" -eq 138 ] || kill -0 "$child" 2>/dev/null; do  # a signal ends the wait, not the training
    wait "$child"
    code=$?
done
exit "$code"'
"""

_AGAIN = """\
# 143: stopped by the signal before the time was over, and saved. In the queue again, this script goes on.
if [ "$code" -eq 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @MOST@ ]; then
    echo "stopped before the time was over: the job is put back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" || echo "it cannot be: submit this file again, and it goes on" >&2
fi
exit "$code"
"""


def slurm_script(
    job: Job,
    command: Sequence[str],
    *,
    partition: str | None = None,
    account: str | None = None,
    setup: Sequence[str] = (),
) -> str:
    """Return a script for `sbatch` that trains, and that goes on with the run whenever it is started again.

    Args:
        job: the training.
        command: the words that were typed; kept as a comment.
        partition: partition of the cluster. None: its own choice.
        account: account that is charged. None: the user's.
        setup: lines of shell that make `dialogkit` callable, such as `module load cuda`.

    Raises: ConfigError for a name that is none, or a secret among what would be written.
    """
    for option, value in (("--partition", partition), ("--account", account)):
        if value is not None and not _WORD.fullmatch(value):
            raise ConfigError(f"{option} {value!r} is no name that Slurm knows", hint=f"{option} main")
    if line := next((line for line in setup if secret_in(line)), None):
        raise ConfigError(
            f"--setup sets what seems to be a secret: {redact(line)!r}",
            hint="set it in the shell from which you submit: a job inherits its environment",
        )
    _require_shell(setup)
    options = {
        "job-name": job.run,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gres": f"gpu:{job.gpus}" if job.gpus else None,
        "mem": job.memory,
        "time": None if job.time_s is None else _clock(job.time_s),
        "partition": partition,
        "account": account,
        "signal": f"USR1@{_notice(job.time_s)}",
        "requeue": "",
        "open-mode": "append",
        "output": "%x-%j.out",
    }
    lines = ["#!/bin/bash"]
    lines += [
        f"#SBATCH --{name}" + f"={value}" * (value != "") for name, value in options.items() if value is not None
    ]
    lines += ["#", *heading(job, command, goes_on=True), "", *setup, "set -u"]
    lines += [
        "command -v dialogkit >/dev/null || {",
        '    echo "dialogkit is not on the PATH: activate its environment before sbatch, or see --setup" >&2',
        "    exit 2",
        "}",
        f"export SRUN_CPUS_PER_TASK={job.cpus} OMP_NUM_THREADS={max(1, job.cpus // job.devices)}",
        *shell_words(job),
    ]
    if job.nodes > 1:
        lines += [
            "# The processes meet at the first node, at a port that no other job of it is likely to have.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'set -- "$@" --rendezvous "$first:$((20000 + SLURM_JOB_ID % 20000))"',
        ]
    lines += ["", *_step(job).splitlines()]
    lines += [
        "# A node that is done leaves the others the time that they need.",
        'srun --kill-on-bad-exit=0 --wait=0 bash -c "$step" dialogkit "$@"',
        "code=$?",
        "",
        *_AGAIN.replace("@MOST@", str(MOST_REQUEUES)).splitlines(),
    ]
    return require_no_secrets("\n".join(lines) + "\n")


def _require_shell(setup: Sequence[str]) -> None:
    """Raise ConfigError if lines of set-up are no sound shell, as far as there is one here to tell."""
    if not setup or shutil.which("bash") is None:
        return
    checked = subprocess.run(
        ["bash", "-n"], input="\n".join(setup) + "\n", capture_output=True, text=True, timeout=30
    )
    if checked.returncode:
        reason = (
            checked.stderr.strip().splitlines()[0].rpartition(": ")[2] if checked.stderr.strip() else "bash -n"
        )
        raise ConfigError(
            f"--setup is no sound shell ({reason}): {' '.join(setup)!r}", hint='--setup "module load cuda"'
        )


def refusal(script: str) -> str | None:
    """Return why the Slurm of this machine would not take a script, which is not submitted; None where it would.

    None as well where there is no Slurm, or where it does not answer.
    """
    if shutil.which("sbatch") is None:
        return None
    try:
        asked = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode == 0:
        return None
    told = [
        line.removeprefix("sbatch: ").removeprefix("error: ") for line in asked.stderr.split("\n") if line.strip()
    ]
    return told[0] if told else f"sbatch --test-only ends with {asked.returncode}"


def _step(job: Job) -> str:
    node = ' --node-rank "$node"' if job.nodes > 1 else ""
    return _STEP.replace("@NODE@", node)


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:{seconds:02}"


def _notice(time_s: int | None) -> int:
    """Return how many seconds before its end a job is told of it: five minutes, or a quarter of a short one."""
    return 300 if time_s is None else max(30, min(300, time_s // 4))
