"""How much faster are two processes than one, and how long do processes wait for each other?

python benchmarks/several_processes.py speed --dataset FILE
python benchmarks/several_processes.py waiting --dataset FILE --json results.json

`speed` trains with one thread per process on the CPU: one process, two, and two that are not balanced but take the
dialogs of each batch in turn; the arms take turns. `waiting` balances the dialogs of a dataset over 8, 64 and 512
processes, with and without the balance, and reports which fraction of their time is spent waiting if a step
takes as long as the most tokens that one of them has. It trains nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

ARMS = ("1 process", "2 processes", "2 processes, unbalanced")
WARM_UP_STEPS = 4
Balance = Callable[[Sequence[int], int], list[list[int]]]


def in_turn(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Assign dialogs in turn, whatever their length."""
    return [list(range(group, len(lengths), groups)) for group in range(groups)]


def work(words: list[str], *, balanced: bool) -> None:
    """Run a command of dialogkit as one of several processes."""
    from dialogkit.cli.app import main
    from dialogkit.engine import batches

    if not balanced:
        batches.balance = in_turn
    main(words)


def speed_of(arm: str, *, model: str, dataset: Path, batch: int, steps: int) -> float:
    """Return the tokens per second of a run, the median of its steps after the first ones."""
    with tempfile.TemporaryDirectory(prefix="dialogkit-bench-") as folder:
        settings = {
            "runtime.threads": 1,
            "train.max_steps": steps,
            "train.batch_size": batch,
            "train.log_every_steps": 1,
            "train.eval_every_steps": steps,
            "train.keep": "last",
            "data.samples": batch * steps,
            "data.eval_max_dialogs": 8,
            "tracking.report": "false",
            "tracking.replies_at_evaluations": 0,
            "tracking.held_out_replies": 0,
            "generate.test_prompts": '["Hello!"]',
            "generate.max_new_tokens": 1,
        }
        words = ["train", model, "--dataset", str(dataset), "--no-cuda", "--wandb", "disabled", "--name", "it"]
        words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable]
        if arm != ARMS[0]:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [__file__, "unbalanced" if arm == ARMS[2] else "balanced", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
        lines = (Path(folder) / "models/runs/it/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        points = [point for point in map(json.loads, lines) if "perf/tokens_per_s" in point]
        return float(median(point["perf/tokens_per_s"] for point in points[WARM_UP_STEPS:]))


def measure_speed(options: argparse.Namespace) -> dict[str, float]:
    """Print and return the tokens per second of each arm."""
    rounds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm, found in rounds.items():
            found.append(
                speed_of(
                    arm, model=options.model, dataset=options.dataset, batch=options.batch, steps=options.steps
                )
            )
    speeds = {arm: median(found) for arm, found in rounds.items()}
    for arm, speed in speeds.items():
        ratio = median(one / alone for one, alone in zip(rounds[arm], rounds[ARMS[0]], strict=True))
        print(f"{arm:26} {speed:9,.0f} tokens/s  {ratio:.2f} of one process")
    return speeds


def waiting(lengths: Sequence[int], processes: int, dialogs: int, balance: Balance) -> tuple[float, float]:
    """Return the fraction of all processes' time that is spent waiting: over all steps, and in the worst one.

    Args:
        lengths: tokens of the dialogs, in the order of training.
        processes: number of processes.
        dialogs: dialogs a process has in a step, on average.
        balance: splits the dialogs of a step over processes.
    """
    size = processes * dialogs
    worked, longest, worst = 0.0, 0.0, 0.0
    for start in range(0, len(lengths) - size + 1, size):
        batch = lengths[start : start + size]
        loads = [sum(batch[number] for number in group) for group in balance(batch, processes)]
        worked += sum(loads) / processes
        longest += max(loads)
        worst = max(worst, 1 - sum(loads) / processes / max(loads))
    return 1 - worked / longest, worst


def simulate_waiting(options: argparse.Namespace) -> dict[str, float]:
    """Print and return the fraction of time spent waiting."""
    from dialogkit.config.data import DataConfig
    from dialogkit.config.load import load_run_config
    from dialogkit.config.paths import cache_dir
    from dialogkit.data.prepare import prepare_data
    from dialogkit.engine.batches import balance
    from dialogkit.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(load_run_config("custom-tiny").model)
    data = prepare_data(DataConfig(dataset=str(options.dataset)), tokenizer, context=1024, cache=cache_dir())
    lengths = np.random.default_rng(42).permutation(data.train.lengths).tolist()
    print(
        f"{len(lengths):,} dialogs of {min(lengths)} to {max(lengths)} tokens, {np.mean(lengths):.0f} on average"
    )
    found: dict[str, float] = {}
    for processes in (8, 64, 512):
        for dialogs in (2, 8):
            without, worst_without = waiting(lengths, processes, dialogs, in_turn)
            balanced, worst = waiting(lengths, processes, dialogs, balance)
            print(
                f"{processes:4} processes, {dialogs} dialogs each: {without:6.1%} waiting in turn "
                f"(worst step {worst_without:.1%}), {balanced:6.2%} balanced (worst step {worst:.1%})"
            )
            found |= {f"{processes}x{dialogs} in turn": without, f"{processes}x{dialogs} balanced": balanced}
    return found


def main() -> None:
    """Measure what the words ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "waiting"])
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--model", default="custom-tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.dataset = options.dataset.resolve()
    found = measure_speed(options) if options.what == "speed" else simulate_waiting(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] in (["balanced"], ["unbalanced"]):
        work(sys.argv[2:], balanced=sys.argv[1] == "balanced")
    else:
        main()
