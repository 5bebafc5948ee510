"""Measures one model: what `evaluate` tells of it, and of its anchors."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import load_changed
from dialogkit.errors import DialogKitError
from dialogkit.services.judging import (
    CANDIDATES,
    GAIN_DIALOGS,
    RANKED_DIALOGS,
    REPLIES,
    TRAINED_DIALOGS,
    Exchange,
    Interval,
    Judged,
    SliceRow,
    Subject,
    WorstRow,
    exchanges,
    hits_at_1,
    prompt_gain,
    remarks,
    scarce_kinds,
    score,
    slices_of,
    talk,
    talk_of_references,
    unigram_likelihood,
    worst_rows,
)
from dialogkit.services.models import Loadable
from dialogkit.services.result import Result
from dialogkit.services.tasks import TaskRow

if TYPE_CHECKING:
    from dialogkit.data.prepare import DialogTokens


class EvaluateRow(Result):
    """The figures of one model, or of an anchor beside it; None for what was not measured."""

    model: str
    anchor: Literal["untrained", "unigram", "answers"] | None = None
    """What stands beside a model: itself before the training, the frequencies of tokens, or the true answers."""
    dataset: str
    dialogs: int
    held_out: int | None = None
    """Dialogs of the dataset that are held out."""
    of_dialogs: int | None = None
    """Dialogs of the dataset, those to train on included."""
    trained_on: bool = False
    """Whether dialogs are among them that the model was trained on."""
    tokens: int
    """Supervised tokens, ends of turn included."""
    nats_per_token: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    """Bits per UTF-8 byte of the answers, ends of turn left out; comparable between tokenizers."""
    accuracy: float | None = None
    """Share of supervised tokens that the model finds most probable."""
    top5_accuracy: float | None = None
    """Share of supervised tokens among the five that the model finds most probable."""
    end_of_turn_nats: float | None = None
    prompt_gain: float | None = None
    """Bits per byte that the prompt saves, against an empty one."""
    hits_at_1: float | None = None
    """How often the true answer is the most probable of ten; chance is 0.1."""
    stop_rate: float | None = None
    """Share of the replies that ended by themselves."""
    empty_rate: float | None = None
    cut_rate: float | None = None
    """Share of the replies that ran to the limit."""
    repetition: float | None = None
    """Share of the sequences of four words in a reply that were there before."""
    distinct_1: float | None = None
    """Share of different words in all replies."""
    distinct_2: float | None = None
    length_ratio: float | None = None
    """Bytes of the replies by those of the true answers."""
    echo: float | None = None
    """Share of the sequences of three words in a reply that stand in its prompt."""
    chrf: float | None = None
    """Likeness to the true answers in characters, 0 to 100."""
    rouge_l: float | None = None
    """Likeness to the true answers in the order of words, 0 to 1."""
    first_token_s: float | None = None
    """Seconds to the first token of all replies, answered at once."""
    reply_tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    """Of the process so far, or of the GPU."""
    trained_bits_per_byte: float | None = None
    """Bits per byte of dialogs that the model was trained on."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """95% intervals by bootstrap over the dialogs."""
    slices: list[SliceRow] = Field(default_factory=list)
    scarce: dict[str, int] = Field(default_factory=dict)
    """Kinds of dialogs that are too few for figures of their own, and how many there are."""
    worst: list[WorstRow] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)
    """What is wrong with the model, in words."""
    model_settings: str | None = None
    """What its replies owe to settings that came with the model, where that was asked for."""
    tasks: list[TaskRow] = Field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return what was measured, by name."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), float)}


ProgressSink = Callable[[str, float], None]
"""Takes what is measured and the part of all work that is behind, 0 to 1."""


class _Work:
    """How much of the work on a model is behind, in dialogs."""

    def __init__(self, told: ProgressSink, total: int) -> None:
        self._told, self._total, self._done = told, max(1, total), 0
        self._what, self.of = "", ""

    def begin(self, what: str) -> None:
        """Tell what is measured from here on."""
        self._what = f"{self.of}{what}"
        self(0)

    def __call__(self, dialogs: int) -> None:
        self._done += dialogs
        self._told(self._what, min(1.0, self._done / self._total))


class Measured(NamedTuple):
    """What was measured of a model."""

    row: EvaluateRow
    anchors: list[EvaluateRow]
    replies: list[dict[str, Any]]


def measure(
    loadable: Loadable,
    config: DataConfig,
    *,
    samples: int | None,
    whole: bool,
    batch_size: int,
    quick: bool,
    own_data: bool,
    sampling: GenerateConfig,
    device: str,
    told: ProgressSink,
) -> Measured:
    """Return what a model is like on dialogs; see `evaluate` for the arguments.

    `own_data` tells that they are of the dataset that it was trained on; `sampling` is for its replies.
    """
    from dialogkit.config.paths import cache_dir
    from dialogkit.data.prepare import prepare_data
    from dialogkit.inference.metrics import intervals
    from dialogkit.services.loading import load_for_inference

    told("loading", 0.0)
    loaded = load_for_inference(loadable, device=device)
    told("reading the dialogs", 0.0)
    subject = Subject(loaded.model, loaded.tokenizer, loaded.context, loaded.device)
    if config.streaming:
        from dialogkit.data.head import prepare_stream

        data = prepare_stream(config, loaded.tokenizer, context=loaded.context, seed=0).known()
    else:
        data = prepare_data(config, loaded.tokenizer, context=loaded.context, cache=cache_dir())
    dialogs = _concatenated([data.evaluation, data.train]) if whole else data.evaluation
    if samples is not None:
        dialogs = dialogs.select(range(min(samples, len(dialogs))))
    common = {
        "model": loadable.known_as,
        "dataset": data.ledger.dataset,
        "dialogs": len(dialogs),
        "held_out": len(data.evaluation),
        "of_dialogs": data.ledger.kept,
    }
    if quick:
        work = _Work(told, len(dialogs))
        work.begin("predicting answers")
        likelihood = score(subject, dialogs, batch_size=batch_size, done=work)
        figures, bounds = likelihood.figures(), intervals(likelihood.resampled, len(dialogs))
        row = EvaluateRow(**common, tokens=int(likelihood.tokens.sum()), **figures, intervals=bounds)
        return Measured(row, [], [])
    pairs = exchanges(dialogs, loaded.tokenizer)
    trained = data.train.select(range(min(TRAINED_DIALOGS, len(data.train)))) if own_data and not whole else None
    knows = trained if trained is not None and loadable.run is not None and len(trained) else None
    start = _untrained(loadable, subject)
    per_model = len(dialogs) + 2 * len(pairs[:GAIN_DIALOGS]) + CANDIDATES * len(pairs[:RANKED_DIALOGS]) + REPLIES
    work = _Work(told, per_model * (1 if start is None else 2) + (len(knows) if knows is not None else 0))
    row, replies = _in_full(subject, dialogs, pairs, common, sampling=sampling, batch_size=batch_size, work=work)
    beside: list[EvaluateRow] = []
    unigram = unigram_likelihood(
        data.train if len(data.train) else dialogs,
        dialogs,
        vocabulary=loaded.model.get_input_embeddings().weight.shape[0],
        stop_ids=loaded.tokenizer.stop_ids,
    )
    frequencies = unigram.figures()
    if knows is not None:
        work.begin("predicting dialogs of the training")
        bits = score(subject, knows, batch_size=batch_size, done=work).figures()["bits_per_byte"]
        row = row.model_copy(update={"trained_bits_per_byte": bits})
    if start is not None:
        work.of = "untrained, "
        anchor, _ = _in_full(start, dialogs, pairs, common, sampling=sampling, batch_size=batch_size, work=work)
        cleared: dict[str, Any] = {"anchor": "untrained", "slices": [], "scarce": {}, "worst": []}
        # It is of one size with the model, whose speed is its own.
        cleared |= dict.fromkeys(("first_token_s", "reply_tokens_per_s", "peak_memory_bytes"))
        beside.append(anchor.model_copy(update=cleared))
    judged = Judged(
        row.figures(),
        row.intervals,
        unigram_bits=frequencies["bits_per_byte"],
        trained_bits=row.trained_bits_per_byte,
        before=beside[0].figures() if beside else {},
        replies=replies,
    )
    row = row.model_copy(update={"remarks": remarks(judged)})
    beside.append(
        EvaluateRow(
            **common,
            anchor="unigram",
            tokens=row.tokens,
            **frequencies,
            prompt_gain=0.0,
            intervals=intervals(unigram.resampled, len(dialogs)),
        )
    )
    answers = talk_of_references(pairs[:REPLIES])
    beside.append(
        EvaluateRow(**common, anchor="answers", tokens=row.tokens, **answers.figures, intervals=answers.intervals)
    )
    return Measured(row, beside, replies)


def _in_full(
    subject: Subject,
    dialogs: "DialogTokens",
    pairs: "Sequence[Exchange]",
    common: dict[str, Any],
    *,
    sampling: GenerateConfig,
    batch_size: int,
    work: _Work,
) -> tuple[EvaluateRow, list[dict[str, Any]]]:
    """Return everything that is measured of a model, and its replies."""
    import numpy as np

    from dialogkit.engine.memory import peak_bytes
    from dialogkit.inference.metrics import intervals

    work.begin("predicting answers")
    likelihood = score(subject, dialogs, batch_size=batch_size, done=work)
    figures, bounds = likelihood.figures(), intervals(likelihood.resampled, len(dialogs))
    work.begin("predicting answers without their prompts")
    asked = pairs[:GAIN_DIALOGS]
    single = all(len(p.prompt_ids) + len(p.answer_ids) == n for p, n in zip(asked, dialogs.lengths, strict=False))
    known = likelihood.select(np.arange(len(asked))) if single else None  # one answer a dialog
    gain, bound = prompt_gain(subject, asked, known=known, batch_size=batch_size, done=work)
    figures["prompt_gain"] = gain
    if bound:
        bounds["prompt_gain"] = bound
    work.begin("finding the true answer among ten")
    if (ranked := hits_at_1(subject, pairs, batch_size=batch_size, done=work)) is not None:
        figures["hits_at_1"] = ranked[0]
        if ranked[1]:
            bounds["hits_at_1"] = ranked[1]
    work.begin("answering prompts")
    talked = talk(subject, pairs[:REPLIES], sampling)
    work(REPLIES)
    row = EvaluateRow(
        **common,
        tokens=int(likelihood.tokens.sum()),
        **figures,
        **talked.figures,
        peak_memory_bytes=peak_bytes(subject.device),
        intervals=bounds | talked.intervals,
        slices=slices_of(likelihood, pairs),
        scarce=scarce_kinds(pairs),
        worst=worst_rows(likelihood, pairs),
    )
    return row, talked.replies


def _untrained(loadable: Loadable, subject: Subject) -> Subject | None:
    """Return the model as it was before the training of its run; None where that is not known or not to be had."""
    from dialogkit.models.build import build_model

    if loadable.run is None:
        return None
    try:
        config = load_changed(loadable.run.read().config, {})
        built = build_model(config.model, subject.tokenizer, seed=config.train.seed).to(subject.device).eval()
    except DialogKitError:  # as where a fine-tuning began with weights that cannot be fetched now
        return None
    return subject._replace(model=built)


def _concatenated(parts: "Sequence[DialogTokens]") -> "DialogTokens":
    """Return the dialogs of several sets as one."""
    import numpy as np

    from dialogkit.data.prepare import DialogTokens

    lengths = np.concatenate([part.lengths for part in parts])
    return DialogTokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.supervised for part in parts]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.concatenate([part.answer_bytes for part in parts]),
    )
