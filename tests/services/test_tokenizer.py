"""Training a tokenizer from dataset files and plain text."""

import gzip
import json
from pathlib import Path

import pytest

from dialogkit.config.model import ModelConfig
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError, DataError, StorageError
from dialogkit.hints import Change
from dialogkit.models.tokenizer import load_tokenizer
from dialogkit.services.tokenizer import train_tokenizer
from tests.conftest import typed

WORD = "Donaudampfschiff"


def write_rows(path: Path, word: str = WORD) -> Path:
    rows = [{"prompt": f"{word} {number}?", "response": f"{word}!"} for number in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


def load(folder: str) -> list[int]:
    tokenizer = load_tokenizer(ModelConfig(tokenizer=folder, layers=1, width=8, heads=1, context=64))
    return tokenizer.encode_prompt([Message("user", WORD)])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_word_of_the_dialogs_becomes_one_token(name: str, tmp_path: Path) -> None:
    result = train_tokenizer([write_rows(tmp_path / name)], vocabulary=400, output=tmp_path / "new" / "tokenizer")
    assert result.files == [str(tmp_path / name)]
    assert 262 < result.entries <= 400
    # <|user|>, the word, <|end_of_turn|>, <|assistant|>
    assert len(load(result.folder)) == 4


def test_plain_text_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    for name, encoding in (("plain.txt", "utf-8"), ("mark.txt", "utf-8-sig")):
        (tmp_path / name).write_text(f"{WORD}\n" * 20, encoding=encoding)
        train_tokenizer([tmp_path / name], vocabulary=400, output=tmp_path / encoding)
    one, two = (tmp_path / e / "tokenizer.json" for e in ("utf-8", "utf-8-sig"))
    assert one.read_bytes() == two.read_bytes()
    assert len(load(str(tmp_path / "utf-8"))) == 4


def test_several_files_are_learned_together(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / "a.jsonl"), write_rows(tmp_path / "b.jsonl", "Rindfleischetikett")]
    both = train_tokenizer(files, vocabulary=2000, output=tmp_path / "both")
    one = train_tokenizer(files[:1], vocabulary=2000, output=tmp_path / "one")
    assert both.entries > one.entries


@pytest.mark.parametrize("kind", ["a folder with something in it", "a file"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    kept = output if kind == "a file" else output / "mine.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(StorageError, match="exists and is not empty") as refused:
        train_tokenizer([write_rows(tmp_path / "rows.jsonl")], vocabulary=300, output=output)
    assert refused.value.hint == Change({"output": f"{output}-2"})
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in output.parent.iterdir()) == ["output", "rows.jsonl"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = train_tokenizer([write_rows(tmp_path / "rows.jsonl")], vocabulary=300, output=tmp_path / "empty")
    assert (Path(result.folder) / "tokenizer.json").is_file()


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be created: not a directory"):
        train_tokenizer([write_rows(tmp_path / "rows.jsonl")], vocabulary=300, output=tmp_path / "file" / "new")


def test_a_missing_file_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'absent\.txt' does not exist"):
        train_tokenizer(
            [write_rows(tmp_path / "rows.jsonl"), "absent.txt"], vocabulary=300, output=tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_text_in_another_encoding_is_reported(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    with pytest.raises(DataError, match=r"old\.txt' is not UTF-8 text"):
        train_tokenizer([tmp_path / "old.txt"], vocabulary=300, output=tmp_path / "new")


def test_a_vocabulary_that_is_too_small_names_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="100 is too small") as refused:
        train_tokenizer([write_rows(tmp_path / "rows.jsonl")], vocabulary=100, output=tmp_path / "new")
    assert typed(refused.value, "tokenizer", "train") == "--vocab-size 262"
