"""Shows what a dataset is to a model: figures of its dialogs, what is odd about them, and their tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.data.split import held_out_remark
from dialogkit.dialog import Dialog
from dialogkit.errors import DataError, DialogKitError
from dialogkit.services.result import Result
from dialogkit.system.compute_lock import alone
from dialogkit.text import counted, share_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dialogkit.data.prepare import PreparedData
    from dialogkit.data.sources import RawData
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.models.tokenizer import ChatTokenizer

EXAMPLES = 3
"""Dialogs that are named as the longest, the oddest and so on."""
ODD_CHARACTERS = 32
"""Shortest text that can be the oddest: that of a few characters always differs from the rest."""
FEW_DIALOGS = 50
"""With fewer dialogs in a whole dataset there is little to learn but these."""
FEW_HELD_OUT = 8
"""With fewer held-out dialogs, a figure tells little of a model: `data.eval_min_dialogs`."""
REPETITIVE_BYTES = 256
"""Shortest text that can repeat itself most: what zlib adds to a short one is much of it."""
LONGEST_CONTEXT = 32_768
"""Longest context that is proposed."""
BEGINNING = 200
"""Characters of a dialog that stand for it."""


class SetFigures(Result):
    """Dialogs to train on, or held out, as they are trained or scored."""

    dialogs: int
    tokens: int
    supervised_tokens: int
    """Tokens that are learned: the answers, each with its end of turn."""


class LengthBin(Result):
    """Dialogs of `low` to `high` tokens, both included, before they are cut."""

    low: int
    high: int
    dialogs: int
    cut: bool


class Lengths(Result):
    """Tokens of the dialogs before they are cut."""

    median: float
    percentile_95: float
    percentile_99: float
    longest: int
    histogram: list[LengthBin]


class Copies(Result):
    """Dialogs that say the same, or nearly."""

    exact: int
    """Dialogs that are equal to an earlier one."""
    near: int
    """Different dialogs that have a near duplicate among the others."""
    near_groups: int
    """Groups of these; to keep one of each leaves `near - near_groups` out."""
    threshold: float
    """Jaccard similarity from which on two dialogs are near duplicates."""
    shingle_words: int
    """Words in a row whose sets are compared."""


class Overlap(Result):
    """Held-out dialogs that training has something of."""

    prompt: int
    """Those whose prompt (what is before the first answer) is that of a dialog to train on."""
    answer: int
    """Those whose first answer is that of a dialog to train on."""
    near: int
    """Those that are near duplicates of a dialog to train on."""


class Example(Result):
    """A dialog that stands out."""

    value: float
    place: str
    """Where it is: `file:line`, or `file[number]`."""
    beginning: str


class NearPair(Result):
    """Two near duplicates."""

    similarity: float
    places: tuple[str, str]
    beginnings: tuple[str, str]


class Token(Result):
    """A token of a dialog, as it is trained."""

    id: int
    text: str
    special: bool
    supervised: bool


class ShownDialog(Result):
    """A dialog token by token."""

    place: str
    tokens: list[Token]


class InspectResult(Result):
    """What a dataset is to a model."""

    dataset: str
    format: str
    license: str | None
    revision: str
    """SHA-256 of the file, or the hub dataset's fingerprint."""
    model: str
    context: int
    """Longest text of the model, in tokens."""
    limit: int
    """Longest dialog in tokens: the context, or less if `data.max_tokens` says so."""
    rows: int
    kept: int
    cut: int
    dropped: int
    """Dialogs without a supervised token inside the limit."""
    unusable: int
    """Rows that hold no dialog of the format."""
    unusable_rows: list[str]
    """The first of them, each with its place and the reason."""
    train: SetFigures
    held_out: SetFigures
    supervised_share: float
    """Of the tokens of both sets."""
    cut_share: float
    """Of the dialogs of both sets."""
    turns: dict[int, int]
    """Dialogs by their number of messages, the system's left out."""
    system_prompts: int
    """Dialogs that begin with a system message."""
    scripts: dict[str, float]
    """Share of each script among the letters."""
    bytes_per_token: float
    """UTF-8 bytes of the messages for each token that is not a special one."""
    lengths: Lengths
    copies: Copies
    most_copied: list[Example]
    """How often the text stands there."""
    near_pairs: list[NearPair]
    overlap: Overlap
    broken: int
    """Dialogs with control characters, marks that reorder text, or U+FFFD in the place of a character."""
    broken_places: list[str]
    """Where the first of them are."""
    longest: list[Example]
    """Tokens."""
    oddest: list[Example]
    """Mean bits of a character under the frequencies of all characters, of dialogs of 32 characters or more."""
    most_repetitive: list[Example]
    """What zlib leaves of the bytes (0 to 1), of dialogs of 256 bytes or more."""
    remarks: list[str]
    """What is worth doing."""
    shown: list[ShownDialog]


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
    """Return what a training of `model` would make of a dataset, and what stands out in it.

    The rows are counted over the whole dataset; all else is about the dialogs that such a training uses: those to
    train on, as many as `samples`, and those held out.

    Args:
        dataset: starter, alpaca-gpt4, a file or a hub id.
        model: gives tokenizer and context; what `train` takes.
        samples: training dialogs to use, the ones that `train` would; None is all.
        show: so many of the first training dialogs are returned token by token.
        max_bad_rows: malformed rows of a file to pass over.
        overrides: further settings by dotted names, such as `{"data.max_tokens": 512}`.

    Raises: what `train` raises for the same data and model.
    """
    words = {"data.dataset": str(dataset), "data.samples": samples, "data.max_bad_rows": max_bad_rows}
    try:
        return _inspect(load_run_config(model, overrides={**words, **(overrides or {})}), show)
    except DialogKitError as error:
        # Below, hints are in words of `train`, whose option for the dataset is an argument here.
        hint = str(error.hint or "").replace("dialogkit train --dataset ", "dialogkit data inspect ")
        if "data.streaming" in hint:
            hint = "dialogkit data inspect FILE, with one of its files"
        hint = hint.replace("--dataset ", "dialogkit data inspect ")
        error.hint = hint.replace("dialogkit train custom-tiny", "dialogkit data inspect") or None
        raise


