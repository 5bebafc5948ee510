"""Which files of a model's folder go to the hub, and a search of them for secrets."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from dialogkit.config.base import Result
from dialogkit.config.paths import ADAPTER_CONFIG, file_kind
from dialogkit.errors import ModelError, os_reason
from dialogkit.hints import Change
from dialogkit.redaction import secret_in
from dialogkit.text import listed

CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.gguf")
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
_OTHERS = (
    *("*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER_CONFIG),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "LICENSE*", "NOTICE*", "Modelfile", "*.certificate.json"),
)
_OF_A_MODEL = ("*.safetensors", *_PICKLES, "*.index.json", ADAPTER_CONFIG)
"""Files that make another model of a folder if they are left from an earlier one; GGUF files stand alone."""
_OF_ONE = (*_WEIGHTS, "*.certificate.json")
"""Files of one of several models in a folder."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.index.json", "*.tiktoken")
"""Texts that are no place for secrets, and whose entries may look like one."""
_NAME_THEIR_FOLDER = {"config.json", "tokenizer_config.json"}
_OF_A_FOLDER = ("_name_or_path", "name_or_path")
_MOST = 4 * 2**20


class PushedFile(Result):
    """A file that goes to the hub."""

    name: str
    bytes: int


class Upload(NamedTuple):
    """What goes to the hub, by its name there.

    Attributes:
        files: the files on disk.
        texts: what is made for the hub.
    """

    files: Mapping[str, Path]
    texts: Mapping[str, str]

    def listed(self) -> list[PushedFile]:
        """Return the names and sizes, in alphabetical order."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        sizes |= {name: len(text.encode()) for name, text in self.texts.items()}
        return [PushedFile(name=name, bytes=size) for name, size in sorted(sizes.items())]

    def require_no_secrets(self) -> None:
        """Raise ModelError if a text holds what looks like a secret."""
        for name, text in {**self._read(), **self.texts}.items():
            if (found := secret_in(text, named=False)) is not None:
                raise ModelError(
                    f"{name} holds {found}, which everybody with access to the repository could read",
                    hint=f"remove it from {str(self.files.get(name, name))!r}",
                )

    def _read(self) -> dict[str, str]:
        binary = (*_WEIGHTS, *_PICKLES, *_VOCABULARIES, "tokenizer.model")
        texts = {name: path for name, path in self.files.items() if not _is_one_of(name, binary)}
        return {name: path.read_bytes()[:_MOST].decode("utf-8", "replace") for name, path in texts.items()}


def choose_files(folder: Path, *, only: str | None, pickles: bool) -> tuple[dict[str, Path], list[str]]:
    """Return the files of a folder that are the model, by name, and the names of all others but its card.

    Args:
        folder: the folder of a model.
        only: the one file with weights that goes; None for all.
        pickles: also take weights that are a pickle.

    Raises: ModelError without weights that can go, or for a file that cannot be read.
    """
    wanted = (*_WEIGHTS, *_OTHERS, *(_PICKLES if pickles else ()))
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(f"the folder {str(folder)!r} cannot be read: {os_reason(error)}") from None
    stem = None if only is None else only.rpartition(".")[0]
    certificate = f"{stem}.certificate.json"
    others = {name for name in names if _is_one_of(name, _OF_ONE) and stem and name not in (only, certificate)}
    chosen = {name: folder / name for name in names if _is_one_of(name, wanted) and name not in others}
    for path in chosen.values():
        if (kind := file_kind(path)) is not None:
            raise ModelError(f"{str(path)!r} is {kind}, not a regular file")
    if not any(_is_one_of(name, (*_WEIGHTS, *_PICKLES)) for name in chosen):
        as_pickles = [name for name in names if _is_one_of(name, _PICKLES)]
        if as_pickles:
            raise ModelError(
                f"the weights in {str(folder)!r} are a pickle ({listed(as_pickles)}), which can run code",
                hint=Change({"include_pickle": True}),
            )
        raise ModelError(f"the folder {str(folder)!r} holds no weights")
    left = [name for name in names if name not in chosen and name != CARD and not name.startswith(".")]
    return chosen, left


def settings_without_folders(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the settings among some files that say from which folder a model was loaded, without that."""
    made = {}
    for name in _NAME_THEIR_FOLDER & files.keys():
        with suppress(ValueError, RecursionError):  # what is no JSON goes as it is, if it may go at all
            content = json.loads(files[name].read_bytes()[:_MOST])
            known = content if isinstance(content, dict) else {}
            named = {key for key in _OF_A_FOLDER if Path(str(known.get(key) or "")).is_absolute()}
            if named:
                kept = {key: value for key, value in known.items() if key not in named}
                made[name] = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    return made


def left_of_another_model(there: Sequence[str], sent: Sequence[str]) -> list[str]:
    """Return the files in a repository that would make another model of what is sent."""
    if not any(_is_one_of(name, _OF_A_MODEL) for name in sent):
        return []
    return sorted(name for name in there if _is_one_of(name, _OF_A_MODEL) and name not in sent)


def digest(content: Path | bytes, *, large: bool) -> str:
    """Return what the hub knows a file by: the SHA-256 of a large one, git's hash of another."""
    if isinstance(content, Path) and large:
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data = content.read_bytes() if isinstance(content, Path) else content
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
