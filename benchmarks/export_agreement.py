"""Does llama.cpp say the same as dialogkit with an exported model?

python benchmarks/export_agreement.py MODEL --types f32 q8_0 --prompts 16

MODEL is written as GGUF, and llama.cpp answers the test prompts and prompts of `starter` greedily. Compared are
the ids that it makes of each prompt under the chat template, and the tokens of its replies: with those of
transformers in float32 on the original weights. After the first token that differs, all may; how far the two
logits were apart says whether it was a near tie. llama.cpp comes with node-llama-cpp, as in generation_speed.py.
Its cache has 32 bits here, not the 16 of its default (`--cache F16`).
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from generation_speed import LlamaCpp, make_llama_env

from dialogkit.config.generate import TEST_PROMPTS, GenerateConfig
from dialogkit.data.sources import STARTER
from dialogkit.dialog import Message
from dialogkit.models.gguf_file import WEIGHT_TYPES, write_gguf
from dialogkit.services.runs.loading import LoadedModel, load_for_inference
from dialogkit.services.runs.resolve import resolve_model


def of_the_original(
    loaded: LoadedModel, number: int, tokens: int
) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Return so many prompts, their ids, and the ids of the greedy replies of transformers in float32.

    The prompts are the test prompts and then those of `starter`; `tokens` is the longest reply.
    """
    tokenizer = loaded.tokenizer
    rows = (json.loads(line)["messages"] for line in STARTER.read_text(encoding="utf-8").splitlines())
    texts = [*TEST_PROMPTS, *(row[-2]["content"] for row in rows)][:number]
    encoded = [tokenizer.encode_prompt([Message("user", text)]) for text in texts]
    replies = []
    for ids in encoded:
        asked = torch.tensor([ids])
        made = loaded.model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=sorted(tokenizer.reply_stop_ids),
            pad_token_id=tokenizer.pad_id,
        )
        replies.append(made[0, len(ids) :].tolist())
    return texts, encoded, replies


@torch.no_grad()
def apart(model: Any, prompt: list[int], own: list[int], reply: list[int]) -> float | None:
    """Return how far the logits of the first two tokens that differ are apart in the model; None if none does."""
    at = next((i for i, (a, b) in enumerate(zip(own, reply, strict=False)) if a != b), None)
    if at is None:
        return None
    logits = model(input_ids=torch.tensor([prompt + own[:at]])).logits[0, -1]
    return float(logits[own[at]] - logits[reply[at]])


def main() -> None:
    """Print how many prompts get the same ids, and how many tokens and replies are equal, for each type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--types", nargs="+", default=["f32"], choices=WEIGHT_TYPES)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="longest reply")
    parser.add_argument("--cache", choices=("F32", "F16"), default="F32", help="llama.cpp's keys and values")
    parser.add_argument("--output-dir", default="models")
    parser.add_argument("--llama-env", type=Path, default=Path(tempfile.gettempdir()) / "dialogkit-bench-llama")
    words = parser.parse_args()
    make_llama_env(words.llama_env)
    loaded = load_for_inference(resolve_model(words.model, output=words.output_dir), device="cpu")
    texts, encoded, wanted = of_the_original(loaded, words.prompts, words.tokens)
    chats = [[{"role": "user", "content": text}] for text in texts]
    rendered = [
        loaded.tokenizer.hf.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats
    ]
    print("| type | prompts with the same ids | equal tokens | equal replies | logits apart, median and most |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for weight_type in words.types:
            file = Path(folder) / f"{weight_type}.gguf"
            write_gguf(
                file, loaded.model, loaded.tokenizer, weight_type, name=loaded.name, sampling=GenerateConfig()
            )
            context = max(map(len, encoded)) + words.tokens + 1
            engine = LlamaCpp(words.llama_env, file, prompts=1, context=context, cache=words.cache)
            same = sum(map(list.__eq__, engine.tokenize(rendered), encoded))
            replies = engine.reply(encoded, words.tokens, together=False)
            pairs = [(own, reply[: len(own)]) for own, reply in zip(wanted, replies, strict=True)]
            equal = sum(a == b for own, reply in pairs for a, b in zip(own, reply, strict=False))
            tokens, whole = sum(len(own) for own, _ in pairs), sum(own == reply for own, reply in pairs)
            gaps = [apart(loaded.model, ids, *pair) for ids, pair in zip(encoded, pairs, strict=True)]
            found = [gap for gap in gaps if gap is not None]
            share, replied = f"{equal / tokens:.2%} of {tokens:,}", f"{whole} of {len(pairs)}"
            between = f"{median(found):.2g}, {max(found):.2g}" if found else ""
            print(f"| {weight_type} | {same} of {len(encoded)} | {share} | {replied} | {between} |", flush=True)


if __name__ == "__main__":
    main()
