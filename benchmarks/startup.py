"""How long do commands take from the start of their process, and what do they load?

python benchmarks/startup.py
python benchmarks/startup.py --rounds 9 --dataset FILE --json results.json

The first commands need no model; then a whole run, and replies, each with the share of its imports; with
`--dataset` also its preparation, the first time and from the cache; with `--runs` also a list of so many copies
of that run. Every command runs in a process of its own, in turn, and the medians are printed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

LIGHT = ("--help", "models list", "config show custom-tiny", "runs list", "data inspect rows.jsonl")
TRAIN = "train custom-nano --preset test --samples 20 --no-cuda"
HEAVY = (
    f"{TRAIN} --wandb disabled",
    f"{TRAIN} --wandb offline",
    "generate custom-nano --prompt Hello! --max-new-tokens 1",
)
PREPARE = """
import sys, time
from pathlib import Path
from dialogkit.config.data import DataConfig
from dialogkit.config.load import load_run_config
from dialogkit.data.prepare import prepare_data
from dialogkit.models.tokenizer import load_tokenizer
tokenizer = load_tokenizer(load_run_config("custom-tiny").model)
for _ in range(2):
    started = time.perf_counter()
    prepare_data(DataConfig(dataset=sys.argv[1]), tokenizer, context=1024, cache=Path(sys.argv[2]))
    print(time.perf_counter() - started)
"""


def run(words: str, *options: str, cwd: Path) -> tuple[float, str]:
    """Run a command; return its seconds and what it wrote to stderr."""
    started = time.perf_counter()
    environment = {**os.environ, "WANDB_MODE": ""}
    command = [sys.executable, *options, "-m", "dialogkit", *words.split()]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{words} failed:\n{done.stderr[-2000:]}")
    return seconds, done.stderr


def copy_runs(output: Path, count: int) -> None:
    """Copy what a list of runs reads of one of them."""
    run = next((output / "runs").iterdir())
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for number in range(count):
        copy = run.with_name(f"copy-{number:04}")
        copy.mkdir()
        created = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}+00:00"
        text = json.dumps({**record, "name": copy.name, "created": created})
        (copy / "run.json").write_text(text, encoding="utf-8")
        shutil.copy(run / "metrics.jsonl", copy)


def imports(words: str, cwd: Path) -> tuple[int, float, list[str]]:
    """Return how many modules a command imports, their seconds, and the top-level ones that take most."""
    own: dict[str, int] = {}
    number = 0
    for line in run(words, "-X", "importtime", cwd=cwd)[1].splitlines():
        if not line.startswith("import time:") or "self [us]" in line:
            continue
        microseconds, _, name = line.removeprefix("import time:").split("|")
        number += 1
        top = name.strip().split(".")[0]
        own[top] = own.get(top, 0) + int(microseconds)
    most = sorted(own, key=lambda top: -own[top])[:4]
    return number, sum(own.values()) / 1e6, [f"{top} {own[top] / 1e6:.2f}" for top in most]


def main() -> None:
    """Print a table of commands, and write it as JSON beside if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", help="a file that is prepared as well")
    parser.add_argument("--runs", type=int, default=0, help="copies of a run to list")
    parser.add_argument("--json", type=Path, help="write the figures here")
    words = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows_of_50 = (json.dumps({"prompt": f"What is {n} plus 1?", "response": str(n + 1)}) for n in range(50))
        (folder / "rows.jsonl").write_text("\n".join(rows_of_50))
        commands = (*LIGHT, *HEAVY)
        seconds: dict[str, list[float]] = {command: [] for command in commands}
        for number in range(words.rounds):
            for command in commands if number == 0 else commands[number % 7 :] + commands[: number % 7]:
                seconds[command].append(run(command, cwd=folder)[0])
        print("| command | seconds | modules | seconds of imports | most of them |\n|---|---:|---:|---:|---|")
        for command in commands:
            modules, import_s, most = imports(command, folder)
            rows.append(
                {"command": command, "seconds": seconds[command], "modules": modules, "import_s": import_s}
            )
            shown = f"{median(seconds[command]):.2f} | {modules:,} | {import_s:.2f} | {', '.join(most)}"
            print(f"| `{command}` | {shown} |", flush=True)
        if words.dataset:
            made = subprocess.run(
                [sys.executable, "-c", PREPARE, str(Path(words.dataset).resolve()), str(folder / "cache")],
                capture_output=True,
                text=True,
                check=True,
            )
            first, again = map(float, made.stdout.split())
            print(f"\npreparing {Path(words.dataset).name}: {first:.1f} s, {again:.2f} s from the cache")
            rows += [{"command": "prepare", "seconds": [first]}, {"command": "from the cache", "seconds": [again]}]
        if words.runs:
            copy_runs(folder / "models", words.runs)
            taken = [run("runs list", cwd=folder)[0] for _ in range(max(3, words.rounds))]
            print(
                f"\nlisting {words.runs:,} runs: {taken[0]:.2f} s the first time, then {median(taken[1:]):.2f} s"
            )
            rows.append({"command": "list many runs", "seconds": taken})
    if words.json:
        words.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