def _inspect(config: RunConfig, show: int) -> InspectResult:
    from dialogkit.data.sources import find_source, read_dialogs

    # What is wrong with a file is told before the libraries of models are loaded, which takes seconds.
    raw = read_dialogs(find_source(config.data), config.data)

    from dialogkit.config.paths import cache_dir
    from dialogkit.data.prepare import prepare_data
    from dialogkit.models.build import read_context
    from dialogkit.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    context = read_context(config.model)
    data = prepare_data(config.data, tokenizer, context=context, cache=cache_dir())
    texts = _Texts(raw, data)
    limit = min(config.data.max_tokens or context, context)
    facts: dict[str, Any] = {
        **_ledger(data, texts),
        **_lengths(data, texts, limit),
        **_figures(data, texts, tokenizer),
        **_repetitions(data, texts),
    }
    shown = [_shown(data.train, index, texts, tokenizer) for index in range(min(show, len(data.train)))]
    result = InspectResult(model=config.model.name, context=context, limit=limit, **facts, remarks=[], shown=shown)
    return result.model_copy(update={"remarks": remarks(result, config)})


class _Texts:
    """The texts of the prepared dialogs: first those to train on, then those held out, in the order of `data`."""

    def __init__(self, raw: "RawData", data: "PreparedData") -> None:
        import numpy as np

        from dialogkit.data.split import hash_dialog

        self.unusable_rows = raw.bad_rows[:EXAMPLES]
        first: dict[int, int] = {}
        for number, dialog in enumerate(raw.dialogs):
            first.setdefault(hash_dialog(dialog), number)
        hashes = np.concatenate([data.train_origins.hashes, data.evaluation_origins.hashes])
        rows = [first.get(value) for value in hashes.tolist()]
        self.rows = found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            raise DataError(f"{raw.name} was changed while it was read", hint="dialogkit data inspect --help")
        self.dialogs: list[Dialog] = [raw.dialogs[row] for row in found]
        self.places = [raw.places[row] for row in found]
        texts = {row: "\n".join(message.content for message in raw.dialogs[row]) for row in set(found)}
        self.texts = [texts[row] for row in found]
        # Indices of the different dialogs [D], and how often each stands there [D].
        _, self.distinct, self.copies = np.unique(hashes, return_index=True, return_counts=True)
        self.whole_tokens = np.concatenate([data.train_origins.whole_tokens, data.evaluation_origins.whole_tokens])

    def example(self, index: int, value: float) -> Example:
        return Example(value=value, place=self.places[index], beginning=self.beginning(index))

    def beginning(self, index: int) -> str:
        return self.texts[index][:BEGINNING]

    def examples(self, indices: Sequence[int], values: "NDArray[Any]", *, lowest: bool = False) -> list[Example]:
        """Return the dialogs with the highest values, or the lowest; of equal ones the first of the dataset."""
        sign = 1 if lowest else -1
        order = sorted(range(len(indices)), key=lambda n: (sign * values[n], self.rows[indices[n]]))
        return [self.example(indices[n], float(values[n])) for n in order[:EXAMPLES]]


