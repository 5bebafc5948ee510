"""How fast are replies, side by side with HF's `generate` as tutorials call it?

python benchmarks/generation_speed.py custom-tiny --prompts 64 --tokens 64 --json results.json

All arms have the same float32 weights and answer the same prompts greedily. They take turns in one process, and
each round starts with another one:

dialogkit   prompts of different length answered together
one by one  HF `generate`, a prompt at a time, as most tutorials write it
batch       HF `generate` on a left-padded batch
no cache    as `one by one`, without the KV cache, on eight prompts

The limit is how often the weights can be read from memory in a second.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import load_run_config
from dialogkit.data.sources import STARTER
from dialogkit.dialog import Message
from dialogkit.inference.session import generate_replies
from dialogkit.models.build import build_model, context_length
from dialogkit.models.tokenizer import load_tokenizer

FEW = 8
Ids = list[list[int]]


def read_bytes_per_s() -> float:
    """Return how many bytes a second can be read from memory."""
    block = torch.ones(64 * 2**20, dtype=torch.float32)
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - started))
    return best


def make_arms(words: argparse.Namespace, folder: Path) -> tuple[dict[str, Callable[[], Ids]], int]:
    """Return the arms, each giving the ids of its replies, and the bytes of the weights."""
    config = load_run_config(words.model).model
    tokenizer = load_tokenizer(config)
    model = build_model(config, tokenizer).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    texts = [json.loads(line)["messages"] for line in STARTER.read_text(encoding="utf-8").splitlines()]
    prompts = [[Message("user", dialog[-2]["content"])] for dialog in texts[: words.prompts]]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    hf = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chats = [[{"role": "user", "content": prompt[0].content}] for prompt in prompts]
    limit: dict[str, Any] = {"max_new_tokens": words.tokens, "do_sample": False}
    settings = GenerateConfig(max_new_tokens=words.tokens, temperature=0.0, repetition_penalty=1.0)

    def ours() -> Ids:
        made = generate_replies(
            model,
            tokenizer,
            prompts,
            settings,
            context=context_length(model),
            device="cpu",
            batch_size=words.prompts,
        )
        return [hf(reply.text, add_special_tokens=False)["input_ids"] for reply in made]

    def one_by_one(first: int | None = None, **options: Any) -> Ids:
        replies = []
        for chat in chats[:first]:
            inputs = hf.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.no_grad():
                made = theirs.generate(**inputs, **limit, **options)
            replies.append(made[0, inputs["input_ids"].shape[1] :].tolist())
        return replies

    def batch() -> Ids:
        inputs = hf.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        with torch.no_grad():
            made = theirs.generate(**inputs, **limit)
        return list(made[:, inputs["input_ids"].shape[1] :].tolist())

    arms: dict[str, Callable[[], Ids]] = {
        "dialogkit": ours,
        "one by one": one_by_one,
        "batch": batch,
        "no cache": lambda: one_by_one(FEW, use_cache=False),
    }
    return arms, sum(parameter.nbytes for parameter in model.parameters())


def main() -> None:
    """Let the arms take turns; print the medians and their ratios to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="longest reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arms, weight_bytes = make_arms(words, Path(temporary))
    names = list(arms)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(words.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            replies = arms[name]()
            seconds = time.perf_counter() - started
            asked = FEW if name == "no cache" else words.prompts
            # Models that have not been trained do not come to an end: every reply has the longest length.
            assert len(replies) == asked
            if number:  # the first round warms up
                speeds[name].append(asked * words.tokens / seconds)
    limit = read_bytes_per_s() / weight_bytes
    threads = torch.get_num_threads()
    print(f"{words.model}, {words.prompts} prompts, {words.tokens} tokens each, {threads} threads")
    print(f"weights read {limit:,.0f} times a second: {limit * words.prompts:,.0f} tokens/s for all prompts\n")
    print("| arm | tokens/s | dialogkit is faster by | least - most |")
    print("|---|---:|---:|---|")
    rows = []
    for name in names:
        ratios = [ours / other for ours, other in zip(speeds["dialogkit"], speeds[name], strict=True)]
        speed, ratio = median(speeds[name]), median(ratios)
        rows.append({"arm": name, "tokens_per_s": speed, "ratios": ratios})
        print(f"| {name} | {speed:,.0f} | {ratio:.2f} | {min(ratios):.2f} - {max(ratios):.2f} |")
    if words.json:
        told = {
            "model": words.model,
            "prompts": words.prompts,
            "tokens": words.tokens,
            "weight_reads_per_s": limit,
        }
        words.json.write_text(json.dumps({**told, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
