"""Names that other tools use for our commands and flags, and functions that classify a typed word."""

import os
import re
from pathlib import Path

from dialogkit.config.paths import DEFAULT_OUTPUT, shipped_names

GROUPS = {"run": "runs", "model": "models", "dataset": "data", "datasets": "data", "settings": "config"}
"""Groups of commands."""
VERBS = {
    **dict.fromkeys(("ls", "all"), "list"),
    **dict.fromkeys(("delete", "rm", "remove", "del", "clean", "clear"), "prune"),
    **dict.fromkeys(("info", "describe", "view", "cat", "get"), "show"),
    **dict.fromkeys(("diff", "cmp"), "compare"),
    **dict.fromkeys(("check", "lint"), "validate"),
    **dict.fromkeys(("upload", "push"), "sync"),
}
"""Commands of a group."""
COMMANDS = {
    **dict.fromkeys(("fit", "finetune", "fine-tune", "learn", "run", "start"), "train"),
    **dict.fromkeys(("eval", "test", "score", "measure", "benchmark"), "evaluate"),
    **dict.fromkeys(("talk", "repl", "interactive"), "chat"),
    **dict.fromkeys(("predict", "infer", "inference", "sample", "ask", "reply", "complete"), "generate"),
    **dict.fromkeys(("list", "history"), "runs list"),
    **dict.fromkeys(("show", "info"), "runs show"),
    **dict.fromkeys(("delete", "rm", "remove", "clean"), "runs prune"),
    **dict.fromkeys(("diff",), "runs compare"),
    **dict.fromkeys(("presets", "defaults"), "config show"),
    **dict.fromkeys(("resume", "continue"), "train --resume"),
    **dict.fromkeys(("check", "env", "status"), "doctor"),
    "version": "--version",
    "-V": "--version",
    "-v": "--version",
}
"""Commands of their own."""
LISTS = {"list-models": "models list", "list-runs": "runs list", "list-datasets": "data list"}
"""Commands by the flags that other tools have for them."""
FLAGS = {
    "dataset": ("data", "file", "input", "train-file", "train-data", "data-file", "data-path", "dataset-name",
                "dataset-path", "dataset-file", "csv", "d", "json", "jsonl"),
    "model": ("model-name", "model-path", "model-name-or-path", "base-model", "checkpoint", "name", "run", "from"),
    "name": ("run-name", "run", "run-id", "model", "experiment", "experiment-name"),
    "names": ("run", "runs", "name", "model"),
    "models": ("run", "name", "run-name", "checkpoint"),
    "files": ("file", "input", "data", "dataset", "text", "corpus"),
    "file": ("config", "input", "path"),
    "output_dir": ("output", "out", "out-dir", "models-dir", "save-dir", "folder", "dir"),
    "output": ("out", "to", "output-dir", "o"),
    "epochs": ("num-epochs", "epoch", "n-epochs", "num-train-epochs", "e"),
    "lr": ("learning-rate", "learningrate"),
    "batch_size": ("batch", "bs", "batchsize", "per-device-train-batch-size", "b"),
    "samples": ("max-samples", "num-samples", "limit", "n-samples", "n", "max-train-samples"),
    "budget": ("time", "max-time", "time-limit", "duration", "timeout"),
    "resume": ("resume-from", "resume-from-checkpoint", "continue", "continue-from", "restart"),
    "from": ("from-checkpoint", "init-from", "start-from", "warm-start", "pretrained", "weights"),
    "devices": ("gpus", "num-gpus", "n-gpus", "ngpus", "nproc-per-node", "nproc", "num-processes", "world-size"),
    "nodes": ("num-nodes", "nnodes", "machines"),
    "project": ("wandb-project", "project-name"),
    "tag": ("tags", "wandb-tags", "label"),
    "tracker": ("trackers", "report-to", "logger", "log-with"),
    "max_bad_rows": ("skip-bad-rows", "bad-rows", "allow-bad-rows"),
    "no_cuda": ("cpu", "no-gpu", "force-cpu", "use-cpu", "cpu-only"),
    "dry_run": ("dry", "dryrun", "test-run"),
    "preset": ("profile", "mode"),
    "config": ("config-file", "settings", "conf"),
    "prompt": ("text", "input", "message", "question", "query", "q"),
    "prompts_file": ("prompts", "file", "input-file", "prompt-file"),
    "system": ("system-prompt", "system-text"),
    "max_new_tokens": ("max-tokens", "max-length", "length", "tokens", "n", "num-tokens"),
    "temperature": ("temp", "t"),
    "top_k": ("topk", "k"),
    "top_p": ("topp", "nucleus"),
    "repetition_penalty": ("rep-penalty", "repeat-penalty", "penalty"),
    "yes": ("force", "f", "no-confirm", "confirm"),
    "everything": ("verbose", "full", "details"),
    "json": ("as-json", "json-output"),
    "show": ("head", "n", "print", "examples"),
    "vocab_size": ("vocab", "vocabulary", "size", "vocabulary-size"),
}  # fmt: skip
"""Options and arguments by the flags that other tools have for them, where the command has no such flag."""
DEVICE = ("gpu", "gpu-id", "device", "device-id", "cuda", "use-gpu", "accelerator")
"""Flags for the device."""
GIVE = {
    "no-wandb": ["--wandb", "disabled"],
    "disable-wandb": ["--wandb", "disabled"],
    "offline": ["--wandb", "offline"],
    "lora": ["--method", "lora"],
    "peft": ["--method", "lora"],
    "bf16": ["--set", "runtime.precision=bf16"],
    "fp16": ["--set", "runtime.precision=fp16"],
    "fp32": ["--set", "runtime.precision=fp32"],
    "compile": ["--set", "runtime.compile=true"],
    "torch-compile": ["--set", "runtime.compile=true"],
    "streaming": ["--set", "data.streaming=true"],
    "gradient-checkpointing": ["--set", "train.activation_checkpointing=true"],
    "fsdp": ["--set", "runtime.sharding=fsdp"],
}
"""What flags without a value mean."""
WITHOUT_VALUE = {
    "--resume": "last",
    "--wandb": "disabled",
    "--devices": "auto",
    "--budget": "20m",
    "--preset": "test",
}
"""The value that is most likely meant by an option without one."""


def plain(flag: str) -> str:
    """Return the name of a flag in small letters and with dashes, as `lr` for `--LR=1`."""
    return flag.lstrip("-").partition("=")[0].lower().replace("_", "-").removeprefix("hparams.")


def is_number(words: list[str]) -> bool:
    """Return whether the first word is a number; False for no word."""
    return bool(words) and re.fullmatch(r"-?[\d.]+(e-?\d+)?", words[0]) is not None


def is_data(word: str) -> bool:
    """Return whether a word can only be a file of data; a settings file is none."""
    from dialogkit.config.load import holds_list
    from dialogkit.data.hints import SUFFIXES

    ending = Path(word.lower().removesuffix(".gz")).suffix
    if ending == ".json":
        return os.path.isfile(word) and holds_list(Path(word))
    return ending in SUFFIXES


def is_trained(word: str) -> bool:
    """Return whether a word is a run or a published model in the default folder."""
    return any((Path(DEFAULT_OUTPUT) / inside / word).is_dir() for inside in ("runs", "."))


def is_model(word: str) -> bool:
    """Return whether a word is a model that has a name or a folder."""
    return word in shipped_names("models") or "/" in word or os.path.exists(word) or is_trained(word)
