"""How many tokens a second does the server generate for 1, 8 and 32 clients?

python benchmarks/serving.py custom-nano --clients 1 8 32 --rounds 3 --json results.json

A new model with random weights is served on loopback. Each client is a task of one other process and streams
replies, one after the other, over a connection of its own. Counted are the tokens that the server reports, from
the first request of all clients to the last reply; a first short reply is not. The numbers of clients take turns.

The tokens of a CPU second of the server hardly depend on what else the machine does.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS = ("Hello!", "What is the capital of France?", "Give three tips for staying healthy.", "Who are you?")


async def client(url: str, number: int, replies: int, tokens: int) -> tuple[int, list[float]]:
    """Ask for replies one after the other; return their tokens, and the seconds to the first token of each."""
    import httpx

    total, first = 0, []
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        for reply in range(replies):
            body = {
                "messages": [{"role": "user", "content": PROMPTS[(number + reply) % len(PROMPTS)]}],
                "max_tokens": tokens,
                "seed": number * 1000 + reply,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            started = time.perf_counter()
            is_first = True
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line.removeprefix("data: "))
                    if chunk.get("usage"):
                        total += chunk["usage"]["completion_tokens"]
                    elif is_first and chunk["choices"][0]["delta"].get("content"):
                        is_first = False
                        first.append(time.perf_counter() - started)
    return total, first


def measure(url: str, clients: int, replies: int, longest: int) -> dict[str, float]:
    """Return the tokens of all clients together, those per second, and the median time to a first token."""

    async def all_clients() -> tuple[float, list[tuple[int, list[float]]]]:
        await client(url, 0, 1, 4)
        started = time.perf_counter()
        done = await asyncio.gather(*(client(url, number, replies, longest) for number in range(clients)))
        return time.perf_counter() - started, done

    seconds, done = asyncio.run(all_clients())
    tokens = sum(total for total, _ in done)
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "first_token_s": median([each for _, first in done for each in first]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="custom-nano")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--replies", type=int, default=2, help="replies to each client")
    parser.add_argument("--tokens", type=int, default=64, help="longest reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    from dialogkit import load_run_config, serve
    from dialogkit.models.build import build_model
    from dialogkit.models.tokenizer import load_tokenizer

    config = load_run_config(options.model).model
    tokenizer = load_tokenizer(config)
    found: dict[int, list[dict[str, float]]] = {number: [] for number in options.clients}
    with tempfile.TemporaryDirectory() as folder:
        build_model(config, tokenizer).save_pretrained(folder)
        tokenizer.save(Path(folder))
        with (
            serve(folder, port=0, device="cpu") as server,
            multiprocessing.get_context("spawn").Pool(1) as others,
        ):
            for _ in range(options.rounds):
                for number in options.clients:
                    call = (server.url, number, options.replies, options.tokens)
                    before = time.process_time()
                    run = others.apply(measure, call)
                    run["tokens_per_cpu_s"] = run["tokens"] / (time.process_time() - before)
                    found[number].append(run)
    rows: list[dict[str, Any]] = [
        {"clients": number, **{name: median([run[name] for run in runs]) for name in runs[0]}}
        for number, runs in found.items()
    ]
    print(f"{options.model}, {options.tokens} tokens a reply, medians of {options.rounds} rounds")
    for row in rows:
        print(
            f"{row['clients']:>3} clients  {row['tokens_per_s']:>7,.0f} tokens/s in all, "
            f"{row['tokens_per_cpu_s']:,.0f} a CPU second of the server, first token after "
            f"{1000 * row['first_token_s']:,.0f} ms"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"model": options.model, "rows": rows, "runs": found}), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
