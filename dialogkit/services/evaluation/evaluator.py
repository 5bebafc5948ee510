"""Measures one model: what `evaluate` tells of it, and of its anchors."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.data.tokens import concatenate
from dialogkit.services.evaluation.baselines import talk_of_references, unigram_likelihood, untrained_subject
from dialogkit.services.evaluation.diagnosis import Judged, remarks
from dialogkit.services.evaluation.probes import (
    GAIN_DIALOGS,
    RANKED_DIALOGS,
    REPLIES,
    TRAINED_DIALOGS,
    hits_at_1,
    prompt_gain,
    talk,
)
from dialogkit.services.evaluation.results import CANDIDATES, EvaluateRow
from dialogkit.services.evaluation.scoring import Exchange, Subject, exchanges, score
from dialogkit.services.evaluation.slices import scarce_kinds, slices_of, worst_rows
from dialogkit.services.runs.resolve import Loadable

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens


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
    from dialogkit.inference.reply_metrics import intervals
    from dialogkit.services.runs.loading import load_for_inference

    told("loading", 0.0)
    loaded = load_for_inference(loadable, device=device)
    told("reading the dialogs", 0.0)
    subject = Subject(loaded.model, loaded.tokenizer, loaded.context, loaded.device)
    if config.streaming:
        from dialogkit.data.stream_setup import prepare_stream

        data = prepare_stream(config, loaded.tokenizer, context=loaded.context, seed=0).known()
    else:
        data = prepare_data(config, loaded.tokenizer, context=loaded.context, cache=cache_dir())
    dialogs = concatenate([data.evaluation, data.train]) if whole else data.evaluation
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
    start = untrained_subject(loadable, subject)
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
    from dialogkit.inference.reply_metrics import intervals

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
