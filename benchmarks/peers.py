"""The arms of training_speed.py that train with the code of others: nanoGPT, nanochat and LitGPT.

A peer brings its model class, its initial weights, its loss and its optimizer. It gets our vocabulary, and as many
layers, heads and dimensions as our model has; what it builds from these has a different number of parameters. It
trains as its own script does: on random blocks of the joined dialogs, without regard to where a dialog begins, and
on each of their tokens. It computes in bf16 where our arm does. All but plain nanoGPT are compiled. Rates stay as
they begin.

Imports nothing of dialogkit: LitGPT runs in an environment of its own.
"""

import argparse
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BLOCK = 256
CLONED = {"nanogpt": "https://github.com/karpathy/nanoGPT", "nanochat": "https://github.com/karpathy/nanochat"}
PEERS = ("nanogpt", "nanogpt-compiled", "nanochat", "litgpt")


@dataclass(frozen=True)
class Shape:
    """What a peer has in common with our model."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    tied: bool
    precision: str
    """`bf16` or `fp32`, as our arm decided."""


@dataclass(frozen=True)
class Peer:
    """A model and how its own script trains it."""

    model: "torch.nn.Module"
    loss: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    """Of the tokens and the ones that follow them, both in blocks."""
    optimizer: "torch.optim.Optimizer"
    clip: float | None
    """The norm to which gradients are clipped."""


def nanogpt(words: argparse.Namespace, shape: Shape, device: str) -> Peer:
    """Return nanoGPT as its train.py sets it up, but for bf16, which that uses on GPUs alone."""
    import torch

    sys.path.insert(0, str(words.nanogpt))
    code = importlib.import_module("model")
    config = code.GPTConfig(
        BLOCK, shape.vocabulary, shape.layers, shape.heads, shape.width, dropout=0.0, bias=False
    )
    model = code.GPT(config).to(device)
    optimizer = model.configure_optimizers(0.1, words.learning_rate, (0.9, 0.95), device)
    forward = torch.compile(model) if words.arm == "nanogpt-compiled" else model
    return Peer(model, lambda tokens, targets: forward(tokens, targets)[1], optimizer, clip=1.0)


def nanochat(words: argparse.Namespace, shape: Shape, device: str, tokens_per_step: int) -> Peer:
    """Return nanochat as its base_train.py sets it up, with Muon and its rates, scaled to the batch as there."""
    import torch

    # Read when its modules are imported. By itself it has float32 on every CPU.
    os.environ["NANOCHAT_DTYPE"] = {"bf16": "bfloat16", "fp32": "float32"}[shape.precision]
    sys.path.insert(0, str(words.nanochat))
    code = importlib.import_module("nanochat.gpt")
    # Full attention, as its runcpu.sh has it: sliding windows are slower without its kernel for GPUs.
    config = code.GPTConfig(
        BLOCK, shape.vocabulary, shape.layers, shape.heads, shape.kv_heads, shape.width, window_pattern="L"
    )
    with torch.device("meta"):
        model = code.GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    scale = math.sqrt(tokens_per_step / 2**19)
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, matrix_lr=0.02 * scale, scalar_lr=0.5 * scale
    )
    return Peer(model, torch.compile(model, dynamic=False), optimizer, clip=None)


def litgpt(words: argparse.Namespace, shape: Shape, device: str) -> Peer:
    """Return LitGPT's Llama as its pretrain.py and config_hub/pretrain/debug.yaml set it up."""
    import torch

    code = importlib.import_module("litgpt")
    pretrain, utils = importlib.import_module("litgpt.pretrain"), importlib.import_module("litgpt.utils")
    config = code.Config(
        name="peer",
        block_size=BLOCK,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_query_groups=shape.kv_heads,
        n_embd=shape.width,
        intermediate_size=shape.mlp_width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = code.GPT(config).to(device)
    fabric = importlib.import_module("lightning").Fabric(accelerator=device, devices=1)
    pretrain.initialize_weights(fabric, model, n_layer=shape.layers, n_embd=shape.width)
    if shape.tied:
        model.transformer.wte.weight = model.lm_head.weight
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=words.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )
    forward: Any = torch.compile(model)
    return Peer(
        model, lambda tokens, targets: utils.chunked_cross_entropy(forward(tokens), targets), optimizer, clip=1.0
    )


def stepper(
    peer: Peer, arm: str, tokens: "torch.Tensor", blocks: int, precision: str
) -> Callable[[], "torch.Tensor"]:
    """Return a function that trains on so many random blocks of the tokens [T], and returns the loss."""
    import torch

    device = tokens.device
    within = torch.arange(BLOCK, device=device)
    # nanochat casts by itself.
    autocast = precision == "bf16" and arm != "nanochat"

    def step() -> torch.Tensor:
        block = torch.randint(len(tokens) - BLOCK, (blocks, 1), device=device) + within
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = peer.loss(tokens[block], tokens[block + 1])
        loss.backward()  # type: ignore[no-untyped-call]
        if peer.clip is not None:
            torch.nn.utils.clip_grad_norm_(peer.model.parameters(), peer.clip)
        peer.optimizer.step()
        peer.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def train_peer(words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a peer for as many steps as the other arms make.

    Returns:
        The seconds and the losses; the tokens in all its steps; the operations for each of them, counted as ours.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = Shape(**json.loads((folder / "shape.json").read_text()))
    rows = [json.loads(line)["input_ids"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    tokens = torch.tensor([token for row in rows for token in row], device=device)
    if len(tokens) <= BLOCK:
        raise SystemExit(f"{len(rows)} dialogs have {len(tokens)} tokens; {words.arm} needs more than {BLOCK}.")
    steps = math.ceil(len(rows) / words.batch_size)
    # As many tokens a step as the other arms have.
    size = max(1, round(words.batch_size * len(tokens) / len(rows) / BLOCK))
    torch.manual_seed(42)
    if words.arm == "nanochat":
        peer = nanochat(words, shape, device, size * BLOCK)
    else:
        peer = (litgpt if words.arm == "litgpt" else nanogpt)(words, shape, device)
    step = stepper(peer, words.arm, tokens, size, shape.precision)
    compile_ahead(step, peer.optimizer)
    losses = []
    started = time.perf_counter()
    for _ in range(steps):
        losses.append(step())
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "losses": [float(loss) for loss in losses],
        "tokens": steps * size * BLOCK,
        "flops_per_token": flops_per_token(peer.model, shape),
    }


def compile_ahead(step: Callable[[], "torch.Tensor"], optimizer: "torch.optim.Optimizer") -> None:
    """Make a step that changes no weights, in which all is compiled that will be, the optimizer's code too."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step().item()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def flops_per_token(model: "torch.nn.Module", shape: Shape) -> int:
    """Return the operations to train on a token: 6 for each weight of a product, and those of causal attention."""
    import torch

    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 6 * weights + 6 * shape.layers * shape.width * BLOCK