def _ledger(data: "PreparedData", texts: _Texts) -> dict[str, Any]:
    ledger = data.ledger
    names = ("dataset", "format", "license", "revision", "rows", "kept", "cut", "dropped", "unusable")
    sets = {"train": data.train, "held_out": data.evaluation}
    figures = {
        name: SetFigures(
            dialogs=len(part), tokens=int(part.lengths.sum()), supervised_tokens=part.supervised_tokens
        )
        for name, part in sets.items()
    }
    learned = sum(part.supervised_tokens for part in figures.values())
    return {
        **{name: getattr(ledger, name) for name in names},
        **figures,
        "unusable_rows": texts.unusable_rows,
        "supervised_share": learned / sum(part.tokens for part in figures.values()),
    }


def _lengths(data: "PreparedData", texts: _Texts, limit: int) -> dict[str, Any]:
    import numpy as np

    from dialogkit.data.statistics import length_bins

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


def _figures(data: "PreparedData", texts: _Texts, tokenizer: "ChatTokenizer") -> dict[str, Any]:
    """Return what is about characters, turns and tokens."""
    import numpy as np

    from dialogkit.data.statistics import (
        count_characters,
        find_broken,
        packed_shares,
        script_shares,
        surprise,
    )

    turns = Counter(sum(message.role != "system" for message in dialog) for dialog in texts.dialogs)
    counts, broken = count_characters(texts.texts), sorted(find_broken(texts.texts), key=texts.rows.__getitem__)
    distinct = texts.distinct.tolist()
    long = [i for i in distinct if len(texts.texts[i]) >= ODD_CHARACTERS]
    longer = [i for i in distinct if len(texts.texts[i].encode()) >= REPETITIVE_BYTES]
    ids = np.concatenate([data.train.ids, data.evaluation.ids])
    # Of what was cut away, only the number of tokens is known.
    plain = int(texts.whole_tokens.sum()) - int(np.isin(ids, list(tokenizer.special_ids)).sum())
    return {
        "turns": dict(sorted(turns.items())),
        "system_prompts": sum(dialog[0].role == "system" for dialog in texts.dialogs),
        "scripts": script_shares(counts),
        "bytes_per_token": sum(len(m.content.encode()) for d in texts.dialogs for m in d) / max(1, plain),
        "broken": len(broken),
        "broken_places": [texts.places[index] for index in broken[:EXAMPLES]],
        "oddest": texts.examples(long, surprise([texts.texts[i] for i in long], counts)),
        "most_repetitive": texts.examples(longer, packed_shares([texts.texts[i] for i in longer]), lowest=True),
    }


def _repetitions(data: "PreparedData", texts: _Texts) -> dict[str, Any]:
    """Return what stands there twice, and what held-out dialogs have of those to train on."""
    import numpy as np

    from dialogkit.data.duplicates import NEAR, SHINGLE_WORDS, group_labels, near_pairs

    held_out_from = len(data.train)
    distinct = texts.distinct
    pairs = near_pairs([texts.texts[index] for index in distinct.tolist()])
    members = np.unique(np.concatenate([pairs.first, pairs.second]))
    groups = np.unique(group_labels(len(distinct), pairs)[members])
    first, second = distinct[pairs.first], distinct[pairs.second]
    is_held_out = np.stack([first, second]) >= held_out_from
    across = is_held_out[0] != is_held_out[1]
    known = set(np.where(is_held_out[0], first, second)[across].tolist())
    copied = np.flatnonzero(texts.copies > 1)
    exchanges = [_first_exchange(dialog) for dialog in texts.dialogs]
    prompts, answers = (set(part) for part in zip(*exchanges[:held_out_from], strict=True))
    held_out = exchanges[held_out_from:]
    rows = texts.rows
    ends = [sorted(pair, key=rows.__getitem__) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    best = sorted(range(len(ends)), key=lambda n: (-pairs.similarity[n], rows[ends[n][0]], rows[ends[n][1]]))
    copies_of = dict(zip(distinct.tolist(), texts.copies.tolist(), strict=True))
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
        "overlap": Overlap(
            prompt=sum(prompt in prompts for prompt, _ in held_out),
            answer=sum(answer in answers for _, answer in held_out),
            near=sum(copies_of[index] for index in known),
        ),
    }


def _first_exchange(dialog: Dialog) -> tuple[Dialog, str]:
    """Return what is before the first answer, and that answer."""
    at = next(index for index, message in enumerate(dialog) if message.role == "assistant")
    return dialog[:at], dialog[at].content


def _shown(dialogs: "DialogTokens", index: int, texts: _Texts, tokenizer: "ChatTokenizer") -> ShownDialog:
    ids = dialogs[index]["input_ids"].tolist()
    learned = dialogs[index]["supervised"].tolist()
    special = tokenizer.special_ids
    return ShownDialog(
        place=texts.places[index],
        tokens=[
            Token(id=number, text=text, special=number in special, supervised=mark)
            for number, text, mark in zip(ids, tokenizer.token_texts(ids), learned, strict=True)
        ],
    )


