"""The shipped tokenizers without transformers, whose import takes longer than most datasets take to encode."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dialogkit.config.model import ModelConfig
from dialogkit.dialog import native_format
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer, shipped_tokenizer


def load_encoder(config: ModelConfig) -> ChatTokenizer:
    """Return the tokenizer of a model to encode and decode with, which cannot be saved.

    Raises: as `load_tokenizer`.
    """
    folder = shipped_tokenizer(config)
    if config.from_scratch and folder is not None and config.chat_format in ("auto", "dialogkit"):
        return ChatTokenizer(_Shipped(folder), native_format())
    return load_tokenizer(config)


class _Shipped:
    """A shipped tokenizer under the names of transformers', as far as encoding and decoding need them."""

    def __init__(self, folder: Path) -> None:
        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        self.special_tokens_map = {name: config[name] for name in ("eos_token", "pad_token")}
        self.all_special_tokens = list(self.special_tokens_map.values())
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self.chat_template: str | None = None
        self.pad_token_id = self.backend_tokenizer.token_to_id(config["pad_token"])

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    @property
    def all_special_ids(self) -> list[int]:
        ids = map(self.backend_tokenizer.token_to_id, self.all_special_tokens)
        return [number for number in ids if number is not None]

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> Any:
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [self.backend_tokenizer.id_to_token(number) for number in ids]
