"""Loads tokenizers, also those in files that only another package reads: SentencePiece's and tiktoken's."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.hints import Shell
from dialogkit.models.adapter_source import model_file
from dialogkit.models.sources import find_gguf, load_from_source

_READ_WITHOUT_PACKAGES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_BINARY = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    "tiktoken.model",
)
"""Names under which makers publish vocabularies that are no JSON."""
_RANKS = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""The first line of a vocabulary of tiktoken: a token in base64, and its rank."""


def load_vocabulary(source: ModelConfig) -> Any:
    """Return the transformers tokenizer of a source.

    Raises: UnavailableError if it is in a format of a package that is not installed; ModelError if it cannot be
    loaded, or comes out without its vocabulary.
    """
    from transformers import AutoTokenizer

    file = _binary_vocabulary(source)
    if file is not None:
        _require_reader(source, file)
    hf = load_from_source(AutoTokenizer.from_pretrained, source)
    if file is not None and set(hf("a e i o", add_special_tokens=False)["input_ids"]) <= {hf.unk_token_id}:
        raise ModelError(
            f"transformers does not read {file.name}, the only vocabulary of {source.source!r}",
            hint="use a model that brings a tokenizer.json",
        )
    return hf


def _binary_vocabulary(source: ModelConfig) -> Path | None:
    """Return the file with a source's vocabulary if that is its only form and needs a package to be read."""
    if find_gguf(source) is not None or any(model_file(source, name) for name in _READ_WITHOUT_PACKAGES):
        return None
    return next(filter(None, (model_file(source, name) for name in _BINARY)), None)


def _require_reader(source: ModelConfig, file: Path) -> None:
    with file.open("rb") as start:
        kind = "tiktoken" if _RANKS.match(start.read(500)) else "SentencePiece"
    package = kind.lower()
    if find_spec(package) is None:
        raise UnavailableError(
            f"the tokenizer of {source.source!r} is a file of {kind}, {file.name}: it needs the package {package}",
            hint=Shell(f"pip install {package}"),
        )
