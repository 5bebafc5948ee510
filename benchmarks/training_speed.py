"""How fast is training, side by side with what one would use instead?

python benchmarks/training_speed.py custom-tiny --batch-size 2
python benchmarks/training_speed.py custom-small --batch-size 4 --rows 40 --rounds 3 --json results.json
python benchmarks/training_speed.py custom-tiny --arms dialogkit-default nanogpt --nanogpt FOLDER

Arms take turns, each in a process of its own, and each round starts with another one. The first five train the
same initial weights for one epoch on the same dialogs, with the same supervised tokens, optimizer (AdamW) and
learning rate. A useful token is one of a dialog; padding does not count. Arms:

dialogkit   padding-free, attention inside each dialog, chunked loss, bf16 where the CPU has it
plain       HF Trainer as most tutorials write it: padded to 512, float32
expert      HF Trainer with dynamic padding and bf16
trl         TRL's SFTTrainer, bf16, padded and packed, in an environment of its own (made in --trl-env)
loop        a bare loop as nanoGPT has it: dialogs joined and cut into blocks, without regard to where one begins,
            bf16, fused AdamW, compiled on a GPU before its clock starts; runs by default where there is a GPU

Only where --arms names them:

dialogkit-default   the first arm with the optimizer, rate and weight decay that ship with the model (Muon)
nanogpt             karpathy/nanoGPT, GPT-2 with AdamW; its clone is in --nanogpt
nanogpt-compiled    the same, compiled, as its train.py has it by default
nanochat            karpathy/nanochat, compiled, with its Muon and AdamW; its clone is in --nanochat
litgpt              LitGPT's Llama with AdamW, compiled, in an environment of its own (made in --litgpt-env)

The last four (peers.py) are models of their own with our vocabulary, layers, width and heads, so that their
parameters and losses differ from ours. They train on each token of random blocks of 256, about as many a step as
the other arms, and each counts as useful. Their first step, in which they compile, is before the clock starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from peers import CLONED, PEERS, train_peer

LONGEST = 512
ARMS = ("dialogkit", "plain", "expert", "trl", "loop")
ON_REQUEST = ("dialogkit-default", *PEERS)
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def prepare(words: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Save the initial model and the tokenized dialogs that all arms train on; return their token counts."""
    import torch

    from dialogkit.config.load import load_run_config
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.services.training.setup import TrainingSetup
    from dialogkit.services.training.summary import flops_per_token

    config = load_run_config(words.model, overrides=overrides(words))
    setup = TrainingSetup(config, resolve_runtime(config.runtime))
    with (folder / "rows.jsonl").open("w") as file:
        for index in range(len(setup.data.train)):
            dialog = setup.data.train[index]
            ids, learned = dialog["input_ids"].tolist(), dialog["supervised"].tolist()
            learned[0] = False
            labels = [token if learn else -100 for token, learn in zip(ids, learned, strict=True)]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    setup.model.save_pretrained(folder / "model")
    setup.tokenizer.save(folder / "model")
    (folder / "shape.json").write_text(json.dumps(shape(setup.model.config, setup.runtime.precision)))
    info = setup.model_info
    return {
        "dialogs": len(setup.data.train),
        "tokens": int(setup.data.train.lengths.sum()),
        "supervised_tokens": setup.data.train.supervised_tokens,
        "parameters": info["parameters"],
        "flops_per_token": flops_per_token(setup),
        "threads": torch.get_num_threads(),
    }


def shape(config: Any, precision: str) -> dict[str, Any]:
    """Return what the peers have in common with a model, from its HF config."""
    return {
        "vocabulary": config.vocab_size,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "mlp_width": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "tied": config.tie_word_embeddings,
        "precision": precision,
    }


def overrides(words: argparse.Namespace) -> dict[str, Any]:
    """Return what the arms have in common, as settings."""
    return {
        "data.dataset": words.dataset,
        "data.samples": words.rows,
        "data.max_tokens": LONGEST,
        "train.batch_size": words.batch_size,
        "train.epochs": 1.0,
        "train.schedule": "constant",
        "train.warmup_fraction": 0.0,
        "train.learning_rate": words.learning_rate,
        "train.optimizer": "adamw",
        "train.weight_decay": 0.0,
        "train.log_every_steps": 1,
        "train.eval_every_steps": 100_000_000,
        "train.keep": "last",
        "tracking.histogram_every_steps": 0,
    }


