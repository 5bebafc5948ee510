"""What is learned in five minutes, against compiled nanoGPT and nanochat on the same dialogs?

python benchmarks/minutes_against_peers.py custom-tiny --dataset FILE --nanogpt FOLDER --nanochat FOLDER

Ours is `dialogkit train MODEL --preset production --budget 300s --batch-size 32`, a process from its start to the
saved model. The peers (peers.py) have our vocabulary, layers, width and heads, and train on random blocks of the
same training dialogs, 2,048 tokens a step. Their clock starts when they are compiled and stops before they are
scored. As they are given a time in place of a number of steps, their rates follow the time that is gone: nanoGPT's
rise to 1e-3 in a tenth of it and fall as a cosine to 1e-4; nanochat's stay, and fall linearly to 5% in the last
65%, and its Muon's momentum rises and falls as in its base_train.py.

All are scored on the same held-out answers, in float32, each dialog alone. Dialogs are cut to the 256 tokens that
a peer reads.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import BLOCK, CLONED, Peer, Shape, compile_ahead, nanochat, nanogpt, stepper
from training_speed import shape

BLOCKS = 8
ARMS = ("nanogpt-compiled", "nanochat")


def settings(words: argparse.Namespace) -> dict[str, Any]:
    """Return what decides about the dialogs."""
    return {"data.dataset": words.dataset, "data.max_tokens": BLOCK}


def prepare(words: argparse.Namespace, folder: Path) -> None:
    """Save the tokens of the training dialogs, the held-out dialogs and the shape of our model."""
    import torch

    from dialogkit.config.load import load_run_config
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.services.training.setup import TrainingSetup

    config = load_run_config(words.model, preset="production", overrides=settings(words))
    setup = TrainingSetup(config, resolve_runtime(config.runtime))
    torch.save(torch.from_numpy(setup.data.train.ids).long(), folder / "tokens.pt")
    held_out = []
    for index in range(len(setup.data.evaluation)):
        dialog = setup.data.evaluation[index]
        learned = dialog["supervised"].tolist()
        learned[0] = False
        ids = dialog["input_ids"].tolist()
        held_out.append({"ids": ids, "learned": learned, "bytes": dialog["answer_bytes"]})
    (folder / "held_out.json").write_text(
        json.dumps({"dialogs": held_out, "ends": list(setup.tokenizer.stop_ids)})
    )
    (folder / "shape.json").write_text(json.dumps(shape(setup.model.config, setup.runtime.precision)))


def set_rates(peer: Peer, arm: str, rates: list[float], gone: float, step: int) -> None:
    """Set the rates of a step, when a fraction of the time is gone."""
    for group, rate in zip(peer.optimizer.param_groups, rates, strict=True):
        if arm == "nanochat":
            left = min(1.0, (1 - gone) / 0.65)
            group["lr"] = rate * (left + (1 - left) * 0.05)
            if group["kind"] == "muon":
                rising = 0.85 + min(step, 400) / 400 * 0.12
                group["momentum"] = rising if step < 400 or left == 1.0 else 0.90 + 0.07 * left
        elif gone < 0.1:
            group["lr"] = rate * max(gone, 1e-3) / 0.1
        else:
            group["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * (gone - 0.1) / 0.9)))


def train_peer(words: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train a peer for its time; return its steps, tokens and bits per byte."""
    import torch

    torch.manual_seed(words.seed)
    tokens = torch.load(folder / "tokens.pt")
    like = Shape(**json.loads((folder / "shape.json").read_text()))
    peer = nanochat(words, like, "cpu", BLOCKS * BLOCK) if words.arm == "nanochat" else nanogpt(words, like, "cpu")
    step = stepper(peer, words.arm, tokens, BLOCKS, like.precision)
    rates = [group["lr"] for group in peer.optimizer.param_groups]
    compile_ahead(step, peer.optimizer)
    started, steps = time.perf_counter(), 0
    while (gone := (time.perf_counter() - started) / words.seconds) < 1:
        set_rates(peer, words.arm, rates, gone, steps)
        step()
        steps += 1
    seconds = time.perf_counter() - started
    bits = bits_per_byte(peer, words.arm, json.loads((folder / "held_out.json").read_text()))
    return {"seconds": seconds, "steps": steps, "tokens": steps * BLOCKS * BLOCK, "bits_per_byte": bits}


def bits_per_byte(peer: Peer, arm: str, held_out: dict[str, Any]) -> float:
    """Return the bits for each byte of the held-out answers, without the ends of turns, as `evaluate` has it."""
    import torch

    ends = torch.tensor(held_out["ends"])
    nats, size = 0.0, 0
    peer.model.eval()
    with torch.no_grad():
        for dialog in held_out["dialogs"]:
            ids, learned = torch.tensor(dialog["ids"]), torch.tensor(dialog["learned"])
            # Without targets nanoGPT has logits of the last token alone; with targets nanochat has the loss alone.
            logits = peer.model(ids[None]) if arm == "nanochat" else peer.model(ids[None], ids[None])[0]
            losses = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[1:], reduction="none")
            nats += float(losses[learned[1:] & ~torch.isin(ids[1:], ends)].double().sum())
            size += dialog["bytes"]
    return nats / math.log(2) / size


def ours(words: argparse.Namespace, folder: str) -> dict[str, float]:
    """Return what dialogkit reaches in its time."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "dialogkit", "train", words.model, "--preset", "production", "--no-cuda"]
    command += ["--budget", f"{words.seconds}s", "--batch-size", str(words.batch_size), "--wandb", "disabled"]
    command += [part for name, value in settings(words).items() for part in ("--set", f"{name}={value}")]
    command += ["--set", f"train.seed={words.seed}", "--output-dir", folder, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    metrics = json.loads(done.stdout)["data"]["metrics"]
    return {
        "seconds": time.perf_counter() - started,
        "steps": metrics["train/steps"],
        "tokens": metrics["train/tokens"],
        "bits_per_byte": metrics["final/bits_per_byte"],
    }


def main() -> None:
    """Print a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32, help="dialogs in a step of ours")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="nanoGPT's")
    parser.add_argument("--seed", type=int, default=42)
    for name, address in CLONED.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"made by git clone {address} FOLDER")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.arm:
        print(json.dumps(train_peer(words, words.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        prepare(words, Path(temporary))
        print("| arm | seconds | steps | tokens | bits/byte |\n|---|---:|---:|---:|---:|")
        for arm in ("dialogkit", *ARMS):
            if arm == "dialogkit":
                row = ours(words, temporary)
            else:
                command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm, "--folder", temporary]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = json.loads(done.stdout.splitlines()[-1])
            figures = f"{row['seconds']:,.0f} | {row['steps']:,.0f} | {row['tokens']:,.0f}"
            print(f"| {arm} | {figures} | {row['bits_per_byte']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
