"""What learns most in a given time? Trains a model once for each trial with the same budget, rows and seed.

python benchmarks/learning_per_minute.py custom-tiny --budget 90 --dataset FILE \
    --trial train.batch_size=4 --trial train.batch_size=16,train.optimizer=muon

Every trial has the whole time of the budget: steps, warm-up and decay are fitted to it. On a machine that is busy
with other work give `--steps` instead: what is learned in so many steps does not depend on the machine, and what a
step costs is measured apart.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from dialogkit.config.load import load_run_config, parse_sets
from dialogkit.errors import DivergedError
from dialogkit.services.train import train


def run_trial(words: argparse.Namespace, sets: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train once; return what was reached."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_run_config(
            words.model,
            overrides={
                "data.dataset": words.dataset,
                "data.samples": None,
                "data.eval_fraction": words.held_out,
                **({"train.max_steps": words.steps} if words.steps else {"train.budget_s": words.budget}),
                "train.seed": seed,
                "train.keep": "last",
                "train.eval_every_steps": 100_000_000,
                "tracking.wandb": "disabled",
                "tracking.histogram_every_steps": 0,
                "runtime.output_dir": folder,
                "generate.test_prompts": [],
                **sets,
            },
        )
        try:
            result = train(config)
        except DivergedError:
            return {"steps": 0, "tokens": 0.0, "tokens_per_s": 0.0, "nats": float("inf"), "bits": float("inf")}
        metrics = result.metrics
        return {
            "steps": result.steps,
            "seconds": result.duration_s,
            "tokens": metrics["train/tokens"],
            "tokens_per_s": metrics["perf/tokens_per_s"],
            "nats": metrics["final/nats_per_token"],
            "bits": metrics["final/bits_per_byte"],
        }


def main() -> None:
    """Print a table, one row for each trial, and write it as JSON beside if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", default="starter")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of each trial")
    parser.add_argument("--steps", type=int, help="steps of each trial, in place of a budget")
    parser.add_argument("--held-out", type=float, default=0.008, help="share of the dialogs that is held out")
    parser.add_argument("--trial", action="append", default=[], metavar="NAME=VALUE,...", help="may be repeated")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--json", type=Path, help="write the table here")
    words = parser.parse_args()
    print("| trial | seed | steps | tokens/s | held-out nats/token | bits/byte |", flush=True)
    print("|---|---|---:|---:|---:|---:|", flush=True)
    rows = []
    for trial in words.trial or [""]:
        for seed in words.seeds:
            reached = run_trial(words, parse_sets([part for part in trial.split(",") if part]), seed)
            rows.append({"trial": trial, "seed": seed, **reached})
            print(
                f"| {trial or 'defaults'} | {seed} | {reached['steps']} | {reached['tokens_per_s']:,.0f} | "
                f"{reached['nats']:.4f} | {reached['bits']:.4f} |",
                flush=True,
            )
    if words.json:
        allowed = {"steps": words.steps} if words.steps else {"budget_s": words.budget}
        told = {"model": words.model, "dataset": words.dataset, **allowed, "rows": rows}
        words.json.write_text(json.dumps({**told, "python": sys.version.split()[0]}, indent=1))


if __name__ == "__main__":
    main()
