"""What does tracking cost? The time of a training step with everything recorded, against one with nothing.

python benchmarks/tracking_overhead.py custom-nano custom-tiny --steps 200 --rounds 5

Recorded: W&B offline, histograms at their default distance, every point in the run's files. The ways take turns
in one process on the same dialogs and weights; evaluations and replies are in none. A step's time is that of all
steps by their number, so that what is done now and then (histograms) counts by its share.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from statistics import median

from dialogkit.config.load import load_run_config
from dialogkit.services.train import train

ARMS: dict[str, dict[str, object]] = {
    "off": {"tracking.wandb": "disabled", "tracking.histogram_every_steps": 0},
    "W&B, no histograms": {"tracking.wandb": "offline", "tracking.histogram_every_steps": 0},
    "all": {"tracking.wandb": "offline"},
}


def step_time(model: str, arm: str, steps: int) -> tuple[float, str]:
    """Train; return seconds a step and the SHA-256 of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, object] = {
            "data.samples": 100,
            "train.max_steps": steps,
            "train.eval_every_steps": 100_000_000,
            "train.keep": "last",
            "tracking.replies_at_evaluations": 0,
            "tracking.held_out_replies": 0,
            "generate.max_new_tokens": 1,
            "runtime.output_dir": folder,
        }
        result = train(load_run_config(model, overrides=common | ARMS[arm]))
        weights = (Path(result.model_dir) / "model.safetensors").read_bytes()
    return result.metrics["train/seconds"] / steps, hashlib.sha256(weights).hexdigest()


def main() -> None:
    """Print a table, one row for each model and arm, and write it as JSON beside if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    words = parser.parse_args()
    table = []
    print(
        "| model | tracking | ms a step | ratio to off | least - most | same weights |\n"
        "|---|---|---:|---:|---|---|"
    )
    for model in words.models:
        rounds = []
        for number in range(words.rounds + 1):
            arms = list(ARMS)[number % 3 :] + list(ARMS)[: number % 3]
            rounds.append({arm: step_time(model, arm, words.steps) for arm in arms})
        del rounds[0]  # warms up
        for arm in ARMS:
            ratios = [r[arm][0] / r["off"][0] for r in rounds]
            row = {
                "model": model,
                "arm": arm,
                "step_s": median(r[arm][0] for r in rounds),
                "ratios": ratios,
                "same_weights": all(r[arm][1] == r["off"][1] for r in rounds),
            }
            table.append(row)
            print(
                f"| {model} | {arm} | {row['step_s'] * 1e3:.1f} | {median(ratios):.3f} | "
                f"{min(ratios):.3f} - {max(ratios):.3f} | {'yes' if row['same_weights'] else 'no'} |",
                flush=True,
            )
    if words.json:
        words.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
