"""What does LoRA save? Fine-tunes a model in full and with LoRA, each in a process of its own, and compares.

python benchmarks/lora.py ./a-model-folder --dataset FILE --steps 20
python benchmarks/lora.py gpt2-small --ranks 8 64
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Arm(NamedTuple):
    """What one run took and came to."""

    trained: int
    peak_bytes: int
    checkpoint_bytes: int
    tokens_per_s: float
    nats: float


def measure(words: argparse.Namespace, *more: str) -> Arm:
    """Train once and return what it took."""
    settings = [
        f"train.max_steps={words.steps}",
        "train.keep=last",
        f"data.eval_max_dialogs={words.held_out}",
        "tracking.wandb=disabled",
        "tracking.report=false",
        "generate.max_new_tokens=1",
        *words.sets,
        *more,
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "dialogkit", "train", words.model, "--dataset", words.dataset, "--json"),
            *("--output-dir", folder, "--name", "arm"),
            *(word for setting in settings for word in ("--set", setting)),
        ]
        with Path(folder, "told").open("w+b") as told:
            process = subprocess.Popen(command, stdout=told, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            told.seek(0)
            if os.waitstatus_to_exitcode(status):
                raise SystemExit(told.read().decode())
        run = Path(folder, "runs", "arm")
        record = json.loads((run / "run.json").read_bytes())
        checkpoint = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return Arm(
            trained=record["model"]["trainable_parameters"],
            peak_bytes=usage.ru_maxrss * 1024,
            checkpoint_bytes=sum(path.stat().st_size for path in checkpoint.iterdir()),
            tokens_per_s=record["metrics"]["perf/tokens_per_s"],
            nats=record["metrics"]["final/nats_per_token"],
        )


def main() -> None:
    """Print a table, one row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", default="starter")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME=VALUE")
    words = parser.parse_args()
    arms = {"full": [], **{f"LoRA, rank {r}": ["train.method=lora", f"train.lora_rank={r}"] for r in words.ranks}}
    print("| arm | trained parameters | peak memory, MiB | checkpoint, MiB | tokens/s | held-out nats/token |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for name, settings in arms.items():
        arm = measure(words, *settings)
        print(
            f"| {name} | {arm.trained:,} | {arm.peak_bytes / 2**20:,.0f} | {arm.checkpoint_bytes / 2**20:,.1f} "
            f"| {arm.tokens_per_s:,.0f} | {arm.nats:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
