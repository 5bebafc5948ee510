"""Tokenizers in files that need another package."""

import base64
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.models.tokenizer import load_tokenizer
from tests.conftest import typed
from tests.models.strange import write_sound

RANKS = "".join(f"{base64.b64encode(bytes([n])).decode()} {n}\n" for n in range(256)).encode()
PIECES = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
"""The first piece of a SentencePiece model."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sound(tmp_path_factory.mktemp("vocabulary") / "sound")


@pytest.fixture
def only_with(sound: Path) -> Callable[[str, bytes], ModelConfig]:
    """Write a model whose vocabulary is in this file alone."""

    def write(name: str, content: bytes) -> ModelConfig:
        shutil.copytree(sound, "model", ignore=lambda _, names: [n for n in names if n.startswith("token")])
        Path("model", name).write_bytes(content)
        return ModelConfig(source="model")

    return write


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("tokenizer.model", PIECES, "SentencePiece"),
        ("spiece.model", PIECES, "SentencePiece"),
        ("tokenizer.model", RANKS, "tiktoken"),
    ],
)
def test_a_vocabulary_that_needs_a_package_says_which(
    name: str, content: bytes, kind: str, only_with: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.models.vocabulary.find_spec", lambda name: None)
    package = kind.lower()
    with pytest.raises(UnavailableError) as reported:
        load_tokenizer(only_with(name, content))
    assert reported.value.message == (
        f"the tokenizer of 'model' is a file of {kind}, {name}: it needs the package {package}"
    )
    assert typed(reported.value) == f"pip install {package}"


def test_a_vocabulary_that_is_not_read_is_refused(
    only_with: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.models.vocabulary.find_spec", lambda name: True)
    source = only_with("sentencepiece.bpe.model", PIECES)
    # Of this class transformers makes a tokenizer of its special tokens alone.
    Path("model", "tokenizer_config.json").write_text('{"tokenizer_class": "XGLMTokenizer"}')
    with pytest.raises(
        ModelError, match=r"does not read sentencepiece\.bpe\.model, the only vocabulary of 'model'"
    ):
        load_tokenizer(source)


def test_a_readable_file_beside_it_is_what_counts(sound: Path) -> None:
    shutil.copytree(sound, "model")
    Path("model", "tokenizer.model").write_bytes(PIECES)
    assert load_tokenizer(ModelConfig(source="model")).vocabulary == 313
