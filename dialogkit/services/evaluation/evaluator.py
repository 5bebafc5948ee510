"""Evaluates one model: how well it predicts held-out answers, how it replies, and the baselines beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.data.tokens import concatenate
from dialogkit.services.evaluation.baselines import reference_row, unigram_likelihood, untrained_model
from dialogkit.services.evaluation.diagnosis import Evidence, diagnose
from dialogkit.services.evaluation.probes import (
    GAIN_DIALOGS,
    RANKED_DIALOGS,
    REPLIES,
    TRAINED_DIALOGS,
    Measured,
    hits_at_1,
    probe_replies,
    prompt_gain,
)
from dialogkit.services.evaluation.request import EvaluateRequest
from dialogkit.services.evaluation.results import CANDIDATES, EvaluateRow, WorstRow
from dialogkit.services.evaluation.scoring import Exchange, first_exchanges, replies_to, score, scores_of
from dialogkit.services.evaluation.slices import scarce_kinds, slices_of, worst_rows
from dialogkit.services.runs.resolve import Loadable

if TYPE_CHECKING:
    from dialogkit.data.prepare import PreparedData
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.services.runs.loading import LoadedModel


ProgressSink = Callable[[str, float], None]
"""Receives the current stage and the fraction of all work that is done, 0 to 1."""


class Evaluation(NamedTuple):
    """The metrics of a model, those of its baselines, and its replies."""

    row: EvaluateRow
    baselines: list[EvaluateRow]
    replies: list[dict[str, Any]]


def evaluate_model(
    loadable: Loadable,
    data_config: DataConfig,
    request: EvaluateRequest,
    *,
    sampling: GenerateConfig,
    on_progress: ProgressSink,
) -> Evaluation:
    """Return the metrics of one model of a request; `sampling` is for its replies."""
    from dialogkit.services.runs.loading import load_for_inference

    on_progress("loading", 0.0)
    model = load_for_inference(loadable, device=request.device)
    on_progress("reading the dialogs", 0.0)
    data = _read_data(data_config, model)
    dialogs = concatenate([data.evaluation, data.train]) if request.whole else data.evaluation
    if request.samples is not None:
        dialogs = dialogs.select(range(min(request.samples, len(dialogs))))
    common = {
        "model": loadable.known_as,
        "dataset": data.ledger.dataset,
        "dialogs": len(dialogs),
        "held_out": len(data.evaluation),
        "of_dialogs": data.ledger.kept,
        "data_notes": data.ledger.of_template(),
    }
    progress = _Progress(on_progress)
    evaluator = _Evaluator(model, dialogs, common, sampling, request.batch_size, progress, request.worst)
    if request.quick:
        return Evaluation(evaluator.quick_row(), [], [])
    trained = None
    if request.own_data and not request.whole and loadable.run is not None and len(data.train):
        trained = data.train.select(range(min(TRAINED_DIALOGS, len(data.train))))
    frequencies_of = data.train if len(data.train) else dialogs
    return evaluator.full(untrained_model(loadable, model), trained=trained, frequencies_of=frequencies_of)


def _read_data(config: DataConfig, model: "LoadedModel") -> "PreparedData":
    if config.streaming:
        from dialogkit.data.stream_setup import prepare_stream

        return prepare_stream(config, model.tokenizer, context=model.context, seed=0).known()
    from dialogkit.config.paths import cache_dir
    from dialogkit.data.prepare import prepare_data

    return prepare_data(config, model.tokenizer, context=model.context, cache=cache_dir())


class _Progress:
    """Counts the dialogs that are done, and reports the stage and the fraction of the work."""

    def __init__(self, report: ProgressSink) -> None:
        self._report, self._done = report, 0
        self._stage = ""
        self.total = 1
        self.prefix = ""

    def start(self, stage: str) -> None:
        """Report that a stage begins."""
        self._stage = f"{self.prefix}{stage}"
        self.advance(0)

    def advance(self, dialogs: int) -> None:
        self._done += dialogs
        self._report(self._stage, min(1.0, self._done / max(1, self.total)))


@dataclass
class _Evaluator:
    """Evaluates a model, and what it was before its training, on the same dialogs."""

    model: "LoadedModel"
    dialogs: "DialogTokens"
    common: dict[str, Any]
    """The fields that all rows have in common."""
    sampling: GenerateConfig
    batch_size: int
    progress: _Progress
    worst: int
    """The worst dialogs whose prompts are answered, too."""

    @cached_property
    def _exchanges(self) -> list[Exchange]:
        return first_exchanges(self.dialogs, self.model.tokenizer)

    def quick_row(self) -> EvaluateRow:
        """Return the likelihood metrics alone."""
        self.progress.total = len(self.dialogs)
        self.progress.start("predicting answers")
        likelihood = self._score(self.model, self.dialogs)
        scores = scores_of(likelihood, self.dialogs)
        return self._likelihood_row(likelihood, int(likelihood.tokens.sum()), scores=scores)

    def full(
        self, untrained: "LoadedModel | None", *, trained: "DialogTokens | None", frequencies_of: "DialogTokens"
    ) -> Evaluation:
        """Return everything that can be measured, with a diagnosis.

        Args:
            untrained: the model before its training, where it can be had.
            trained: dialogs that the model was trained on, to see whether it memorised them.
            frequencies_of: dialogs whose token frequencies are the unigram baseline.
        """
        asked, ranked = len(self._exchanges[:GAIN_DIALOGS]), len(self._exchanges[:RANKED_DIALOGS])
        per_model = len(self.dialogs) + 2 * asked + CANDIDATES * ranked + REPLIES
        self.progress.total = per_model * (1 if untrained is None else 2) + len(trained or ())
        row, replies = self._measure(self.model)
        row = row.model_copy(update={"worst": self._answered(row.worst, replies)})
        if trained is not None:
            self.progress.start("predicting dialogs of the training")
            bits = self._score(self.model, trained).figures()["bits_per_byte"]
            row = row.model_copy(update={"trained_bits_per_byte": bits})
        before = None if untrained is None else self._untrained_row(untrained)
        unigram = self._unigram_row(frequencies_of, row.tokens)
        references = reference_row(self._exchanges[:REPLIES], self.common, row.tokens)
        evidence = Evidence(
            row.figures(),
            row.intervals,
            unigram_bits=unigram.bits_per_byte,
            trained_bits=row.trained_bits_per_byte,
            before=before.figures() if before else {},
            replies=replies,
        )
        row = row.model_copy(update={"remarks": diagnose(evidence)})
        return Evaluation(row, [*([before] if before else []), unigram, references], replies)

    def _measure(self, model: "LoadedModel") -> tuple[EvaluateRow, list[dict[str, Any]]]:
        """Return all metrics of a model, and its replies."""
        import numpy as np

        from dialogkit.engine.memory import peak_bytes

        dialogs, exchanges, progress = self.dialogs, self._exchanges, self.progress
        progress.start("predicting answers")
        likelihood = self._score(model, dialogs)

        progress.start("predicting answers without their prompts")
        asked = exchanges[:GAIN_DIALOGS]
        single = all(
            len(e.prompt_ids) + len(e.answer_ids) == n for e, n in zip(asked, dialogs.lengths, strict=False)
        )
        known = likelihood.select(np.arange(len(asked))) if single else None  # one answer a dialog
        gain = prompt_gain(model.tokenizer, asked, partial(self._score, model), known=known)

        progress.start("finding the true answer among ten")
        hits = hits_at_1(exchanges, partial(self._score, model))

        progress.start("answering prompts")
        of_replies, replies = probe_replies(model, exchanges[:REPLIES], self.sampling)
        progress.advance(REPLIES)
        row = self._likelihood_row(
            likelihood,
            int(likelihood.tokens.sum()),
            gain,
            hits,
            of_replies,
            peak_memory_bytes=peak_bytes(model.device),
            slices=slices_of(likelihood, exchanges),
            scarce=scarce_kinds(exchanges),
            worst=worst_rows(likelihood, exchanges),
            scores=scores_of(likelihood, dialogs),
        )
        return row, replies

    def _answered(self, worst: Sequence[WorstRow], replies: Sequence[dict[str, Any]]) -> list[WorstRow]:
        """Return the worst dialogs with what the model says to their prompts, as far as it was asked."""
        said = {(row["prompt"], row["reference"]): row["reply"] for row in replies}
        wanted = {(dialog.prompt, dialog.answer) for dialog in worst[: self.worst]} - said.keys()
        if unasked := [one for one in self._exchanges if (one.prompt, one.answer) in wanted]:
            self.progress.start("answering the worst prompts")
            made = replies_to(self.model, [one.prompt_ids for one in unasked], self.sampling)
            said |= {(one.prompt, one.answer): reply.text for one, reply in zip(unasked, made, strict=True)}
        return [dialog.model_copy(update={"reply": said.get((dialog.prompt, dialog.answer))}) for dialog in worst]

    def _untrained_row(self, untrained: "LoadedModel") -> EvaluateRow:
        self.progress.prefix = "untrained, "
        row, _ = self._measure(untrained)
        cleared: dict[str, Any] = {"anchor": "untrained", "slices": [], "scarce": {}, "worst": [], "scores": {}}
        # It has the size of the trained model, whose row has the speed.
        cleared |= dict.fromkeys(("first_token_s", "reply_tokens_per_s", "peak_memory_bytes"))
        return row.model_copy(update=cleared)

    def _unigram_row(self, frequencies_of: "DialogTokens", tokens: int) -> EvaluateRow:
        vocabulary = self.model.model.get_input_embeddings().weight.shape[0]
        stop_ids = self.model.tokenizer.stop_ids
        unigram = unigram_likelihood(frequencies_of, self.dialogs, vocabulary=vocabulary, stop_ids=stop_ids)
        return self._likelihood_row(unigram, tokens, anchor="unigram", prompt_gain=0.0)

    def _likelihood_row(
        self, likelihood: "Likelihood", tokens: int, *measured: Measured, **fields: Any
    ) -> EvaluateRow:
        """Return the row of a model with this likelihood, further metrics and other fields."""
        from dialogkit.inference.reply_metrics import intervals

        metrics, bounds = likelihood.figures(), intervals(likelihood.resampled, len(self.dialogs))
        for more in measured:
            metrics |= more.metrics
            bounds |= more.intervals
        return EvaluateRow(**self.common, **metrics, **fields, tokens=tokens, intervals=bounds)

    def _score(self, model: "LoadedModel", dialogs: "DialogTokens") -> "Likelihood":
        return score(model, dialogs, batch_size=self.batch_size, done=self.progress.advance)
