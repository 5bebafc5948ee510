"""Fills a hub cache on disk as the hub's own libraries would, so that names work without a network."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(home: Path, hub_id: str) -> Path:
    """Make the snapshot folder of a model in the cache under HF_HOME, and return it."""
    repository = home / "hub" / f"models--{hub_id.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def gpt2_tokenizer(folder: Path, texts: Iterable[str]) -> int:
    """Write a byte-level BPE tokenizer in GPT-2's two files, and return its number of entries."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(folder))
    return int(tokenizer.get_vocab_size())


def write_gpt2(home: Path, hub_id: str, *, weights: str = "safetensors") -> Path:
    """Put a random small GPT-2 into the cache, as safetensors or `pytorch_model.bin`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = snapshot(home, hub_id)
    entries = gpt2_tokenizer(folder, ["Hello! How are you? I am fine, thank you. The cat sat on the mat."] * 4)
    end = entries - 1 if entries > 50_000 else 0
    config = GPT2Config(
        vocab_size=entries, n_layer=2, n_embd=32, n_head=2, n_positions=256, bos_token_id=end, eos_token_id=end
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    if weights == "bin":
        state = model.state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_alpaca(home: Path, rows: int = 60) -> None:
    """Put rows of Alpaca's shape into the cache of `datasets`, under the name of the Alpaca-GPT4 dataset."""
    from datasets import DatasetInfo, Features, Value
    from datasets.arrow_writer import ArrowWriter

    folder = home / "datasets/vicgalle___alpaca-gpt4/default/0.0.0" / COMMIT
    folder.mkdir(parents=True)
    features = Features({name: Value("string") for name in ("instruction", "input", "output", "text")})
    with ArrowWriter(path=str(folder / "alpaca-gpt4-train.arrow"), features=features) as writer:
        for number in range(rows):
            writer.write(
                {
                    "instruction": f"Which number comes after {number}?",
                    "input": "",
                    "output": f"{number + 1} comes after {number}.",
                    "text": "ignored",
                }
            )
        count, size = writer.finalize()
    DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name="alpaca-gpt4",
        config_name="default",
        version="0.0.0",
        splits={"train": {"name": "train", "num_bytes": size, "num_examples": count}},
    ).write_to_directory(str(folder))
    os.utime(folder)


@contextmanager
def served_dataset(hub_id: str, files: dict[str, bytes]) -> Iterator[str]:
    """Serve a dataset as the hub would, as far as `datasets` and `huggingface_hub` ask, and give the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.removeprefix(f"/datasets/{hub_id}/resolve/").partition("/")[2]
            if path.startswith(f"/api/datasets/{hub_id}/tree/"):
                folder = path.removeprefix(f"/api/datasets/{hub_id}/tree/").partition("/")[2]
                self._answer(json.dumps(self._entries(folder)).encode())
            elif path.startswith(f"/api/datasets/{hub_id}"):
                siblings = [{"rfilename": file} for file in files]
                facts = {"id": hub_id, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
                self._answer(json.dumps({"_id": "1", "downloads": 0, "likes": 0, **facts}).encode())
            elif name in files:
                self._answer(files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"')
            else:
                self._answer(b"{}", 404, **{"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def _entries(self, folder: str) -> list[dict[str, Any]]:
            inside = [file.removeprefix(f"{folder}/" if folder else "") for file in files]
            inside = [file for file, whole in zip(inside, files, strict=True) if whole.startswith(folder)]
            names = sorted({file.partition("/")[0] for file in inside})
            entries: list[dict[str, Any]] = []
            for name in names:
                path = f"{folder}/{name}" if folder else name
                size = {"size": len(files[path])} if path in files else {}
                kind = "file" if path in files else "directory"
                entries.append({"type": kind, "path": path, "oid": "0" * 40, **size})
            return entries

        def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            reported = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}
            for header, value in reported.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
