"""Which learning rate learns most? Trains a model once for each rate and compares the held-out loss.

python benchmarks/learning_rate.py custom-tiny --rates 1e-3 3e-3 1e-2
python benchmarks/learning_rate.py custom-small --preset development --dataset FILE --rates 3e-4 1e-3
python benchmarks/learning_rate.py ./a-model-folder --rates 1e-5 5e-5 --set train.max_steps=100
"""

import argparse
import json
import tempfile
from pathlib import Path

from dialogkit.config.load import load_run_config, parse_sets
from dialogkit.errors import DivergedError
from dialogkit.services.train import train


def main() -> None:
    """Print a table, one row for each rate, and write it as JSON beside if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--preset", default="test")
    parser.add_argument("--dataset", default="starter")
    parser.add_argument("--rates", nargs="+", type=float, required=True)
    parser.add_argument("--warmups", nargs="+", type=float, default=[0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path, help="write the table here")
    words = parser.parse_args()
    rows = []
    print(
        "| learning rate | warm-up | seed | held-out nats/token | bits/byte |\n|---|---|---|---|---|", flush=True
    )
    for seed in words.seeds:
        for warmup in words.warmups:
            for rate in words.rates:
                with tempfile.TemporaryDirectory() as folder:
                    config = load_run_config(
                        words.model,
                        preset=words.preset,
                        overrides={
                            "data.dataset": words.dataset,
                            "train.learning_rate": rate,
                            "train.warmup_fraction": warmup,
                            "train.seed": seed,
                            "train.keep": "last",
                            "train.eval_every_steps": 100_000_000,
                            "tracking.wandb": "disabled",
                            "runtime.output_dir": folder,
                            "generate.max_new_tokens": 1,
                            **parse_sets(words.sets),
                        },
                    )
                    try:
                        metrics = train(config).metrics
                        nats, bits = metrics["final/nats_per_token"], metrics["final/bits_per_byte"]
                    except DivergedError:
                        nats = bits = float("inf")
                rows.append({"rate": rate, "warmup": warmup, "seed": seed, "nats": nats, "bits_per_byte": bits})
                print(f"| {rate:g} | {warmup:g} | {seed} | {nats:.4f} | {bits:.4f} |", flush=True)
    if words.json:
        words.json.write_text(json.dumps({"model": words.model, "preset": words.preset, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
