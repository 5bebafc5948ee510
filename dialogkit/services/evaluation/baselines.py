"""What a model is compared with: unigram frequencies, the references, its untrained self."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dialogkit.config.load import load_changed
from dialogkit.errors import DialogKitError
from dialogkit.services.evaluation.results import Talk
from dialogkit.services.evaluation.scoring import Exchange, Subject
from dialogkit.services.runs.resolve import Loadable

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood


def unigram_likelihood(
    train: "DialogTokens", dialogs: "DialogTokens", *, vocabulary: int, stop_ids: frozenset[int]
) -> "Likelihood":
    """Return the likelihood under the frequencies of tokens in the training answers, one added to each count."""
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
    nats_N, tokens, answer_nats, ends, right, near = np.array(rows, dtype=np.float64).T
    return Likelihood(nats_N, tokens, answer_nats, dialogs.answer_bytes.astype(np.float64), ends, right, near)


def talk_of_references(pairs: Sequence[Exchange]) -> Talk:
    """Return the figures that the true answers themselves have."""
    from dialogkit.inference.reply_metrics import ReplyFigures, Spoken

    figures = ReplyFigures([Spoken(pair.prompt, pair.answer, pair.answer, stopped=True) for pair in pairs])
    return Talk(figures.figures(), figures.intervals(), [])


def untrained_subject(loadable: Loadable, subject: Subject) -> Subject | None:
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
