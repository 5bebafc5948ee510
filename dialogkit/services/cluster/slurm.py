"""A run as a Slurm batch script."""

import re
import shutil
import subprocess
from collections.abc import Sequence

from dialogkit.errors import wrong_setting
from dialogkit.hints import Change
from dialogkit.redaction import redact, secret_in
from dialogkit.services.cluster.job import Commands, Job, heading, require_no_secrets, shell_lines

MOST_REQUEUES = 100
"""How often a job queues itself again, so that one that never reaches a checkpoint ends at some point."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]{0,127}")

_STEP = """\
# What srun starts on each node. Slurm sends its signal to every process of the step, so all but this shell ignore
# it. This shell forwards it once, as SIGTERM, on which dialogkit saves and exits with 143.
step='
node=$SLURM_NODEID
unset SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_NPROCS  # dialogkit starts its own processes
trap "" USR1
dialogkit "$@"@NODE@ &
child=$!
trap "kill -TERM $child" USR1
trap : TERM
code=138
while [ "$code" -eq 138 ] || kill -0 "$child" 2>/dev/null; do  # a signal ends the wait, not the run
    wait "$child"
    code=$?
done
exit "$code"'
"""

_AGAIN = """\
# 143: stopped by the signal before the time limit, and saved. Queued again, this script resumes the run.
if [ "$code" -eq 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @MOST@ ]; then
    echo "stopped before the time limit: queueing the job again" >&2
    scontrol requeue "$SLURM_JOB_ID" || echo "requeue failed: submit this file again to resume the run" >&2
fi
exit "$code"
"""


def slurm_script(
    job: Job, commands: Commands, *, partition: str | None, account: str | None, setup: Sequence[str]
) -> str:
    """Return a script for `sbatch` that trains, and that resumes the run whenever it is started again.

    Args:
        job: the run.
        commands: what the script calls.
        partition: partition of the cluster. None: its default.
        account: account to charge. None: the user's.
        setup: shell lines that make `dialogkit` callable, such as `module load cuda`.

    Raises: ConfigError for an invalid name, and for a secret in the script.
    """
    for name, value in (("partition", partition), ("account", account)):
        if value is not None and not _WORD.fullmatch(value):
            raise wrong_setting(name, f"{value!r} is not a valid Slurm name", Change({name: "main"}))
    if line := next((line for line in setup if secret_in(line)), None):
        inherited = "set it in the shell from which you submit: a job inherits its environment"
        raise wrong_setting("setup", f"{redact(line)!r} sets what looks like a secret", inherited)
    _require_shell(setup)
    lines = ["#!/bin/bash", *_directives(job, partition, account)]
    lines += ["#", *heading(job, commands, repeats=True), "", *setup, "set -u"]
    lines += [
        "command -v dialogkit >/dev/null || {",
        '    echo "dialogkit is not on the PATH: activate its environment above, or before sbatch" >&2',
        "    exit 2",
        "}",
        f"export SRUN_CPUS_PER_TASK={job.cpus} OMP_NUM_THREADS={job.threads}",
        *shell_lines(job, commands),
    ]
    if job.nodes > 1:
        lines += [
            "# The processes meet at the first node, at a port that no other job on it is likely to use.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f'set -- "$@" {commands.rendezvous} "$first:$((20000 + SLURM_JOB_ID % 20000))"',
        ]
    node = f' {commands.node_rank} "$node"' if job.nodes > 1 else ""
    lines += ["", *_STEP.replace("@NODE@", node).splitlines()]
    lines += [
        "# A node that has finished waits for the others.",
        'srun --kill-on-bad-exit=0 --wait=0 bash -c "$step" dialogkit "$@"',
        "code=$?",
        "",
        *_AGAIN.replace("@MOST@", str(MOST_REQUEUES)).splitlines(),
    ]
    return require_no_secrets("\n".join(lines) + "\n")


def _directives(job: Job, partition: str | None, account: str | None) -> list[str]:
    """Return the lines that tell Slurm what the job needs."""
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
    given = {name: value for name, value in options.items() if value is not None}
    return [f"#SBATCH --{name}" + (f"={value}" if value != "" else "") for name, value in given.items()]


def _require_shell(setup: Sequence[str]) -> None:
    """Raise ConfigError if the set-up lines are not valid shell; where bash is missing, nothing is checked."""
    if not setup or shutil.which("bash") is None:
        return
    lines = "\n".join(setup) + "\n"
    checked = subprocess.run(
        ["bash", "-n"],
        input=lines,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=30,
    )
    if checked.returncode:
        reported = checked.stderr.strip()
        reason = reported.splitlines()[0].rpartition(": ")[2] if reported else "bash -n"
        problem = f"{' '.join(setup)!r} is not valid shell ({reason})"
        raise wrong_setting("setup", problem, Change({"setup": "module load cuda"}))


def refusal(script: str) -> str | None:
    """Return why the Slurm of this machine would reject a script; None if it would accept it. Submits nothing.

    None as well if Slurm is not installed or does not answer.
    """
    if shutil.which("sbatch") is None:
        return None
    try:
        asked = subprocess.run(
            ["sbatch", "--test-only"],
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode == 0:
        return None
    first = next((line for line in asked.stderr.split("\n") if line.strip()), None)
    if first is None:
        return f"sbatch --test-only exits with {asked.returncode}"
    return first.removeprefix("sbatch: ").removeprefix("error: ")


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:{seconds:02}"


def _notice(time_s: int | None) -> int:
    """Return how many seconds before its end a job is signalled: five minutes, or a quarter of a short one."""
    return 300 if time_s is None else max(30, min(300, time_s // 4))
