"""What a model is compared with: unigram frequencies, the true answers, and itself before training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import load_changed
from dialogkit.errors import DialogKitError
from dialogkit.services.evaluation.probes import right_answers
from dialogkit.services.evaluation.questions import Question, mark
from dialogkit.services.evaluation.results import EvaluateRow
from dialogkit.services.evaluation.scoring import Exchange
from dialogkit.services.runs.resolve import Loadable

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.services.runs.loading import LoadedModel


def unigram_likelihood(
    train: "DialogTokens", dialogs: "DialogTokens", *, vocabulary: int, stop_ids: frozenset[int]
) -> "Likelihood":
    """Return the likelihood under the token frequencies of the training answers, with add-one smoothing."""
    import numpy as np

    from dialogkit.inference.likelihood import LIKELY, Likelihood

    counts = np.bincount(train.ids[train.supervised], minlength=vocabulary) + 1.0
    nats_of = -np.log(counts / counts.sum())
    order = np.argsort(nats_of, kind="stable")
    rows = []
    for index in range(len(dialogs)):
        supervised = dialogs[index]["supervised"].copy()
        supervised[0] = False
        targets = dialogs[index]["input_ids"][supervised]
        is_end = np.isin(targets, list(stop_ids))
        nats = nats_of[targets]
        likely = np.isin(targets, order[:LIKELY]).sum()
        correct = (targets == order[0]).sum()
        rows.append((nats.sum(), len(targets), nats[~is_end].sum(), is_end.sum(), correct, likely))
    nats_N, tokens, answer_nats, ends, correct, likely = np.array(rows, dtype=np.float64).T
    return Likelihood(nats_N, tokens, answer_nats, dialogs.answer_bytes.astype(np.float64), ends, correct, likely)


def reference_row(
    exchanges: Sequence[Exchange], common: Mapping[str, Any], tokens: int, questions: Sequence[Question]
) -> EvaluateRow:
    """Return the reply metrics that the true answers themselves have, and how many of them pass their checks."""
    from dialogkit.inference.reply_metrics import Answered, ReplyMetrics

    answers = [Answered(exchange.prompt, exchange.answer, exchange.answer, stopped=True) for exchange in exchanges]
    metrics, right = ReplyMetrics(answers), right_answers(mark(questions, [one.answer for one in questions]))
    return EvaluateRow(
        **common,
        anchor="answers",
        tokens=tokens,
        **metrics.figures() | right.metrics,
        intervals=metrics.intervals() | right.intervals,
    )


def untrained_model(loadable: Loadable, model: "LoadedModel") -> "LoadedModel | None":
    """Return the model as it was before its run trained it; None where that is unknown or cannot be had."""
    from dialogkit.models.build import build_model

    if loadable.run is None:
        return None
    try:
        config = load_changed(loadable.run.read().config, {})
        built = build_model(config.model, model.tokenizer, seed=config.train.seed).to(model.device).eval()
    except DialogKitError:  # for example, the pretrained weights cannot be fetched now
        return None
    return model._replace(model=built)
