"""Shows what a model sees of a dataset: statistics of its dialogs, what is odd about them, and their tokens."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dialogkit.config.load import load_run_config, require_overrides
from dialogkit.config.paths import cache_dir
from dialogkit.config.problems import require_number
from dialogkit.config.run import RunConfig
from dialogkit.data.checks import is_right
from dialogkit.data.duplicates import NEAR, SHINGLE_WORDS, Pairs, group_labels, near_pairs
from dialogkit.data.prepare import PreparedData, prepare_data
from dialogkit.data.row_parser import MARKED_BAD
from dialogkit.data.sources import RawData, datasets_in, find_source, read_dialogs
from dialogkit.data.split import hash_dialog
from dialogkit.data.statistics import (
    compression_ratios,
    count_characters,
    find_broken,
    length_bins,
    script_fractions,
    surprise,
)
from dialogkit.data.tokens import DialogTokens
from dialogkit.data.views import View
from dialogkit.dialog import Dialog
from dialogkit.errors import DataError, DialogKitError
from dialogkit.hints import Call, Change, Either, Hint
from dialogkit.services.inspection.remarks import FEW_STEPS, enough_epochs, remarks
from dialogkit.services.inspection.results import (
    CheckedAnswers,
    Copies,
    Example,
    InspectResult,
    LengthBin,
    Lengths,
    NearPair,
    Overlap,
    SetFigures,
    ShownDialog,
    Token,
)
from dialogkit.system.compute_lock import alone

if TYPE_CHECKING:
    from dialogkit.models.tokenizer import ChatTokenizer

__all__ = ["InspectResult", "inspect_data"]

EXAMPLES = 3
"""Dialogs that are listed as the longest, the oddest and so on."""
TRIED = 2_000
"""Dialogs whose checks are tried, as each may be a pattern of its own."""
ODD_CHARACTERS = 32
"""Shortest text that can be the oddest: a few characters always differ from the rest."""
REPETITIVE_BYTES = 256
"""Shortest text that can be the most repetitive: zlib's overhead dominates shorter ones."""
_NAMES_AND_NUMBERS = re.compile(r"\b\d+(?:[.,:]\d+)*\b|(?<=[^.!?\s] )[^\W\d_a-z]\w*")
"""Numbers, and words with a capital inside a sentence."""
_OTHER_FILE = "inspect one of its files"
BEGINNING = 200
"""Characters of a dialog that are shown."""


