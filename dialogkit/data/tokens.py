"""Dialogs as token arrays: encoded, cut to the context, packed one after another."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dialogkit.data.split import hash_dialog
from dialogkit.dialog import ChatTokenizer, Dialog, Encoded

_CHUNK_DIALOGS, _CHUNK_CHARACTERS = 4096, 4 * 2**20
"""Dialogs that are tokenized at once: a token takes a hundred times the memory of its text meanwhile."""


class DialogTokens:
    """Token ids of many dialogs in three flat arrays; `dialogs[i]` is a dict of views.

    ids [T_total], supervised [T_total], offsets [N + 1], answer_bytes [N] (UTF-8 bytes of the answers).
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        supervised: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        answer_bytes: NDArray[np.int64],
    ) -> None:
        self.ids = ids
        self.supervised = supervised
        self.offsets = offsets
        self.answer_bytes = answer_bytes

    def __len__(self) -> int:
        return len(self.answer_bytes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        return {
            "input_ids": self.ids[start:end],
            "supervised": self.supervised[start:end],
            "answer_bytes": int(self.answer_bytes[index]),
        }

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> "DialogTokens":
        """Return a copy with only these dialogs, in this order."""
        chosen = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        lengths = np.array([s.stop - s.start for s in chosen], dtype=np.int64)
        return DialogTokens(
            np.concatenate([self.ids[s] for s in chosen] or [self.ids[:0]]),
            np.concatenate([self.supervised[s] for s in chosen] or [self.supervised[:0]]),
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            self.answer_bytes[list(indices)],
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each dialog."""
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> int:
        """Number of tokens that are learned."""
        return int(self.supervised.sum())


class Origins(NamedTuple):
    """What dialogs were before they became tokens, in the order of these.

    hashes [N] (`hash_dialog`), whole_tokens [N] (tokens before the dialog was cut).
    """

    hashes: NDArray[np.uint64]
    whole_tokens: NDArray[np.int64]

    def select(self, indices: NDArray[np.int64]) -> "Origins":
        """Return those of some dialogs, in this order."""
        return Origins(self.hashes[indices], self.whole_tokens[indices])


def encode(
    dialogs: Sequence[Dialog], tokenizer: ChatTokenizer, longest: int
) -> tuple[tuple[DialogTokens, Origins], int, int]:
    """Return dialogs as tokens, at most `longest` of each, and how many were dropped and cut.

    Raises: DataError if the model's own template refuses a dialog.
    """
    ids: list[NDArray[np.int32]] = []
    supervised: list[NDArray[np.bool_]] = []
    answer_bytes: list[int] = []
    hashes: list[int] = []
    whole_tokens: list[int] = []
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
            ids.append(np.array(encoded.input_ids, dtype=np.int32))
            supervised.append(np.array(encoded.supervised, dtype=np.bool_))
            answer_bytes.append(_answer_bytes(dialog, encoded, tokenizer, whole=not shortened))
            hashes.append(hash_dialog(dialog))
            whole_tokens.append(whole)
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    tokens = DialogTokens(
        np.concatenate(ids or [np.zeros(0, np.int32)]),
        np.concatenate(supervised or [np.zeros(0, np.bool_)]),
        offsets,
        np.array(answer_bytes, dtype=np.int64),
    )
    origins = Origins(np.array(hashes, dtype=np.uint64), np.array(whole_tokens, dtype=np.int64))
    return (tokens, origins), dropped, cut


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

    The rule: whole turns go from the end until what is left fits and ends with an answer; where not even the
    first answer fits, that answer is cut at the limit and its end of turn is not learned.
    """
    ends = [
        index + 1
        for index, learned in enumerate(encoded.supervised)
        if learned and (index + 1 == len(encoded.supervised) or not encoded.supervised[index + 1])
    ]
    fitting = [end for end in ends if end <= longest]
    end = fitting[-1] if fitting else longest
    return Encoded(encoded.input_ids[:end], encoded.supervised[:end])


def _answer_bytes(dialog: Dialog, encoded: Encoded, tokenizer: ChatTokenizer, *, whole: bool) -> int:
    """Return the UTF-8 bytes of the answers that are learned; a template may leave some of them out."""
    learned = list(_runs(encoded))
    answers = [message.content for message in dialog if message.role == "assistant"]
    if not whole or len(learned) < len(answers):
        answers = [tokenizer.decode(ids) for ids in learned]
    return sum(len(answer.encode("utf-8", "replace")) for answer in answers)


def _runs(encoded: Encoded) -> Iterator[list[int]]:
    """Yield the ids of each supervised stretch."""
    pairs = zip(encoded.supervised, encoded.input_ids, strict=True)
    for learned, group in groupby(pairs, key=itemgetter(0)):
        if learned:
            yield [token for _, token in group]


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], answer_bytes: Sequence[int]) -> "DialogTokens":
    """Return prompts with answers, of which the answers are supervised."""
    import numpy as np

    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    return DialogTokens(
        np.array([token for pair in pairs for part in pair for token in part], dtype=np.int32),
        np.array([mark for prompt, answer in pairs for mark in [False] * len(prompt) + [True] * len(answer)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(answer_bytes, dtype=np.int64),
    )


def concatenate(parts: "Sequence[DialogTokens]") -> "DialogTokens":
    """Return the dialogs of several sets as one."""
    import numpy as np

    lengths = np.concatenate([part.lengths for part in parts])
    return DialogTokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.supervised for part in parts]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate([part.answer_bytes for part in parts]),
    )
