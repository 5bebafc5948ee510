"""Dialogs as token arrays: encoded, cut to the context, packed one after another."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from operator import itemgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dialogkit.data.split import hash_dialog
from dialogkit.dialog import ChatTokenizer, Dialog, Encoded, Remarks

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
        chosen = np.asarray(indices, dtype=np.int64)
        starts, lengths = self.offsets[chosen], self.lengths[chosen]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        ids, supervised = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.bool_)
        # In blocks: the place of a token takes twice the memory of its id.
        for first in range(0, len(chosen), _CHUNK_DIALOGS):
            block = slice(first, first + _CHUNK_DIALOGS)
            begin, end = offsets[first], offsets[min(first + _CHUNK_DIALOGS, len(chosen))]
            places = np.repeat(starts[block] - offsets[:-1][block], lengths[block]) + np.arange(begin, end)
            ids[begin:end], supervised[begin:end] = self.ids[places], self.supervised[places]
        sizes, hashes, whole = self.answer_bytes[chosen], self.hashes[chosen], self.whole_tokens[chosen]
        return type(self)(ids, supervised, offsets, sizes, hashes, whole)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each dialog."""
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> int:
        """Number of supervised tokens."""
        return int(self.supervised.sum())


@dataclass
class Encoding:
    """Dialogs as tokens, and remarks on them."""

    tokens: DialogTokens
    dropped: int = 0
    """Dialogs without a supervised token among the first `longest`."""
    cut: int = 0
    unfit: list[tuple[int, str]] = field(default_factory=list)
    """Index and reason of each dialog that the chat template refuses, or that has no answer to learn."""
    answers: int = 0
    """Answers to learn in all dialogs that the template accepts."""
    not_learned: Counter[str] = field(default_factory=Counter)
    """Those that are not learned, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was changed to fit the template, with the number of dialogs."""
    partial: list[int] = field(default_factory=list)
    """Hashes of the dialogs in which some answers to learn are not learned."""

    def __add__(self, other: "Encoding") -> "Encoding":
        """Return the remarks on both; the tokens are not joined."""
        sums = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name != "tokens"
        }
        return Encoding(self.tokens, **sums)

    def count(self, dialog: Dialog, remarks: Remarks) -> None:
        """Add the remarks on a dialog."""
        self.notes.update(remarks.notes)
        self.not_learned.update(remarks.not_learned)
        if remarks.refused is None:
            self.answers += sum(message.role == "assistant" and message.learned for message in dialog)


def encode(dialogs: Sequence[Dialog], tokenizer: ChatTokenizer, longest: int) -> Encoding:
    """Return dialogs as at most `longest` tokens each, with remarks on them.

    Raises: DataError if the model's own template takes too much time or memory.
    """
    packed: list[DialogTokens] = []
    result = Encoding(DialogTokens.from_dialogs(()))
    for start, chunk in _chunks(dialogs):
        rows: list[dict[str, Any]] = []
        for number, (dialog, encoded) in enumerate(
            zip(chunk, tokenizer.encode_dialogs(chunk), strict=True), start
        ):
            remarks = encoded.remarks  # those of the whole dialog
            result.count(dialog, remarks)
            if problem := _unfit(encoded):
                result.unfit.append((number, problem))
                continue
            whole = len(encoded.input_ids)
            shortened = whole > longest
            if shortened:
                encoded = cut_dialog(encoded, longest)
            # The first token is never predicted.
            if not any(encoded.supervised[1:]):
                result.dropped += 1
                continue
            result.cut += shortened
            hashed = hash_dialog(dialog)
            if remarks.not_learned:
                result.partial.append(hashed)
            rows.append(
                {
                    "input_ids": np.array(encoded.input_ids, dtype=np.int32),
                    "supervised": np.array(encoded.supervised, dtype=np.bool_),
                    "answer_bytes": _answer_bytes(dialog, encoded, tokenizer, whole=not shortened),
                    "hash": hashed,
                    "whole_tokens": whole,
                }
            )
        packed.append(DialogTokens.from_dialogs(rows))
    result.tokens = concatenate(packed)
    return result


def _unfit(encoded: Encoded) -> str | None:
    """Return why a dialog cannot be learned under the template of the model, whatever its length, or None."""
    remarks = encoded.remarks
    if remarks.refused is not None:
        return remarks.refused
    if remarks.not_learned and not any(encoded.supervised):
        return f"no answer can be learned: {remarks.not_learned[0]}"
    return None


def _chunks(dialogs: Sequence[Dialog]) -> Iterator[tuple[int, Sequence[Dialog]]]:
    """Yield consecutive chunks of dialogs, each with the index of its first."""
    start = characters = 0
    for number, dialog in enumerate(dialogs):
        characters += sum(len(message.content) for message in dialog)
        if number > start and (number - start == _CHUNK_DIALOGS or characters > _CHUNK_CHARACTERS):
            yield start, dialogs[start:number]
            start, characters = number, sum(len(message.content) for message in dialog)
    yield start, dialogs[start:]


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
    parts = [DialogTokens.from_dialogs(()), *sets]
    lengths = np.concatenate([part.lengths for part in parts])
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "supervised", "answer_bytes", "hashes", "whole_tokens")
    }
    return DialogTokens(offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), **joined)