def train_dialogkit(words: argparse.Namespace) -> dict[str, Any]:
    """Train with dialogkit's engine, and in its default arm with the optimizer of the catalogue."""
    from dialogkit.config.load import load_run_config
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.engine.fit import fit
    from dialogkit.services.training.setup import TrainingSetup

    settings = overrides(words)
    if words.arm == "dialogkit-default":
        for name in ("optimizer", "learning_rate", "weight_decay"):
            del settings[f"train.{name}"]
    config = load_run_config(words.model, overrides=settings)
    setup = TrainingSetup(config, resolve_runtime(config.runtime))
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            setup.fit_task(Path(folder)),
            lambda step, metrics: losses.append(metrics["train/loss"]) if "train/loss" in metrics else None,
        )
    return {"seconds": fitted.train_s, "losses": losses}


def train_hf(words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with HF's or TRL's trainer; imports nothing of dialogkit."""
    import time

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    trained_s = [0.0]

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            trained_s[0] = time.perf_counter() - self.started

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = LONGEST if words.arm == "plain" else max(len(row["input_ids"]) for row in batch)

        def padded(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in batch])

        mask = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in batch]
        return {
            "input_ids": padded("input_ids", tokenizer.pad_token_id),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    common = {
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": words.batch_size,
        "learning_rate": words.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "bf16": words.arm != "plain",
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 42,
    }
    if words.arm in ("plain", "expert"):
        from transformers import Trainer, TrainingArguments

        trainer = Trainer(model, TrainingArguments(**common), collate, rows, callbacks=[Watch()])
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

        packed = words.arm == "trl-packed"
        config = SFTConfig(**common, packing=packed, max_length=LONGEST, gradient_checkpointing=False)
        trainer = SFTTrainer(
            model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": trained_s[0], "losses": losses}


def train_loop(words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train in a bare loop; imports nothing of dialogkit."""
    import time

    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    ids, labels = ([value for row in rows for value in row[name]] for name in ("input_ids", "labels"))
    missing = -len(ids) % LONGEST
    blocks = torch.tensor([ids + [0] * missing, labels + [-100] * missing]).view(2, -1, LONGEST).to(device)
    # As many tokens a step as the other arms have.
    size = max(1, round(words.batch_size * len(ids) / len(rows) / LONGEST))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).to(device)
    compiled = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=words.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    torch.manual_seed(42)
    batches: Any = torch.split(torch.randperm(blocks.shape[1]), size)

    def loss_of(batch: torch.Tensor) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return compiled(input_ids=blocks[0, batch], labels=blocks[1, batch], use_cache=False).loss

    loss_of(batches[0]).backward()
    optimizer.zero_grad()
    losses = []
    synchronize(device)
    started = time.perf_counter()
    for batch in batches:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    synchronize(device)
    return {"seconds": time.perf_counter() - started, "losses": [float(loss) for loss in losses]}


def synchronize(device: str) -> None:
    """Wait for what a GPU has to do."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(dtype_name: str) -> float:
    """Return the best rate of a large matrix product here, in operations per second."""
    import time

    import torch

    dtype = getattr(torch, dtype_name)
    device, rows, width = ("cuda", 8192, 8192) if torch.cuda.is_available() else ("cpu", 1024, 4096)
    a, b = (torch.randn(rows, columns, device=device).to(dtype) for columns in (rows, width))
    out = torch.empty(rows, width, dtype=dtype, device=device)
    best = 0.0
    for _ in range(12):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b, out=out)
        synchronize(device)
        best = max(best, 4 * 2 * rows * rows * width / (time.perf_counter() - started))
    return best


def peak_bytes() -> int:
    """Return the most memory that this process has held: of the GPU, where there is one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_arm(words: argparse.Namespace, arm: str, folder: Path) -> dict[str, Any]:
    """Run one arm in a process of its own; return seconds, losses and its peak memory."""
    tool = arm.split("-")[0]
    python = getattr(words, f"{tool}_env") / "bin/python" if tool in ("trl", "litgpt") else sys.executable
    command = [str(python), __file__, words.model, "--arm", arm, "--folder", str(folder)]
    for name in ("batch_size", "rows", "learning_rate", "dataset", *({tool} & CLONED.keys())):
        command += [f"--{name.replace('_', '-')}", str(getattr(words, name))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "disabled"})
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def make_env(folder: Path, *packages: str) -> None:
    """Make the environment in which another tool runs, if it is not there."""
    if not (folder / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *packages], check=True)


