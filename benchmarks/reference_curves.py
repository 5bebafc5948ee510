"""How does the loss of each custom model go with the preset `test`? Writes the bands that `train` compares with.

python benchmarks/reference_curves.py custom-nano custom-tiny custom-small --seeds 1 2 3 4 5
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean, stdev

from dialogkit.config.load import load_run_config
from dialogkit.services.train import train
from dialogkit.services.training.loss_bands import CURVES, WINDOW_STEPS, Band, affecting_loss
from dialogkit.tracking.run_dir import RunDir

PRESET = "test"


def losses_of(model: str, seed: int) -> tuple[list[float], dict[str, object]]:
    """Train once; return the loss of each step, and the settings that decided it."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_run_config(
            model,
            preset=PRESET,
            overrides={
                "train.seed": seed,
                "train.log_every_steps": 1,
                "train.eval_every_steps": 100_000_000,
                "tracking.wandb": "disabled",
                "tracking.report": False,
                "tracking.histogram_every_steps": 0,
                "runtime.output_dir": folder,
                "generate.test_prompts": [],
            },
        )
        result = train(config)
        points = RunDir(Path(result.run_dir)).metrics()
    return [point["train/loss"] for point in points if "train/loss" in point], affecting_loss(config)


def main() -> None:
    """Measure the models that are named, and leave the bands of others as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    words = parser.parse_args()
    bands = json.loads(CURVES.read_bytes()) if CURVES.exists() else {}
    for model in words.models:
        settings: dict[str, object] = {}
        curves = []
        for seed in words.seeds:
            losses, settings = losses_of(model, seed)
            starts = range(0, len(losses) - WINDOW_STEPS + 1, WINDOW_STEPS)
            curves.append([fmean(losses[start : start + WINDOW_STEPS]) for start in starts])
        windows = list(zip(*curves, strict=True))
        margins = [4 * stdev(window) + 0.2 for window in windows]
        band = Band(
            settings=settings,
            steps=[WINDOW_STEPS * (number + 1) for number in range(len(windows))],
            low=[round(fmean(window) - margin, 3) for window, margin in zip(windows, margins, strict=True)],
            high=[round(fmean(window) + margin, 3) for window, margin in zip(windows, margins, strict=True)],
        )
        bands[f"{model}/{PRESET}"] = band.model_dump()
        print(f"{model}: {', '.join(f'{low} - {high}' for low, high in zip(band.low, band.high, strict=True))}")
        CURVES.write_text(json.dumps(bands, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
