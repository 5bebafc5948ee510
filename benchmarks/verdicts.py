"""What does an evaluation say of a good model? Trains one with several seeds, and lists each remark about it.

python benchmarks/verdicts.py --samples 16000 --epochs 1

A remark is a fault that `evaluate` names. A model that learned its dialogs well should have none that is not true:
one that only some seeds have is worth a look.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from dialogkit.api.inference import evaluate
from dialogkit.config.load import load_run_config
from dialogkit.services.evaluate import EvaluateRow
from dialogkit.services.train import train


def judged(words: argparse.Namespace, seed: int, folder: str) -> EvaluateRow:
    """Train once, and return the evaluation of the model."""
    settings: dict[str, Any] = {
        "data.dataset": words.dataset,
        "data.samples": words.samples,
        "train.epochs": words.epochs,
        "train.batch_size": words.batch_size,
        "train.seed": seed,
        "tracking.wandb": "disabled",
        "tracking.report": False,
        "tracking.histogram_every_steps": 0,
        "runtime.output_dir": folder,
        "generate.test_prompts": [],
    }
    result = train(load_run_config(words.model, overrides=settings))
    (row,) = evaluate(result.run_dir, output=folder).rows
    return row


def main() -> None:
    """Print a row for each seed and the remarks below it, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="custom-nano")
    parser.add_argument("--dataset", default="smalltalk")
    parser.add_argument("--samples", type=int, default=16_000, help="dialogs to train on")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over them")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--json", type=Path, help="write the rows here")
    words = parser.parse_args()
    print("| seed | bits/byte | prompt gain | hits@1 | right answers | chrF | remarks |", flush=True)
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows: list[EvaluateRow] = []
    for seed in words.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row := judged(words, seed, folder))
        figures = (
            _written(row.bits_per_byte, ".4f"),
            _written(row.prompt_gain, ".4f"),
            _written(row.hits_at_1, ".1%"),
            _written(row.right_answers, ".1%"),
            _written(row.chrf, ".1f"),
        )
        print(f"| {seed} | {' | '.join(figures)} | {len(row.remarks)} |", flush=True)
    said = Counter(_kind(remark) for row in rows for remark in row.remarks)
    print("\nremarks, without their figures, by the number of seeds:")
    for kind, seeds in said.most_common():
        print(f"  {seeds} of {len(rows)}: {kind}")
    for seed, row in zip(words.seeds, rows, strict=True):
        print(f"seed {seed}:", *(row.remarks or ["none of the faults"]), sep="\n  ", flush=True)
    if words.json:
        written = [{"seed": s, **row.model_dump(mode="json")} for s, row in zip(words.seeds, rows, strict=True)]
        words.json.write_text(json.dumps(written, ensure_ascii=False, indent=1))


def _written(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _kind(remark: str) -> str:
    """Return the beginning of a remark without its figures, which is the same for all seeds."""
    return re.sub(r"\d[\d.,]*%?", "N", re.split("[:;,(]", remark)[0]).strip()


if __name__ == "__main__":
    main()