def remarks(result: InspectResult, config: RunConfig) -> list[str]:
    """Return in words what is worth doing about a dataset, as far as its figures tell."""
    told = []
    dialogs = result.train.dialogs + result.held_out.dialogs
    if result.unusable:
        told.append(
            f"{counted(result.unusable, 'row')} ({share_of(result.unusable, result.rows)}) without a dialog, left "
            f"out; the first: {result.unusable_rows[0]}"
        )
    if result.dropped:
        told.append(
            f"{counted(result.dropped, 'dialog')} without supervision, left out: the prompt alone fills "
            f"{result.limit:,} tokens. Shorten it, or give the model a longer context"
        )
    if result.cut_share >= 0.01:
        told.append(
            f"{result.cut_share:.1%} of the dialogs are cut at {result.limit:,} tokens: {_longer(result, config)}"
        )
    copies = result.copies
    if copies.exact:
        told.append(
            f"{counted(copies.exact, 'exact duplicate')} ({share_of(copies.exact, dialogs)}): leave them out, "
            "unless these dialogs are meant to weigh more than others"
        )
    if (extra := copies.near - copies.near_groups) >= 0.01 * dialogs:
        told.append(
            f"{copies.near:,} dialogs are near duplicates, in {counted(copies.near_groups, 'group')}: to keep one "
            f"of each group leaves out {extra:,} ({share_of(extra, dialogs)})"
        )
    told += _few_remarks(result, from_scratch=config.model.from_scratch) + _held_out_remarks(result)
    if result.supervised_share < 0.1:
        told.append(
            f"only {result.supervised_share:.1%} of the tokens are learned, and the others take as much time: "
            "shorten what is before the answers, such as a system prompt that is always the same"
        )
    if result.bytes_per_token < 2:
        told.append(f"a token holds {result.bytes_per_token:.1f} bytes of this text, few: {_tokenizer(config)}")
    if result.broken:
        told.append(
            f"{counted(result.broken, 'dialog')} with control characters, marks that reorder text, or U+FFFD "
            f"where a character was lost, the first at {result.broken_places[0]}: look how the file was made"
        )
    return told


def _held_out_remarks(result: InspectResult) -> list[str]:
    told, overlap, held_out = [], result.overlap, result.held_out.dialogs
    parts = [f"{overlap.prompt:,} by the prompt"] if overlap.prompt else []
    parts += [f"{overlap.near:,} as near duplicates"] if overlap.near else []
    if parts and max(overlap.prompt, overlap.near) >= 0.01 * held_out:
        told.append(
            f"of {counted(held_out, 'held-out dialog')}, training knows {' and '.join(parts)}: their figures look "
            "better than they are. Leave duplicates out, and keep each prompt in one dialog"
        )
    if remark := held_out_remark(held_out, result.kept):
        told.append(remark)
    return told


def _few_remarks(result: InspectResult, *, from_scratch: bool) -> list[str]:
    """Return what it means that there are few dialogs."""
    kept, held_out = result.kept, result.held_out.dialogs
    told = []
    if kept < FEW_DIALOGS:
        learned = "at best learns them by heart" if from_scratch else "takes over little more than their manner"
        told.append(
            f"only {counted(kept, 'dialog')}: enough to see that all works, but a model {learned}; collect "
            "hundreds, better thousands"
        )
    if held_out < FEW_HELD_OUT:
        told.append(
            f"only {counted(held_out, 'dialog')} held out: figures of so few tell little of a model, and which of "
            "two models is better they cannot tell"
        )
    return told


def _longer(result: InspectResult, config: RunConfig) -> str:
    """Return how more of the long dialogs is kept."""
    needed = 2 ** (round(result.lengths.percentile_99) - 1).bit_length()
    if result.limit < result.context:
        return f"--set data.max_tokens={min(needed, result.context)}"
    if config.model.from_scratch and result.limit < needed <= LONGEST_CONTEXT:
        return f"--set model.context={needed} takes 99% of them whole, for more time and memory"
    return "split them, or take a model with a longer context"


def _tokenizer(config: RunConfig) -> str:
    dataset = config.data.dataset
    if not config.model.from_scratch:
        return "a model that knows these letters learns faster"
    if not Path(dataset).expanduser().is_file():
        return "a tokenizer made for it lets more fit into the context, and learns faster"
    return (
        f"dialogkit tokenizer train {dataset} --output my-tokenizer, then --set model.tokenizer=my-tokenizer, "
        "lets more fit into the context"
    )
