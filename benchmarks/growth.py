"""Do large files need more memory, or more time for a row? Inspects and prepares JSONL files of several sizes.

python benchmarks/growth.py --rows 100000 250000 500000

The rows are made of random words, about 100 characters each. Every command runs in a process of its own; the dry
run prepares the dialogs, first from the file and then from its cache.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (Path(__file__).resolve().parents[1] / "docs/training.md").read_text(encoding="utf-8").split()


def write_rows(path: Path, count: int) -> None:
    """Write a file of so many rows; a smaller one is the beginning of a larger one."""
    words, chance = [word for word in WORDS if word.isalpha()][:800], random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            asked, answer = (" ".join(chance.choices(words, k=k)) for k in (5, 4))
            row = {"instruction": asked, "input": "", "output": f"{answer} {number}"}
            file.write(json.dumps(row) + "\n")


def measure(words: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; return its seconds and the MiB of its process at most."""
    environment = {**os.environ, "DIALOGKIT_CACHE": str(folder / "cache"), "WANDB_MODE": "disabled"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "dialogkit", *words]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    problem = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed:\n{problem.decode()[-2000:]}")
    return time.perf_counter() - started, used.ru_maxrss / 1024


def main() -> None:
    """Print a table of seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--model", default="custom-pico")
    arguments = parser.parse_args()
    print("| rows | command | seconds | us a row | MiB |\n|---:|---|---:|---:|---:|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder / "rows.jsonl", rows)
            train = ["train", arguments.model, "--dataset", "rows.jsonl", "--samples", str(rows), "--dry-run"]
            commands = {
                "`data inspect`": ["data", "inspect", "rows.jsonl"],
                "`train --dry-run`": train,
                "the same, from the cache": train,
            }
            for what, words in commands.items():
                seconds, peak = measure(words, folder)
                shown = f"{seconds:.1f} | {seconds / rows * 1e6:.0f} | {peak:,.0f}"
                print(f"| {rows:,} | {what} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