@alone()
def inspect_data(
    dataset: str | Path = "starter",
    *,
    model: str = "custom-tiny",
    samples: int | None = None,
    show: int = 0,
    max_bad_rows: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> InspectResult:
    """Return what training `model` would see of a dataset, and what stands out in it.

    The rows are those of the whole dataset; everything else is about the dialogs that training would use: the
    first `samples` to train on, and those held out.

    Args:
        dataset: starter, smalltalk, alpaca-gpt4, a file, a world or a hub id.
        model: a model as `train` takes it; provides tokenizer and context.
        samples: training dialogs to use, the same as `train` would; None is all.
        show: return this many of the first training dialogs token by token.
        max_bad_rows: malformed rows of a file to skip.
        overrides: further settings by dotted names, such as `{"data.max_tokens": 512}`.

    Raises: what `train` raises for the same data and model.
    """
    require_overrides(overrides)
    require_number("show", show, least=0, most=10_000, usual=1)
    settings = {"data.dataset": str(dataset), "data.samples": samples, "data.max_bad_rows": max_bad_rows}
    try:
        return _inspect(load_run_config(model, overrides={**settings, **(overrides or {})}), show)
    except DialogKitError as error:
        error.hint = error.hint and _to_inspect(error.hint, str(dataset))
        raise


def _to_inspect(hint: Hint, dataset: str) -> Hint:
    """Return a hint of `train` as one of an inspection of a dataset, which is an argument there."""
    match hint:
        case Change(settings) if "data.streaming" in settings:
            files = datasets_in(settings.get("data.dataset", ""))
            return Either(*(_inspection({"data.dataset": file}) for file in files)) if files else _OTHER_FILE
        case Change(settings):
            return _inspection(settings) if "data.dataset" in settings else hint
        case Call("train") if "data.dataset" in hint.options:
            return _inspection(hint.options)
        case Call("train", (model,)) if not hint.options:
            return Call("data inspect", dataset, model=model)
        case Either(hints):
            return Either(*(_to_inspect(each, dataset) for each in hints))
        case _:
            return hint


def _inspection(settings: Mapping[str, Any]) -> Call:
    others = {name: value for name, value in settings.items() if name != "data.dataset"}
    return Call("data inspect", settings["data.dataset"], settings=others)


def _inspect(config: RunConfig, show: int) -> InspectResult:
    # Report a wrong file before loading the libraries of models, which takes seconds.
    raw = read_dialogs(find_source(config.data), config.data)

    from dialogkit.models.context import read_context
    from dialogkit.models.shipped import load_encoder

    tokenizer = load_encoder(config.model)
    context = read_context(config.model)
    data = prepare_data(config.data, tokenizer, context=context, cache=cache_dir(), raw=raw)
    texts = _Texts(raw, data)
    limit = min(config.data.max_tokens or context, context)
    statistics: dict[str, Any] = {
        **_ledger(data, texts, raw),
        **_lengths(data, texts, limit),
        **_text_statistics(data, texts, tokenizer),
        **_repetitions(data, texts),
    }
    shown = [_shown(data.train, index, texts, tokenizer) for index in range(min(show, len(data.train)))]
    steps = math.ceil(len(data.train) / config.train.batch_size)
    train = config.train
    enough = train.max_steps is not None or train.epochs > 1 or steps * train.epochs >= FEW_STEPS
    result = InspectResult(
        model=config.model.name,
        context=context,
        limit=limit,
        **statistics,
        remarks=[],
        shown=shown,
        steps=steps,
        epochs=None if enough else enough_epochs(steps),
    )
    return result.model_copy(update={"remarks": list(remarks(result, config))})


class _Texts:
    """The texts of the prepared dialogs in the order of `data`: those to train on, then those held out.

    They are made from the packed dialogs whenever they are read, as there may be many.
    """

    def __init__(self, raw: RawData, data: PreparedData) -> None:
        first = data.ledger.first_bad_row  # one that only the chat template refuses is not among the others
        self.unusable_rows = raw.bad_rows[:EXAMPLES] or ([first] if first is not None else [])
        known, numbers = np.unique(
            np.fromiter(map(hash_dialog, raw.dialogs), np.uint64, len(raw.dialogs)), return_index=True
        )
        hashes = np.concatenate([data.train.hashes, data.evaluation.hashes])
        found = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        if (known[found] != hashes).any():
            raise DataError(f"{raw.name} changed while it was read", hint="repeat this once the file is complete")
        self.rows = rows = numbers[found]
        self.dialogs = View(len(rows), lambda index: raw.dialogs[rows[index]])
        self.places = View(len(rows), lambda index: raw.places[rows[index]])
        self.texts = View(len(rows), lambda index: "\n".join(turn.content for turn in self.dialogs[index]))
        # Indices of the distinct dialogs [D], and the number of copies of each [D].
        _, self.distinct, self.copies = np.unique(hashes, return_index=True, return_counts=True)
        self.whole_tokens = np.concatenate([data.train.whole_tokens, data.evaluation.whole_tokens])

    def beginning(self, index: int) -> str:
        return self.texts[index][:BEGINNING]

    def examples(self, indices: Sequence[int], values: NDArray[Any], *, lowest: bool = False) -> list[Example]:
        """Return the dialogs with the highest (or lowest) values; ties in the order of the dataset."""
        sign = 1 if lowest else -1
        order = nsmallest(EXAMPLES, range(len(indices)), key=lambda n: (sign * values[n], self.rows[indices[n]]))
        best = [(float(values[n]), indices[n]) for n in order]
        return [Example(value=value, place=self.places[i], beginning=self.beginning(i)) for value, i in best]


def _ledger(data: PreparedData, texts: _Texts, raw: RawData) -> dict[str, Any]:
    names = ("dataset", "format", "license", "revision", "rows", "kept", "cut", "dropped", "unusable", "split_by")
    train, held_out = _figures(data.train), _figures(data.evaluation)
    learned = train.supervised_tokens + held_out.supervised_tokens
    ledger = data.ledger
    if ledger.notes.get(MARKED_BAD) == ledger.unusable:  # as the remark on unusable rows says
        ledger = replace(ledger, notes={note: n for note, n in ledger.notes.items() if note != MARKED_BAD})
    return {
        **{name: getattr(data.ledger, name) for name in names},
        "train": train,
        "held_out": held_out,
        "checked": _checked(raw),
        "unusable_rows": texts.unusable_rows,
        "notes": ledger.remarks(),
        "supervised_share": learned / (train.tokens + held_out.tokens),
    }


def _checked(raw: RawData) -> CheckedAnswers:
    """Return how many answers are checked, and whether the checks tell right answers from others."""
    echoed, tried, failed = 0, 0, list[str]()
    every = math.ceil(len(raw.checked) / TRIED) or 1
    for index, checked in islice(raw.checked.items(), 0, None, every):
        dialog = raw.dialogs[index]
        learned = [at for at, turn in enumerate(dialog) if turn.role == "assistant" and turn.learned]
        for at, check in zip(learned, checked.checks, strict=True):
            if check is not None:
                tried += 1
                echoed += is_right(dialog[at - 1].content, check)
                if not is_right(dialog[at].content, check):
                    failed.append(raw.places[index])
    number = sum(one.number for one in raw.checked.values())
    places = failed[:EXAMPLES]
    return CheckedAnswers(answers=number, tried=tried, echoed=echoed, failed=len(failed), failed_places=places)


def _figures(dialogs: DialogTokens) -> SetFigures:
    tokens = int(dialogs.lengths.sum())
    return SetFigures(dialogs=len(dialogs), tokens=tokens, supervised_tokens=dialogs.supervised_tokens)


def _lengths(data: PreparedData, texts: _Texts, limit: int) -> dict[str, Any]:
    whole = texts.whole_tokens
    bins = length_bins(whole, limit)
    median, high, highest = np.percentile(whole, [50, 95, 99])
    return {
        "cut_share": float((whole > limit).mean()),
        "lengths": Lengths(
            median=float(median),
            percentile_95=float(high),
            percentile_99=float(highest),
            longest=int(whole.max()),
            histogram=[LengthBin(low=b.low, high=b.high, dialogs=b.dialogs, cut=b.low > limit) for b in bins],
        ),
        "longest": texts.examples(texts.distinct.tolist(), whole[texts.distinct]),
    }


def _text_statistics(data: PreparedData, texts: _Texts, tokenizer: "ChatTokenizer") -> dict[str, Any]:
    """Return the statistics of turns, characters and tokens."""
    turns = Counter(sum(message.role != "system" for message in dialog) for dialog in texts.dialogs)
    counts, broken = count_characters(texts.texts), sorted(find_broken(texts.texts), key=texts.rows.__getitem__)
    distinct = texts.distinct.tolist()
    long = [i for i in distinct if len(texts.texts[i]) >= ODD_CHARACTERS]
    longer = [i for i in distinct if len(texts.texts[i].encode()) >= REPETITIVE_BYTES]
    ids = np.concatenate([data.train.ids, data.evaluation.ids])
    # Of the text that is cut off, only the number of tokens is known.
    plain = int(texts.whole_tokens.sum()) - int(np.isin(ids, list(tokenizer.special_ids)).sum())
    return {
        "turns": dict(sorted(turns.items())),
        "system_prompts": sum(dialog[0].role == "system" for dialog in texts.dialogs),
        "scripts": script_fractions(counts),
        "bytes_per_token": sum(len(m.content.encode()) for d in texts.dialogs for m in d) / max(1, plain),
        "broken": len(broken),
        "broken_places": [texts.places[index] for index in broken[:EXAMPLES]],
        "oddest": texts.examples(long, surprise(View(len(long), lambda n: texts.texts[long[n]]), counts)),
        "most_repetitive": texts.examples(
            longer, compression_ratios(View(len(longer), lambda n: texts.texts[longer[n]])), lowest=True
        ),
    }


def _repetitions(data: PreparedData, texts: _Texts) -> dict[str, Any]:
    """Return the duplicates, and what held-out dialogs share with those to train on."""
    held_out_from, distinct, rows = len(data.train), texts.distinct, texts.rows
    pairs = near_pairs(View(len(distinct), lambda number: texts.texts[distinct[number]]))
    members = np.unique(np.concatenate([pairs.first, pairs.second]))
    one, other = (np.searchsorted(members, ends) for ends in (pairs.first, pairs.second))
    groups = np.unique(group_labels(len(members), Pairs(one, other, pairs.similarity)))
    first, second = distinct[pairs.first], distinct[pairs.second]
    is_held_out = np.stack([first, second]) >= held_out_from
    across = is_held_out[0] != is_held_out[1]
    known = set(np.where(is_held_out[0], first, second)[across].tolist())
    copied = np.flatnonzero(texts.copies > 1)
    ends = [sorted(pair, key=rows.__getitem__) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    best = sorted(range(len(ends)), key=lambda n: (-pairs.similarity[n], rows[ends[n][0]], rows[ends[n][1]]))
    near = sum(int(number) for index, number in zip(distinct, texts.copies, strict=True) if int(index) in known)
    return {
        "copies": Copies(
            exact=len(texts.texts) - len(distinct),
            near=len(members),
            near_groups=len(groups),
            threshold=NEAR,
            shingle_words=SHINGLE_WORDS,
        ),
        "most_copied": texts.examples(distinct[copied].tolist(), texts.copies[copied]),
        "near_pairs": [
            NearPair(
                similarity=float(pairs.similarity[n]),
                places=(texts.places[ends[n][0]], texts.places[ends[n][1]]),
                beginnings=(texts.beginning(ends[n][0]), texts.beginning(ends[n][1])),
            )
            for n in best[:EXAMPLES]
        ],
        "overlap": _overlap(texts.dialogs, held_out_from, near),
    }


def _overlap(dialogs: Sequence[Dialog], held_out_from: int, near: int) -> Overlap:
    """Return what the held-out dialogs share with those to train on, of which there may be many more."""
    held_out = [_first_exchange(dialog) for dialog in dialogs[held_out_from:]]
    prompts, answers = (set(part) for part in zip(*held_out, strict=True))
    templates = {_template(prompt) for prompt in prompts} - {None}
    known_prompts, known_answers, known_templates = set[Dialog](), set[str](), set[str | None]()
    for index in range(held_out_from):
        prompt, answer = _first_exchange(dialogs[index])
        known_prompts.update({prompt} & prompts)
        known_answers.update({answer} & answers)
        if templates:
            known_templates.update({_template(prompt)} & templates)
    return Overlap(
        prompt=sum(prompt in known_prompts for prompt, _ in held_out),
        answer=sum(answer in known_answers for _, answer in held_out),
        near=near,
        template=sum(
            prompt not in known_prompts and _template(prompt) in known_templates for prompt, _ in held_out
        ),
    )


def _first_exchange(dialog: Dialog) -> tuple[Dialog, str]:
    """Return everything before the first answer, and that answer, including what training cuts off."""
    at = next(i for i, message in enumerate(dialog) if message.role == "assistant" and message.learned)
    return dialog[:at], dialog[at].content


def _template(prompt: Dialog) -> str | None:
    """Return a prompt with a mark for each name and number, or None if it has neither."""
    text = "\n".join(message.content for message in prompt)
    made = _NAMES_AND_NUMBERS.sub("_", text)
    return None if made == text else made


def _shown(dialogs: DialogTokens, index: int, texts: _Texts, tokenizer: "ChatTokenizer") -> ShownDialog:
    ids, learned = (dialogs[index][name].tolist() for name in ("input_ids", "supervised"))
    tokens = [
        Token(id=number, text=text, special=number in tokenizer.special_ids, supervised=mark)
        for number, text, mark in zip(ids, tokenizer.token_texts(ids), learned, strict=True)
    ]
    return ShownDialog(place=texts.places[index], tokens=tokens)
