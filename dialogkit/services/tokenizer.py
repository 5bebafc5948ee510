"""Trains a tokenizer on the texts of dataset files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dialogkit.config.base import Result
from dialogkit.config.data import DataConfig
from dialogkit.data.sources import find_source, read_dialogs
from dialogkit.errors import ConfigError, DataError, StorageError, os_reason
from dialogkit.hints import Call, Change, Either
from dialogkit.system.compute_lock import alone
from dialogkit.text import lines_of

_HELP = Call("tokenizer train", help=True)


class TokenizerResult(Result):
    """A trained tokenizer."""

    folder: str
    entries: int
    files: list[str]


@alone()
def train_tokenizer(files: Sequence[str | Path], *, vocabulary: int, output: str | Path) -> TokenizerResult:
    """Train a byte-level BPE tokenizer with the chat format and write it as a folder.

    Args:
        files: dialogs in any format that can be trained on, or plain text (`.txt`).
        vocabulary: number of entries.
        output: folder to write; must be new or empty.

    Raises: DataError, ConfigError, StorageError.
    """
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{str(target)!r} exists and is not empty", hint=Change({"output": f"{target}-2"}))
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"the file {str(file)!r} does not exist", hint=_HELP)
    # Read everything first: wrong input must leave no folder behind.
    texts = [text for text in texts_of(files) if text.strip()]
    if not texts:
        raise DataError(f"no text in {', '.join(map(str, files))}", hint=_HELP)
    from dialogkit.models.tokenizer import train_tokenizer as train

    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{str(target)!r} cannot be created: {os_reason(error)}"
        raise StorageError(problem, hint=Change({"output": "my-tokenizer"})) from None
    try:
        entries = train(texts, vocabulary=vocabulary, output=target)
    except ConfigError:
        for folder in made:
            folder.rmdir()
        raise
    return TokenizerResult(folder=str(target), entries=entries, files=[str(file) for file in files])


def texts_of(files: Sequence[str | Path]) -> Iterator[str]:
    """Yield the texts of files of dialogs or plain text. Raises: DataError if one cannot be read."""
    for file in files:
        if Path(file).suffix == ".txt":
            try:
                yield from lines_of(Path(file).read_bytes().decode("utf-8-sig"))
            except UnicodeDecodeError:
                hint = Either("save it as UTF-8", _HELP)
                raise DataError(f"{str(file)!r} is not UTF-8 text", hint=hint) from None
            except OSError as error:
                raise DataError(f"{str(file)!r} cannot be read: {os_reason(error)}") from None
            continue
        config = DataConfig(dataset=str(file))
        try:
            dialogs = read_dialogs(find_source(config), config).dialogs
        except DataError as error:
            error.hint = _HELP  # this verb has no data settings to change
            raise
        for dialog in dialogs:
            yield from (message.content for message in dialog)
