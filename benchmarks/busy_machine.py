"""How fast is a training run beside another program that keeps all cores busy, with threads that adapt or do not?

python benchmarks/busy_machine.py custom-tiny --steps 30

The other program is a process that multiplies matrices with as many threads as there are cores. Arms take turns.
"""

import argparse
import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from dialogkit.config.load import load_run_config
from dialogkit.services.train import train
from dialogkit.system.cpu import usable_cores
from dialogkit.tracking.run_dir import RunDir

LOAD = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
one = torch.rand(512, 512)
print("ready", flush=True)
while True:
    one @ one
"""


@contextmanager
def neighbour(busy: bool, threads: int) -> Iterator[None]:
    """Keep the cores busy in another process, if asked to."""
    if not busy:
        yield
        return
    words = [sys.executable, "-c", LOAD, str(threads)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def tokens_per_s(model: str, threads: int | None, steps: int, batch_size: int) -> float:
    """Train once and return the tokens of all steps but the first two, by their seconds."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "train.max_steps": steps,
            "train.batch_size": batch_size,
            "train.log_every_steps": 1,
            "train.eval_every_steps": 100_000_000,
            "data.eval_max_dialogs": 4,
            "data.eval_min_dialogs": 4,
            "generate.test_prompts": [],
            "tracking.wandb": "disabled",
            "tracking.report": False,
            "tracking.histogram_every_steps": 0,
            "runtime.threads": threads,
            "runtime.output_dir": folder,
        }
        result = train(load_run_config(model, preset="test", overrides=overrides))
        points = [point for point in RunDir(Path(result.run_dir)).metrics() if "perf/step_s" in point][2:]
    seconds = [float(point["perf/step_s"]) for point in points]
    speeds = [float(point["perf/tokens_per_s"]) for point in points]
    tokens: float = sum(map(operator.mul, speeds, seconds))
    return tokens / sum(seconds)


def main() -> None:
    """Print a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="custom-tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    cores = usable_cores()
    os.environ.pop("OMP_NUM_THREADS", None)
    arms = [(busy, threads) for busy in (False, True) for threads in (None, cores, 1)]
    found: dict[tuple[bool, int | None], list[float]] = {arm: [] for arm in arms}
    for _ in range(words.rounds):
        for arm in arms:
            busy, threads = arm
            with neighbour(busy, cores):
                found[arm].append(tokens_per_s(words.model, threads, words.steps, words.batch_size))
    free = median(found[False, cores])
    print(f"{words.model}, {words.batch_size} dialogs a step, {cores} cores, medians of {words.rounds} rounds")
    print("| cores | threads | tokens/s | of a free machine |")
    print("|---|---|---:|---:|")
    for busy, threads in arms:
        speed = median(found[busy, threads])
        named = "adapted" if threads is None else str(threads)
        print(f"| {'busy' if busy else 'free'} | {named} | {speed:,.0f} | {speed / free:.0%} |")


if __name__ == "__main__":
    main()
