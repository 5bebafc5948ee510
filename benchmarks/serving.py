"""How many tokens a second does the server generate for 1, 8 and 32 clients, and what does it endure?

python benchmarks/serving.py custom-nano --clients 1 8 32 --rounds 3 --json results.json
python benchmarks/serving.py custom-nano --clients --endure 10000

A new model with random weights is served on loopback. Each client is a task of one other process and streams
replies, one after the other, over a connection of its own. Counted are the tokens that the server reports, from
the first request of all clients to the last reply; a first short reply is not. The numbers of clients take turns.

The tokens of a CPU second of the server hardly depend on what else the machine does.

`--endure N` does what a server has to survive: clients that do not read, that leave, that send too much or
nothing, and N requests of 32 clients. All the while one more client asks for short replies, which have to come.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

PROMPTS = ("Hello!", "What is the capital of France?", "Give three tips for staying healthy.", "Who are you?")


async def client(url: str, number: int, replies: int, tokens: int) -> tuple[int, list[float]]:
    """Ask for replies one after the other; return their tokens, and the seconds to the first token of each."""
    import httpx

    total, first = 0, []
    # To load the certificates of the internet takes 20 ms, in which the server would wait for its next client.
    async with httpx.AsyncClient(base_url=url, timeout=600, verify=False) as http:
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


async def endure(url: str, requests: int) -> list[dict[str, Any]]:
    """Do what a server has to survive; return what was answered, and how long another client waited meanwhile."""
    import httpx

    host, port = url.removeprefix("http://").split(":")
    rows: list[dict[str, Any]] = []
    waited: list[float] = []
    refused: list[int] = []
    is_over = asyncio.Event()

    def body(tokens: int, **settings: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": tokens, **settings}

    async def opened(sent: bytes) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(sent)
        await writer.drain()
        return writer

    def stream_of(tokens: int, replies: int) -> bytes:
        text = json.dumps(body(tokens, stream=True, n=replies)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text

    async def another(http: httpx.AsyncClient) -> None:
        while not is_over.is_set():
            started = time.perf_counter()
            answer = await http.post("/v1/chat/completions", json=body(4))
            if answer.status_code == 200:
                waited.append(time.perf_counter() - started)
            else:
                refused.append(answer.status_code)

    async def idle(http: httpx.AsyncClient) -> None:
        while (await http.get("/health")).json()["running"] > 1:
            await asyncio.sleep(0.05)

    def note(what: str, answers: Sequence[Any]) -> None:
        counted = Counter(map(str, answers))
        longest_s = max(waited, default=0.0)
        beside = {"replied": len(waited), "refused": len(refused), "longest_s": longest_s}
        rows.append({"what": what, "answers": dict(counted), "beside": beside})
        waited.clear()
        refused.clear()

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        beside = asyncio.create_task(another(http))
        slow = [await opened(stream_of(200, 4)) for _ in range(4)]
        await asyncio.sleep(5)
        note("4 clients that ask for 4 replies each and read none", ["no answer read"] * 4)
        for _ in range(4):
            leaving = [await opened(stream_of(200, 1)) for _ in range(8)]
            await asyncio.sleep(0.3)
            for writer in leaving:
                writer.transport.abort()
        for writer in slow:
            writer.transport.abort()
        await idle(http)
        note("32 clients that leave in the middle of their replies", ["left"] * 32)
        large = [await http.post("/v1/chat/completions", json=body(4, user="x" * 10_000_000)) for _ in range(10)]
        note("10 bodies of 10 MB", [answer.status_code for answer in large])
        silent = [await opened(b"GET /hea") for _ in range(200)]
        await asyncio.sleep(3)
        note("200 connections that stay open and ask for nothing", ["silent"] * 200)
        left = iter(range(requests))

        async def worker() -> list[int]:
            return [
                (await http.post("/v1/chat/completions", json=body(8, seed=number))).status_code for number in left
            ]

        answers = await asyncio.gather(*(worker() for _ in range(32)))
        note(f"{requests:,} requests of 32 clients", [status for each in answers for status in each])
        for writer in silent:
            writer.transport.abort()
        is_over.set()
        await beside
    return rows


def endured(url: str, requests: int) -> list[dict[str, Any]]:
    """See `endure`."""
    return asyncio.run(endure(url, requests))


def resident_mib() -> float:
    """Return the memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="custom-nano")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--replies", type=int, default=2, help="replies to each client")
    parser.add_argument("--tokens", type=int, default=64, help="longest reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--endure", type=int, metavar="N", help="requests of 32 clients, after other trials")
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
            endurance: list[dict[str, Any]] = []
            if options.endure:
                before_mib = resident_mib()
                endurance = others.apply(endured, (server.url, options.endure))
                print(
                    f"memory: {before_mib:,.0f} MiB before, {resident_mib():,.0f} after, {peak_mib():,.0f} at most"
                )
            for row in endurance:
                print(
                    f"{row['what']}: {row['answers']}; another client got {row['beside']['replied']} replies, the "
                    f"slowest in {row['beside']['longest_s']:.1f} s, and {row['beside']['refused']} refusals"
                )
    rows: list[dict[str, Any]] = [
        {"clients": number, **{name: median([run[name] for run in runs]) for name in runs[0]}}
        for number, runs in found.items()
    ]
    if rows:
        print(f"{options.model}, {options.tokens} tokens a reply, medians of {options.rounds} rounds")
    for row in rows:
        print(
            f"{row['clients']:>3} clients  {row['tokens_per_s']:>7,.0f} tokens/s in all, "
            f"{row['tokens_per_cpu_s']:,.0f} a CPU second of the server, first token after "
            f"{1000 * row['first_token_s']:,.0f} ms"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"model": options.model, "rows": rows, "runs": found, "endurance": endurance}),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
