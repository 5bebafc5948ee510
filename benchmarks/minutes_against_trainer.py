"""What is learned in five minutes, against what HF's Trainer with its own defaults learns in thirty?

python benchmarks/minutes_against_trainer.py custom-tiny --dataset FILE
python benchmarks/minutes_against_trainer.py custom-small --dataset FILE --json results.json

Ours is `dialogkit train MODEL --preset production --budget 5m`, a process from its start to the saved model.
Theirs is HF Trainer as most tutorials write it, on the same initial weights, dialogs and supervised tokens: padded
to 512, float32, AdamW with the rate 5e-5 that falls linearly to zero, 8 dialogs a step. How many of its steps fit
into its time is measured with the Trainer itself. What they learn is then computed without padding, in float32:
the same steps (gradients agree to 3e-7), in less time. Both are scored on the same held-out dialogs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import training_speed

from dialogkit.config.load import load_run_config
from dialogkit.services.train import train

TRAINER_DEFAULTS = {
    "train.batch_size": 8,
    "train.optimizer": "adamw",
    "train.learning_rate": 5e-5,
    "train.schedule": "linear",
    "train.warmup_fraction": 0.0,
    "train.weight_decay": 0.0,
    "train.adam_beta1": 0.9,
    "train.adam_beta2": 0.999,
    "train.max_grad_norm": 1.0,
    "train.keep": "last",
    "runtime.precision": "fp32",
}


def trainer_step_s(words: argparse.Namespace) -> float:
    """Return the seconds that a step of HF's Trainer takes: the median of several short runs."""
    options = argparse.Namespace(
        model=words.model, dataset=words.dataset, rows=8 * words.steps, batch_size=8, learning_rate=5e-5
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        training_speed.prepare(options, folder)
        runs = [training_speed.run_arm(options, "plain", folder) for _ in range(words.rounds)]
    return float(median(run["seconds"] for run in runs)) / float(words.steps)


def theirs(words: argparse.Namespace, steps: int, folder: str) -> dict[str, float]:
    """Return what HF's Trainer reaches in so many steps."""
    aside = {
        "data.dataset": words.dataset,
        "data.samples": None,
        "train.max_steps": steps,
        "train.eval_every_steps": 100_000_000,
        "tracking.wandb": "disabled",
        "tracking.histogram_every_steps": 0,
        "tracking.report": False,
        "runtime.output_dir": folder,
        "generate.test_prompts": [],
    }
    config = load_run_config(words.model, preset="production", overrides={**TRAINER_DEFAULTS, **aside})
    return train(config).metrics


def ours(words: argparse.Namespace, folder: str) -> tuple[dict[str, float], float]:
    """Return what dialogkit reaches in its time, and the seconds of the process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "dialogkit", "train", words.model, "--preset", "production", "--no-cuda"]
    command += ["--dataset", words.dataset, "--budget", f"{words.ours}s", "--wandb", "disabled"]
    command += ["--output-dir", folder, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    seconds = time.perf_counter() - started
    metrics: dict[str, float] = json.loads(done.stdout)["data"]["metrics"]
    return metrics, seconds


def main() -> None:
    """Print both, and write them as JSON beside if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ours", type=int, default=300, help="seconds of dialogkit")
    parser.add_argument("--theirs", type=int, default=1800, help="seconds of HF's Trainer")
    parser.add_argument("--steps", type=int, default=6, help="steps in which the Trainer's speed is measured")
    parser.add_argument("--rounds", type=int, default=3, help="times that it is measured")
    parser.add_argument("--json", type=Path, help="write the figures here")
    words = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        reached, seconds = ours(words, folder)
        rows.append({"arm": "dialogkit", "seconds": seconds, "metrics": reached})
        step_s = trainer_step_s(words)
        steps = max(1, round(words.theirs / step_s))
        print(f"the Trainer takes {step_s:.2f} s a step: {steps:,} steps in {words.theirs:,} s", file=sys.stderr)
        rows.append({"arm": "HF Trainer", "seconds": words.theirs, "metrics": theirs(words, steps, folder)})
    print("| arm | seconds | steps | tokens | held-out nats/token | bits/byte |\n|---|---:|---:|---:|---:|---:|")
    for row in rows:
        reached = row["metrics"]
        print(
            f"| {row['arm']} | {row['seconds']:,.0f} | {reached['train/steps']:,.0f} | "
            f"{reached['train/tokens']:,.0f} | {reached['final/nats_per_token']:.4f} | "
            f"{reached['final/bits_per_byte']:.4f} |"
        )
    if words.json:
        words.json.write_text(json.dumps({"model": words.model, "dataset": words.dataset, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
