"""Evaluates one model: how well it predicts held-out answers, how it replies, and the baselines beside it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.data.overlap import overlap_of
from dialogkit.data.tokens import concatenate, pack
from dialogkit.errors import DialogKitError
from dialogkit.services.evaluation.alternatives import ALTERNATIVE_DIALOGS, better_alternative
from dialogkit.services.evaluation.baselines import reference_row, unigram_likelihood, untrained_model
from dialogkit.services.evaluation.diagnosis import Evidence, checks_of, diagnose
from dialogkit.services.evaluation.probes import (
    GAIN_DIALOGS,
    RANKED_DIALOGS,
    REPLIES,
    TRAINED_DIALOGS,
    ProbeResult,
    hits_at_1,
    probe_replies,
    prompt_gain,
    right_answers,
)
from dialogkit.services.evaluation.questions import (
    QUESTIONS,
    Marked,
    Question,
    choose_questions,
    mark,
    right_rows,
    wrong_rows,
)
from dialogkit.services.evaluation.request import EvaluateRequest
from dialogkit.services.evaluation.results import CANDIDATES, EvaluateRow, WorstRow
from dialogkit.services.evaluation.scoring import Exchange, first_exchanges, replies_to, score, scores_of
from dialogkit.services.evaluation.slices import slices_of, too_small_kinds, worst_rows
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
    trained_with: DataConfig | None,
    sampling: GenerateConfig,
    on_progress: ProgressSink,
) -> Evaluation:
    """Return the metrics of one model of a request.

    Args:
        loadable: the model.
        data_config: the dialogs to evaluate it on.
        request: what to measure.
        trained_with: the data settings of its run; None if they are unknown.
        sampling: for its replies.
        on_progress: receives the current stage and the fraction of the work that is done.
    """
    from dialogkit.services.runs.loading import load_for_inference

    on_progress("loading", 0.0)
    model = load_for_inference(loadable, device=request.device)
    on_progress("reading the dialogs", 0.0)
    data = read_data(data_config, model)
    dialogs = concatenate([data.evaluation, data.train]) if request.whole else data.evaluation
    if request.samples is not None:
        dialogs = dialogs.select(range(min(request.samples, len(dialogs))))
    common = {
        "model": loadable.display_name,
        "dataset": data.ledger.dataset,
        "dialogs": len(dialogs),
        "held_out": len(data.evaluation),
        "of_dialogs": data.ledger.kept,
        "data_notes": data.ledger.of_template(),
    }
    own = data if trained_with == data_config else _read_own_data(None if request.quick else trained_with, model)
    if own is not None and trained_with is not None and not trained_with.streaming:
        known = overlap_of(dialogs, own.train)
        common |= {"known_prompts": known.prompts, "known_answers": known.answers}
    progress = _Progress(on_progress)
    held_out = dialogs.select(range(min(len(dialogs), len(data.evaluation))))
    questions = choose_questions(held_out, data.checked, model.tokenizer, max(QUESTIONS, request.samples or 0))
    evaluator = _Evaluator(
        model, dialogs, questions, common, sampling, request.batch_size, progress, request.worst
    )
    if request.quick:
        return Evaluation(evaluator.quick_row(), [], [])
    trained = None
    if (
        request.own_data
        and not request.whole
        and own is not None
        and _saw_every_training_dialog(loadable, len(own.train))
    ):
        trained = own.train.select(range(min(TRAINED_DIALOGS, len(own.train))))
    others = None if request.whole or not len(data.train) else data.train
    return evaluator.full(
        untrained_model(loadable, model),
        trained=trained,
        frequencies_of=others if own is None else own.train,
        frequencies_are_own=own is not None,
    )


def _read_own_data(config: DataConfig | None, model: "LoadedModel") -> "PreparedData | None":
    """Return the data that a model was trained on; None where it is unknown, or not there any more."""
    if config is None:
        return None
    try:
        own = read_data(config, model)
    except DialogKitError:
        return None
    return own if len(own.train) else None


def _saw_every_training_dialog(loadable: Loadable, dialogs: int) -> bool:
    """Return whether a model was trained on each of its training dialogs at least once."""
    if loadable.run is None:
        return False
    record = loadable.run.read()
    checkpoint = re.fullmatch(r"checkpoint-(\d+)", Path(loadable.model.source or "").name)
    metrics = record.metrics
    steps = int(checkpoint[1]) if checkpoint else metrics.get("train/kept_step", metrics.get("train/steps", 0))
    size = record.settings("train").get("batch_size")
    # Of a stream, the dialogs are only a sample of those that were read.
    return isinstance(size, int) and steps * size >= max(dialogs, record.data.train_dialogs or 0)


def read_data(config: DataConfig, model: "LoadedModel") -> "PreparedData":
    """Return the training and held-out dialogs of a dataset as the ids of a model; of a stream, a sample."""
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
    """Evaluates a model, and the model before training, on the same dialogs."""

    model: "LoadedModel"
    dialogs: "DialogTokens"
    questions: list[Question]
    """Those whose answers the dataset can check."""
    common: dict[str, Any]
    """The fields that all rows have in common."""
    sampling: GenerateConfig
    batch_size: int
    progress: _Progress
    worst: int
    """Number of worst dialogs for which to generate a reply as well."""

    @cached_property
    def _exchanges(self) -> list[Exchange]:
        return first_exchanges(self.dialogs, self.model.tokenizer)

    def quick_row(self) -> EvaluateRow:
        """Return the likelihood metrics alone."""
        self.progress.total = len(self.dialogs)
        self.progress.start("predicting answers")
        likelihood = self._score(self.model, self.dialogs)
        scores = scores_of(likelihood, self.dialogs)
        return self._measured_row(likelihood, int(likelihood.tokens.sum()), scores=scores)

    def full(
        self,
        untrained: "LoadedModel | None",
        *,
        trained: "DialogTokens | None",
        frequencies_of: "DialogTokens | None",
        frequencies_are_own: bool,
    ) -> Evaluation:
        """Return everything that can be measured, with a diagnosis.

        Args:
            untrained: the model before training, where it can be had.
            trained: dialogs that the model was trained on, to see whether it memorised them.
            frequencies_of: dialogs whose token frequencies are the unigram baseline; None leaves it out.
            frequencies_are_own: whether the model was trained on these.
        """
        asked, ranked = len(self._exchanges[:GAIN_DIALOGS]), len(self._exchanges[:RANKED_DIALOGS])
        first = 0 if self._has_single_answers else len(self.dialogs)
        per_model = len(self.dialogs) + first + asked + CANDIDATES * ranked + REPLIES
        self.progress.total = per_model * (1 if untrained is None else 2) + len(trained or ())
        self.progress.total += len(self.questions) + 2 * len(self._exchanges[:ALTERNATIVE_DIALOGS])
        row, replies = self._measure(self.model, self.questions)
        row = row.model_copy(update={"worst": self._answered(row.worst, replies)})
        if trained is not None:
            self.progress.start("predicting training dialogs")
            of_trained = self._score(self.model, trained)
            bounds = of_trained.intervals()
            update: dict[str, Any] = {"trained_bits_per_byte": of_trained.figures()["bits_per_byte"]}
            if "bits_per_byte" in bounds:
                update["intervals"] = row.intervals | {"trained_bits_per_byte": bounds["bits_per_byte"]}
            row = row.model_copy(update=update)
        self.progress.start("predicting dialogs in other formats")
        alternative = better_alternative(self.model, self._exchanges, partial(self._score, self.model))
        before = None if untrained is None else self._untrained_row(untrained)
        unigram = None if frequencies_of is None else self._unigram_row(frequencies_of, row.tokens)
        references = reference_row(self._exchanges[:REPLIES], self.common, row.tokens, self.questions)
        evidence = Evidence(
            row.figures(),
            row.intervals,
            unigram_bits=unigram.bits_per_byte if unigram is not None and frequencies_are_own else None,
            trained_bits=row.trained_bits_per_byte,
            before=before.figures() if before else {},
            replies=replies,
            alternative=alternative,
            topics=row.right_by_topic,
            questions=row.questions,
        )
        row = row.model_copy(update={"remarks": diagnose(evidence), "checks": checks_of(evidence)})
        return Evaluation(row, [one for one in (before, unigram, references) if one is not None], replies)

    @cached_property
    def _has_single_answers(self) -> bool:
        """Whether each dialog has one answer: then its likelihood is that of its first answer."""
        pairs = zip(self._exchanges, self.dialogs.lengths, strict=True)
        return all(len(one.prompt_ids) + len(one.answer_ids) == length for one, length in pairs)

    def _measure(
        self, model: "LoadedModel", questions: Sequence[Question] = ()
    ) -> tuple[EvaluateRow, list[dict[str, Any]]]:
        """Return all metrics of a model, and its replies; `questions` are asked as well."""
        import numpy as np

        from dialogkit.engine.memory import peak_bytes

        dialogs, exchanges, progress = self.dialogs, self._exchanges, self.progress
        progress.start("predicting answers")
        likelihood = self._score(model, dialogs)

        progress.start("predicting answers after other prompts")
        first = likelihood
        if not self._has_single_answers:
            sizes = [len(exchange.answer.encode()) for exchange in exchanges]
            first = self._score(model, pack([(e.prompt_ids, e.answer_ids) for e in exchanges], sizes))
        asked = exchanges[:GAIN_DIALOGS]
        known = first.select(np.arange(len(asked)))
        gain = prompt_gain(asked, partial(self._score, model), context=model.context, known=known)

        progress.start("finding the true answer among ten")
        hits = hits_at_1(exchanges, partial(self._score, model))

        progress.start("answering prompts")
        of_replies, replies = probe_replies(model, exchanges[:REPLIES], self.sampling)
        progress.advance(REPLIES)
        marked = self._marked(model, questions)
        row = self._measured_row(
            likelihood,
            int(likelihood.tokens.sum()),
            gain,
            hits,
            of_replies,
            right_answers(marked),
            peak_memory_bytes=peak_bytes(model.device),
            slices=slices_of(first, exchanges),
            scarce=too_small_kinds(exchanges),
            worst=worst_rows(first, exchanges),
            questions=len(marked),
            right_by_topic=right_rows(marked, lambda question: question.topic),
            right_by_new=right_rows(marked, lambda question: question.new),
            wrong=wrong_rows(marked),
            scores=scores_of(likelihood, dialogs),
        )
        return row, replies

    def _marked(self, model: "LoadedModel", questions: Sequence[Question]) -> list[Marked]:
        """Return checked questions with the most probable replies of a model, as at the end of its training."""
        greedy = self.sampling.model_copy(update={"temperature": 0.0})
        marked: list[Marked] = []
        for start in range(0, len(questions), REPLIES):
            self.progress.start("answering checked questions")
            asked = questions[start : start + REPLIES]
            made = replies_to(model, [question.prompt_ids for question in asked], greedy)
            marked += mark(asked, [reply.text for reply in made])
            self.progress.advance(len(asked))
        return marked

    def _answered(self, worst: Sequence[WorstRow], replies: Sequence[dict[str, Any]]) -> list[WorstRow]:
        """Return the worst dialogs with the model's replies to their prompts, where it was asked."""
        said = {(row["prompt"], row["reference"]): row["reply"] for row in replies}
        wanted = {(dialog.prompt, dialog.answer) for dialog in worst[: self.worst]} - said.keys()
        if unasked := [one for one in self._exchanges if (one.prompt, one.answer) in wanted]:
            self.progress.start("answering the worst prompts")
            made = replies_to(self.model, [one.prompt_ids for one in unasked], self.sampling)
            said |= {(one.prompt, one.answer): reply.text for one, reply in zip(unasked, made, strict=True)}
        return [dialog.model_copy(update={"reply": said.get((dialog.prompt, dialog.answer))}) for dialog in worst]

    def _untrained_row(self, untrained: "LoadedModel") -> EvaluateRow:
        self.progress.prefix = "untrained, "
        row, _ = self._measure(untrained)  # not asked: it seldom ends a reply
        cleared: dict[str, Any] = {"anchor": "untrained", "slices": [], "scarce": {}, "worst": [], "scores": {}}
        # It has the size of the trained model, whose row has the speed.
        cleared |= dict.fromkeys(("first_token_s", "reply_tokens_per_s", "peak_memory_bytes"))
        return row.model_copy(update=cleared)

    def _unigram_row(self, frequencies_of: "DialogTokens", tokens: int) -> EvaluateRow:
        vocabulary = self.model.model.get_input_embeddings().weight.shape[0]
        stop_ids = self.model.tokenizer.stop_ids
        unigram = unigram_likelihood(frequencies_of, self.dialogs, vocabulary=vocabulary, stop_ids=stop_ids)
        return self._measured_row(unigram, tokens, anchor="unigram", prompt_gain=0.0)

    def _measured_row(
        self, likelihood: "Likelihood", tokens: int, *measured: ProbeResult, **fields: Any
    ) -> EvaluateRow:
        """Return the row of a model with this likelihood, further metrics and other fields."""
        metrics, bounds = likelihood.figures(), likelihood.intervals()
        for more in measured:
            metrics |= more.metrics
            bounds |= more.intervals
        return EvaluateRow(**self.common, **metrics, **fields, tokens=tokens, intervals=bounds)

    def _score(self, model: "LoadedModel", dialogs: "DialogTokens") -> "Likelihood":
        return score(model, dialogs, batch_size=self.batch_size, done=self.progress.advance)
