"""How many operations does a step of training launch on a GPU? Counted on fake tensors, so that none is needed.

python benchmarks/operations.py custom-medium --dialogs 8 64

A GPU takes microseconds for each, however small it is. Counted are torch's operations that compute something, in
bf16 on a GPU of compute capability 8.0, for dialogs of 60 to 260 tokens. Needs g++ or clang++, and torch
without CUDA.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fake_cuda import operations_of_a_step


def main() -> None:
    """Print a row for each number of dialogs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dialogs", type=int, nargs="+", default=[8, 64], help="dialogs of a step")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    words = parser.parse_args()
    counted = {dialogs: operations_of_a_step(words.model, dialogs) for dialogs in words.dialogs}
    parts = list(counted[words.dialogs[0]])
    print(f"| dialogs a step | {' | '.join(parts)} | all |\n|{'---:|' * (len(parts) + 2)}")
    for dialogs, of_parts in counted.items():
        cells = [dialogs, *of_parts.values(), sum(of_parts.values())]
        print("| " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    if words.json:
        words.json.write_text(json.dumps(counted), encoding="utf-8")


if __name__ == "__main__":
    main()
