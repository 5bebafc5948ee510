"""What does Muon's iteration cost in float32 and in bfloat16? Steps both in turn on the matrices of a model.

python benchmarks/muon_precision.py custom-nano custom-tiny
python benchmarks/muon_precision.py custom-small --rounds 3 --device cuda
"""

import argparse
import time
from statistics import median
from typing import Any

import torch

from dialogkit.config.load import load_run_config
from dialogkit.engine.optimizer import muon_with_adamw
from dialogkit.models.build import build_model
from dialogkit.models.tokenizer import load_tokenizer
from dialogkit.system.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def seconds_of(optimizer: Any, device: str) -> float:
    """Return the seconds of a step of Muon alone, without AdamW's."""
    muon = optimizer.optimizers[0]
    started = time.perf_counter()
    muon.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, medians of {words.rounds} rounds that take turns")
    for name in words.models:
        config = load_run_config(name)
        model = build_model(config.model, load_tokenizer(config.model), seed=1, dropout=0.0).to(words.device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers = {p: muon_with_adamw(model, [], config.train, p) for p in PRECISIONS}
        taken: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
        for _ in range(words.rounds):
            for precision, optimizer in optimizers.items():
                taken[precision].append(seconds_of(optimizer, words.device))
        fp32, bf16 = (median(taken[precision]) for precision in PRECISIONS)
        print(f"{name:14} fp32 {fp32:8.3f} s   bf16 {bf16:8.3f} s   fp32 is {bf16 / fp32:.2f} times as fast")


if __name__ == "__main__":
    main()
