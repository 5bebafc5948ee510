"""How fast are replies, side by side with HF's `generate` as tutorials call it, and with llama.cpp?

python benchmarks/generation_speed.py custom-tiny --prompts 64 --tokens 64 --json results.json
python benchmarks/generation_speed.py MODEL.gguf --arms llama.cpp --rounds 3

All arms answer the same prompts greedily, with the same number of threads, and go on past the end of a turn: every
reply has the same length. They take turns, and each round starts with another one. `dialogkit generate` computes
in float32, and so do all arms where nothing else is said:

dialogkit       prompts of different length answered together
hf, one by one  HF `generate`, a prompt at a time, as most tutorials write it
hf, batch       HF `generate` on a left-padded batch
hf, no cache    as `one by one`, without the KV cache, on eight prompts

`alone` is eight prompts, one after the other; elsewhere all are answered together, unless `--alone` leaves it out:

dialogkit, alone          as `generate` answers a single prompt
dialogkit sampled, alone  the same with the default settings of sampling
dialogkit int8, alone     the same as the first with `--int8`
hf, alone                 HF `generate`

A GGUF file has these as well:

dialogkit bf16       the same weights in bf16, which the library takes and the command line does not use
llama.cpp            the file as it is; its weights may have 4 bits
llama.cpp float32    the file's weights written out in float32, which is what dialogkit computes with
llama.cpp bf16       the same in bf16

The share of equal tokens shows whether two arms do the same work: one rounding that decides between two tokens
changes all that comes after. llama.cpp comes with node-llama-cpp, in a folder of its own (made in --llama-env;
needs node and npm), since that package has builds for each kind of CPU and takes the fitting one: what it uses is
told below the table. Its cache has 16 bits in all arms.

The limit is how often the weights can be read from memory in a second.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import load_run_config
from dialogkit.data.sources import STARTER
from dialogkit.dialog import ChatTokenizer, Message
from dialogkit.inference.products import prepare_for_replies
from dialogkit.inference.replies import continue_prompts
from dialogkit.models.build import build_model
from dialogkit.models.context import context_length
from dialogkit.models.tokenizer import load_tokenizer

FEW = 8
ALONE = "dialogkit, alone"
NODE_LLAMA_CPP = "node-llama-cpp@3.22.1"
Ids = list[list[int]]


@dataclass(frozen=True)
class Arm:
    """A way to answer prompts, and the arm that it is compared with."""

    reply: Callable[[], Ids]
    against: str = "dialogkit"


class Endless:
    """A tokenizer without an end of turn, which gives ids where texts are asked for."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = self.reply_stop_ids = frozenset({no_token(tokenizer)})

    def decode(self, ids: list[int]) -> str:
        """Return the ids as JSON."""
        self._tokenizer.decode(ids)  # a reply's text is part of the work
        return json.dumps(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def no_token(tokenizer: Any) -> int:
    """Return an id that no token has: as the end of a turn it never comes."""
    return int(tokenizer.vocabulary)


class LlamaCpp:
    """llama.cpp in a process of its own, which ends with its input."""

    def __init__(self, env: Path, file: Path, *, prompts: int, context: int, cache: str = "F16") -> None:
        threads = str(torch.get_num_threads())
        command = ["node", str(env / "llama_cpp.mjs"), str(file), str(prompts), str(context), threads, cache]
        # Tokens are chosen in node's pool, which would have four threads.
        limits = {**os.environ, "UV_THREADPOOL_SIZE": threads}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=limits
        )
        self.cpu: str = self._answer()["cpu"].strip(" |")

    def reply(self, encoded: Ids, tokens: int, *, together: bool) -> Ids:
        """Return the ids of a reply to each prompt."""
        return self._ask(encoded=encoded, tokens=tokens, together=together)

    def tokenize(self, texts: list[str]) -> Ids:
        """Return the ids of texts with special tokens."""
        return self._ask(texts=texts)

    def _ask(self, **question: Any) -> Ids:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        ids: Ids = self._answer()
        return ids

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("llama.cpp failed: see above")
        return json.loads(line)


