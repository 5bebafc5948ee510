"""Dialogs as token arrays: encoded, cut to the context, packed one after another."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dialogkit.data.split import hash_dialog
from dialogkit.dialog import ChatTokenizer, Dialog, Encoded

_CHUNK_DIALOGS, _CHUNK_CHARACTERS = 4096, 4 * 2**20
"""Limits of a batch to tokenize: meanwhile, a token takes a hundred times the memory of its text."""


@dataclass(eq=False)
class DialogTokens:
    """Token ids of many dialogs in flat arrays; `dialogs[i]` is a dict of views.

    ids [T_total], supervised [T_total], offsets [N + 1], answer_bytes [N] (UTF-8 bytes of the answers),
    hashes [N] (`hash_dialog`; 0 if unknown), whole_tokens [N] (tokens before the dialog was cut).
    """

    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    answer_bytes: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    whole_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.answer_bytes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        return {
            "input_ids": self.ids[start:end],
            "supervised": self.supervised[start:end],
            "answer_bytes": int(self.answer_bytes[index]),
            "hash": self.hashes[index],
            "whole_tokens": self.whole_tokens[index],
        }

    @classmethod
    def from_dialogs(cls, dialogs: Iterable[Mapping[str, Any]]) -> Self:
        """Pack dialogs that are dicts such as `dialogs[i]` returns."""
        rows = list(dialogs)
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(row["input_ids"] for row in rows)], dtype=np.int32),
            np.concatenate([np.zeros(0, np.bool_), *(row["supervised"] for row in rows)], dtype=np.bool_),
            np.cumsum([0, *(len(row["input_ids"]) for row in rows)], dtype=np.int64),
            np.array([row["answer_bytes"] for row in rows], dtype=np.int64),
            np.array([row.get("hash", 0) for row in rows], dtype=np.uint64),
            np.array([row.get("whole_tokens", len(row["input_ids"])) for row in rows], dtype=np.int64),
        )

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """Return a copy with only these dialogs, in this order."""
        return self.from_dialogs(self[int(index)] for index in indices)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each dialog."""
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(self.supervised.sum())


def encode(dialogs: Sequence[Dialog], tokenizer: ChatTokenizer, longest: int) -> tuple[DialogTokens, int, int]:
    """Return dialogs as at most `longest` tokens each, and the numbers of dropped and cut dialogs.

    Raises: DataError if the model's own template refuses a dialog.
    """
    rows: list[dict[str, Any]] = []
    cut = dropped = 0
    for chunk in _chunks(dialogs):
        for dialog, encoded in zip(chunk, tokenizer.encode_dialogs(chunk), strict=True):
            whole = len(encoded.input_ids)
            shortened = whole > longest
            if shortened:
                encoded = cut_dialog(encoded, longest)
            # The first token is never predicted.
            if not any(encoded.supervised[1:]):
                dropped += 1
                continue
            cut += shortened
            rows.append(
                {
                    "input_ids": np.array(encoded.input_ids, dtype=np.int32),
                    "supervised": np.array(encoded.supervised, dtype=np.bool_),
                    "answer_bytes": _answer_bytes(dialog, encoded, tokenizer, whole=not shortened),
                    "hash": hash_dialog(dialog),
                    "whole_tokens": whole,
                }
            )
    return DialogTokens.from_dialogs(rows), dropped, cut


def _chunks(dialogs: Sequence[Dialog]) -> Iterator[Sequence[Dialog]]:
    start = characters = 0
    for number, dialog in enumerate(dialogs):
        characters += sum(len(message.content) for message in dialog)
        if number > start and (number - start == _CHUNK_DIALOGS or characters > _CHUNK_CHARACTERS):
            yield dialogs[start:number]
            start, characters = number, sum(len(message.content) for message in dialog)
    yield dialogs[start:]


def cut_dialog(encoded: Encoded, longest: int) -> Encoded:
    """Shorten a dialog to `longest` tokens.

    Whole turns are removed from the end until the rest fits and ends with an answer. If not even the first answer
    fits, that answer is cut at the limit, and its end of turn is not supervised.
    """
    pairs = zip(encoded.supervised, [*encoded.supervised[1:], False], strict=True)
    ends = [end for end, (learned, continues) in enumerate(pairs, 1) if learned and not continues]
    end = max((end for end in ends if end <= longest), default=longest)
    return Encoded(encoded.input_ids[:end], encoded.supervised[:end])


def _answer_bytes(dialog: Dialog, encoded: Encoded, tokenizer: ChatTokenizer, *, whole: bool) -> int:
    """Return the UTF-8 bytes of the supervised answers; a template may leave some answers out."""
    learned = list(_runs(encoded))
    answers = [message.content for message in dialog if message.role == "assistant"]
    if not whole or len(learned) < len(answers):
        answers = [tokenizer.decode(ids) for ids in learned]
    return sum(len(answer.encode("utf-8", "replace")) for answer in answers)


def _runs(encoded: Encoded) -> Iterator[list[int]]:
    """Yield the ids of each run of supervised tokens."""
    pairs = zip(encoded.supervised, encoded.input_ids, strict=True)
    for learned, group in groupby(pairs, key=itemgetter(0)):
        if learned:
            yield [token for _, token in group]


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], answer_bytes: Sequence[int]) -> DialogTokens:
    """Pack prompts with their answers into dialogs in which only the answers are supervised."""
    return DialogTokens.from_dialogs(
        {
            "input_ids": np.array([*prompt, *answer], dtype=np.int32),
            "supervised": np.arange(len(prompt) + len(answer)) >= len(prompt),
            "answer_bytes": size,
        }
        for (prompt, answer), size in zip(pairs, answer_bytes, strict=True)
    )


def concatenate(sets: Iterable[DialogTokens]) -> DialogTokens:
    """Return the dialogs of several sets as one."""
    return DialogTokens.from_dialogs(dialogs[index] for dialogs in sets for index in range(len(dialogs)))
