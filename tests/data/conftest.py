"""A tokenizer for the tests of data."""

import pytest

from dialogkit.config.model import ModelConfig
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """The native chat format over a vocabulary of bytes: a token for each byte and each special token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["x"], vocabulary=262, output=folder)
    return load_tokenizer(ModelConfig(tokenizer=str(folder), layers=1, width=8, heads=1, context=64))