def make_llama_env(folder: Path) -> None:
    """Make the folder from which llama.cpp runs, if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules/node-llama-cpp").exists():
        npm = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*npm, NODE_LLAMA_CPP], check=True, stdout=subprocess.DEVNULL)
    # node looks for packages beside the script.
    shutil.copy(Path(__file__).with_name("llama_cpp.mjs"), folder)


def write_dequantized(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file again with all its matrices as F32 or BF16."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        # llama.cpp multiplies norms and biases in float32 only.
        dtype = GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        writer.add_tensor(tensor.name, quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_arms(words: argparse.Namespace, folder: Path) -> tuple[dict[str, Arm], dict[str, Any]]:
    """Return the arms, each giving the ids of its replies, and what to tell about them."""
    config = load_run_config(words.model).model
    tokenizer = load_tokenizer(config)
    model = build_model(config, tokenizer).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    texts = [json.loads(line)["messages"] for line in STARTER.read_text(encoding="utf-8").splitlines()]
    prompts = [[Message("user", dialog[-2]["content"])] for dialog in texts[: words.prompts]]
    settings = GenerateConfig(max_new_tokens=words.tokens, temperature=0.0, repetition_penalty=1.0)
    endless: Any = Endless(tokenizer)

    usual = GenerateConfig(max_new_tokens=words.tokens)

    def ours(model: Any, *, alone: bool = False, settings: GenerateConfig = settings) -> Ids:
        made = continue_prompts(
            model,
            endless,
            [endless.encode_prompt(prompt) for prompt in (prompts[:FEW] if alone else prompts)],
            settings,
            context=context_length(model.config),
            device="cpu",
            batch_size=1 if alone else words.prompts,
        )
        return [json.loads(reply.text) for reply in made]

    rounded = copy.deepcopy(model)
    prepare_for_replies(model)
    prepare_for_replies(rounded, int8=True)
    arms = {
        "dialogkit": Arm(lambda: ours(model)),
        "dialogkit, alone": Arm(lambda: ours(model, alone=True), ALONE),
        "dialogkit sampled, alone": Arm(lambda: ours(model, alone=True, settings=usual), ALONE),
        "dialogkit int8, alone": Arm(lambda: ours(rounded, alone=True), ALONE),
    }
    facts: dict[str, Any] = {"weight_bytes": sum(parameter.nbytes for parameter in model.parameters())}
    if "hf" in words.arms:
        arms |= make_hf_arms(words, folder, [prompt[0].content for prompt in prompts], no_token(tokenizer))
    file = Path(words.model)
    if "llama.cpp" in words.arms and file.suffix == ".gguf":
        make_llama_env(words.llama_env)
        half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        arms["dialogkit bf16"] = Arm(lambda: ours(half))
        arms["dialogkit bf16, alone"] = Arm(lambda: ours(half, alone=True), ALONE)
        for name, kind, against in (
            ("llama.cpp", None, "dialogkit"),
            ("llama.cpp float32", "F32", "dialogkit"),
            ("llama.cpp bf16", "BF16", "dialogkit bf16"),
        ):
            if kind is not None:
                file = folder / f"{kind}.gguf"
                write_dequantized(Path(words.model), file, kind)
            encoded = [list(tokenizer.encode_prompt(prompt)) for prompt in prompts]
            context = max(map(len, encoded)) + words.tokens + 1
            engine = LlamaCpp(words.llama_env, file, prompts=len(prompts), context=context)
            facts["llama.cpp uses"] = engine.cpu

            arms[name] = Arm(partial(engine.reply, encoded, words.tokens, together=True), against)
            alone = partial(engine.reply, encoded[:FEW], words.tokens, together=False)
            arms[f"{name}, alone"] = Arm(alone, f"{against}, alone")
    return arms, facts


def make_hf_arms(words: argparse.Namespace, folder: Path, prompts: list[str], no_token: int) -> dict[str, Arm]:
    """Return the arms that call HF's `generate`."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    hf = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    limit: dict[str, Any] = {"max_new_tokens": words.tokens, "do_sample": False, "eos_token_id": no_token}

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

    return {
        "hf, one by one": Arm(one_by_one),
        "hf, batch": Arm(batch),
        "hf, alone": Arm(lambda: one_by_one(FEW), ALONE),
        "hf, no cache": Arm(lambda: one_by_one(FEW, use_cache=False)),
    }


def read_bytes_per_s() -> float:
    """Return how many bytes a second can be read from memory."""
    block = torch.ones(64 * 2**20, dtype=torch.float32)
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - started))
    return best


def equal_share(some: Ids, others: Ids) -> float:
    """Return the fraction of tokens that are equal at the same places of replies."""
    pairs = [pair for one, other in zip(some, others, strict=False) for pair in zip(one, other, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs)


def main() -> None:
    """Let the arms take turns; print the medians and their ratios to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="length of each reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="only the arms that answer eight prompts alone")
    parser.add_argument("--arms", nargs="+", default=["hf", "llama.cpp"], choices=["hf", "llama.cpp"])
    parser.add_argument("--llama-env", type=Path, default=Path(tempfile.gettempdir()) / "dialogkit-bench-llama")
    parser.add_argument("--json", type=Path, help="write the figures here")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arms, facts = make_arms(words, Path(temporary))
    names = [name for name in arms if name.endswith("alone") or not words.alone]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    replies: dict[str, Ids] = {}
    for number in range(words.rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            replies[name] = arms[name].reply()
            seconds = time.perf_counter() - started
            assert all(len(reply) == words.tokens for reply in replies[name])
            if number:  # the first round warms up
                speeds[name].append(len(replies[name]) * words.tokens / seconds)
    limit = read_bytes_per_s() / facts["weight_bytes"]
    facts |= {"threads": torch.get_num_threads(), "weight_reads_per_s": limit}
    print(f"{words.model}, {words.prompts} prompts, {words.tokens} tokens each, {facts['threads']} threads")
    print(f"weights read {limit:,.0f} times a second: {limit * words.prompts:,.0f} tokens/s for all prompts\n")
    print("| arm | tokens/s | compared with | which is faster by | least - most | equal tokens |")
    print("|---|---:|---|---:|---|---:|")
    rows = []
    for name in names:
        arm = arms[name]
        ratios = [ours / other for ours, other in zip(speeds[arm.against], speeds[name], strict=True)]
        speed, ratio, equal = (
            median(speeds[name]),
            median(ratios),
            equal_share(replies[name], replies[arm.against]),
        )
        rows.append({"arm": name, "tokens_per_s": speed, "against": arm.against, "ratios": ratios, "equal": equal})
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        print(f"| {name} | {speed:,.0f} | {arm.against} | {ratio:.2f} | {spread} | {equal:.0%} |")
    if "llama.cpp uses" in facts:
        print(f"\nllama.cpp uses {facts['llama.cpp uses']}")
    if words.json:
        told = {"model": words.model, "prompts": words.prompts, "tokens": words.tokens, **facts}
        words.json.write_text(json.dumps({**told, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