def compare(words: argparse.Namespace) -> None:
    """Let the arms take turns; print the medians and their ratios to ours."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        work = prepare(words, folder)
        arms = [arm for arm in words.arms for arm in (("trl-padded", "trl-packed") if arm == "trl" else (arm,))]
        if "trl" in words.arms:
            make_env(words.trl_env, "--constraint", str(CONSTRAINTS), "torch", "trl")
        if "litgpt" in words.arms:
            # It needs an older huggingface_hub than the constraints have, but the same torch.
            pinned = CONSTRAINTS.read_text().splitlines()
            make_env(words.litgpt_env, *(line for line in pinned if line.startswith("torch==")), "litgpt")
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(words.rounds):
            turn = arms[number % len(arms) :] + arms[: number % len(arms)]
            rounds.append({arm: run_arm(words, arm, folder) for arm in turn})
            for figures in rounds[-1].values():
                figures["speed"] = figures.get("tokens", work["tokens"]) / figures["seconds"]
            shown = ", ".join(f"{arm} {rounds[-1][arm]['speed']:,.0f}" for arm in arms)
            print(f"round {number + 1}: {shown} tokens/s", file=sys.stderr, flush=True)
        # Without bf16 arithmetic a single product of the measurement takes half a minute.
        precision = json.loads((folder / "shape.json").read_text())["precision"]
        used = "bfloat16" if precision == "bf16" else "float32"
        rates = {name: matmul_rate(name) for name in dict.fromkeys(("float32", used))}
    print(
        f"{words.model}, {work['dialogs']} dialogs, {work['tokens']:,} tokens, batch {words.batch_size}, "
        f"{work['threads']} threads; matrix products "
        f"{' and '.join(f'{rate / 1e9:.0f} ({name})' for name, rate in rates.items())} GFLOP/s\n"
    )
    print(
        f"| arm | tokens/s | dialogkit is faster by | peak MiB | of the {used} rate | first loss | last 5 losses |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    table = []
    for arm in arms:
        speed = median(r[arm]["speed"] for r in rounds)
        ratios = [r["dialogkit"]["speed"] / r[arm]["speed"] for r in rounds]
        peak = median(r[arm]["peak_bytes"] for r in rounds)
        losses = rounds[0][arm]["losses"]
        flops = rounds[0][arm].get("flops_per_token", work["flops_per_token"])
        row = {
            "arm": arm,
            "tokens_per_s": speed,
            "ratio": median(ratios),
            "ratios": ratios,
            "peak_bytes": peak,
            "utilisation": speed * flops / rates[used],
            "losses": losses,
        }
        table.append(row)
        tail = losses[-5:]
        print(
            f"| {arm} | {speed:,.0f} | {row['ratio']:.2f} | {peak / 2**20:,.0f} | {row['utilisation']:.0%} | "
            f"{losses[0]:.4f} | {sum(tail) / len(tail):.4f} |"
        )
    if words.json:
        words.json.write_text(
            json.dumps({"model": words.model, "work": work, "rates": rates, "rows": table}, indent=1)
        )


def main() -> None:
    """Compare the arms, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", default="starter", help="as `dialogkit train` takes it")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--arms", nargs="+", choices=(*ARMS, *ON_REQUEST), help="default: the first that suit the machine"
    )
    for tool in ("trl", "litgpt"):
        parser.add_argument(
            f"--{tool}-env", type=Path, default=Path(tempfile.gettempdir()) / f"dialogkit-bench-{tool}"
        )
    for tool, address in CLONED.items():
        parser.add_argument(f"--{tool}", type=Path, metavar="FOLDER", help=f"made by git clone {address} FOLDER")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.arm is None:
        if words.arms is None:
            import torch

            words.arms = ARMS if torch.cuda.is_available() else ARMS[:-1]
        # All others are compared with it.
        words.arms = list(dict.fromkeys(["dialogkit", *words.arms]))
        for tool, address in CLONED.items():
            if any(arm.startswith(tool) for arm in words.arms) and not getattr(words, tool):
                parser.error(f"{tool} needs --{tool} FOLDER, made by: git clone {address} FOLDER")
        compare(words)
        return
    if words.arm.startswith("dialogkit"):
        figures = train_dialogkit(words)
    elif words.arm in PEERS:
        figures = train_peer(words, words.folder)
    else:
        figures = (train_loop if words.arm == "loop" else train_hf)(words, words.folder)
    print("\n" + json.dumps({**figures, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
