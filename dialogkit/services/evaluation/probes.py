"""Probes of a model beyond its likelihood: whether it uses the prompt, and how it replies."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.generate import GenerateConfig
from dialogkit.data.tokens import pack
from dialogkit.services.evaluation.questions import Marked
from dialogkit.services.evaluation.results import CANDIDATES, Interval
from dialogkit.services.evaluation.scoring import Exchange, replies_to

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.services.runs.loading import LoadedModel

GAIN_DIALOGS = 256
RANKED_DIALOGS = 100
RANKED_TOKENS = 64
"""Tokens compared of each candidate: its first ones."""
REPLIES = 64
TRAINED_DIALOGS = 64
"""Training dialogs that are scored, to detect memorisation."""
ENOUGH_TOKENS = 256
"""Minimum generated tokens before throughput is reported; below it, start-up dominates."""


Scorer = Callable[["DialogTokens"], "Likelihood"]
"""Returns the likelihood of dialogs under one model."""


class ProbeResult(NamedTuple):
    """Metrics with their intervals, where these can be computed."""

    metrics: dict[str, float]
    intervals: dict[str, Interval]


def prompt_gain(
    exchanges: Sequence[Exchange], score: Scorer, *, context: int, known: "Likelihood | None" = None
) -> ProbeResult:
    """Return the bits per byte that the prompt saves: after another dialog's prompt minus after the dialog's own.

    An empty prompt is no fair baseline: models never saw one in training. A prompt that is too long for the
    context is cut at its start. The gain is not measured if all prompts are the same.

    `known` is the likelihood of the answers after their own prompts, if it was measured before.
    """
    import numpy as np

    from dialogkit.inference.intervals import Quotient, intervals

    others = other_prompts(exchanges)
    if others is None:
        return ProbeResult({}, {})
    sizes = [len(exchange.answer.encode()) for exchange in exchanges]
    own = known or score(pack([(e.prompt_ids, e.answer_ids) for e in exchanges], sizes))
    swapped = [
        (exchanges[other].prompt_ids[-max(1, context - len(e.answer_ids)) :], e.answer_ids)
        for e, other in zip(exchanges, others, strict=True)
    ]
    saved = score(pack(swapped, sizes)).answer_nats - own.answer_nats
    gain = Quotient(saved, np.array(sizes, dtype=np.float64) * math.log(2))
    return ProbeResult({"prompt_gain": gain.value}, intervals({"prompt_gain": gain}))


def other_prompts(exchanges: Sequence[Exchange]) -> list[int] | None:
    """Return for each exchange the next one with another prompt and, if there is one, another answer.

    None if all prompts are the same.
    """
    count = len(exchanges)
    chosen = []
    for index, own in enumerate(exchanges):
        following = [(index + shift) % count for shift in range(1, count)]
        different = [n for n in following if exchanges[n].prompt_ids != own.prompt_ids]
        if not different:
            return None
        chosen.append(next((n for n in different if exchanges[n].answer_ids != own.answer_ids), different[0]))
    return chosen


def hits_at_1(exchanges: Sequence[Exchange], score: Scorer) -> ProbeResult:
    """Return how often the true answer is the most probable of ten, by its mean log-probability.

    The nine others are the true answers to other prompts, of similar length; the first 64 tokens of each are
    compared. Chance is 10%. It is not measured if there are fewer than ten different answers.
    """
    from dialogkit.inference.intervals import intervals, mean

    others = candidates_of([exchange.answer for exchange in exchanges])
    if others is None:
        return ProbeResult({}, {})
    compared = [
        (exchange.prompt_ids, exchanges[index].answer_ids[:RANKED_TOKENS])
        for n, exchange in enumerate(exchanges[:RANKED_DIALOGS])
        for index in (n, *others[n])
    ]
    scored = score(pack(compared, [1] * len(compared)))
    per_token = (scored.nats / scored.tokens).reshape(-1, CANDIDATES)
    hits = mean((per_token[:, :1] < per_token[:, 1:]).all(1), 1.0)
    return ProbeResult({"hits_at_1": hits.value}, intervals({"hits_at_1": hits}))


def candidates_of(answers: Sequence[str]) -> list[list[int]] | None:
    """Return for each answer the indices of nine others of similar length; None without ten different ones."""
    order = sorted(range(len(answers)), key=lambda i: (len(answers[i].encode()), answers[i]))
    different = [i for n, i in enumerate(order) if n == 0 or answers[i] != answers[order[n - 1]]]
    if len(different) < CANDIDATES:
        return None
    place = {answers[i]: n for n, i in enumerate(different)}
    chosen = []
    for answer in answers:
        at = place[answer]
        start = max(0, min(at - CANDIDATES // 2, len(different) - CANDIDATES))
        chosen.append([different[n] for n in range(start, start + CANDIDATES) if n != at])
    return chosen


def right_answers(marked: Sequence[Marked]) -> ProbeResult:
    """Return the fraction of checked questions that are answered right; not measured without any."""
    from dialogkit.inference.intervals import intervals, mean

    if not marked:
        return ProbeResult({}, {})
    right = mean([one.is_right for one in marked], 1.0)
    return ProbeResult({"right_answers": right.value}, intervals({"right_answers": right}))


def probe_replies(
    model: "LoadedModel", exchanges: Sequence[Exchange], config: GenerateConfig
) -> tuple[ProbeResult, list[dict[str, Any]]]:
    """Let a model answer prompts in one batch; return the metrics of its replies, and the replies."""
    from dialogkit.inference.reply_metrics import Answered, ReplyMetrics

    started = time.perf_counter()
    made = replies_to(model, [exchange.prompt_ids for exchange in exchanges], config)
    seconds = time.perf_counter() - started
    answered = list(zip(exchanges, made, strict=True))
    metrics = ReplyMetrics(
        [
            Answered(one.prompt, reply.text.strip(), one.answer, reply.stop_reason == "end of turn")
            for one, reply in answered
        ]
    )
    speed = {"first_token_s": max(reply.first_token_s for reply in made)}
    if (tokens := sum(reply.tokens for reply in made)) >= ENOUGH_TOKENS:
        speed["reply_tokens_per_s"] = tokens / max(seconds, 1e-9)
    rows = [
        {"prompt": one.prompt, "reply": reply.text, "reference": one.answer, "stop_reason": reply.stop_reason}
        for one, reply in answered
    ]
    return ProbeResult(metrics.figures() | speed, metrics.intervals()), rows
