"""Probes of a model beyond its likelihood: whether it uses the prompt, and how it replies."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.generate import GenerateConfig
from dialogkit.data.tokens import pack
from dialogkit.dialog import Message
from dialogkit.services.evaluation.results import CANDIDATES, Interval
from dialogkit.services.evaluation.scoring import Exchange, score

if TYPE_CHECKING:
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


class Replies(NamedTuple):
    """Replies to held-out prompts, with their metrics."""

    figures: dict[str, float]
    intervals: dict[str, Interval]
    replies: list[dict[str, Any]]


def prompt_gain(
    model: "LoadedModel",
    exchanges: Sequence[Exchange],
    *,
    known: "Likelihood | None" = None,
    batch_size: int,
    done: Callable[[int], None],
) -> tuple[float, Interval | None]:
    """Return the bits per byte that the prompt saves: after an empty prompt minus after the dialog's own.

    `known` is the likelihood of the answers after their own prompts, if it was measured before.
    """
    import numpy as np

    from dialogkit.inference.reply_metrics import intervals

    empty = model.tokenizer.encode_prompt([Message("user", "")])
    sizes = [len(exchange.answer.encode()) for exchange in exchanges]
    own = [(exchange.prompt_ids, exchange.answer_ids) for exchange in exchanges]
    emptied = [(empty, exchange.answer_ids) for exchange in exchanges]
    with_prompt = known or score(model, pack(own, sizes), batch_size=batch_size, done=done)
    without = score(model, pack(emptied, sizes), batch_size=batch_size, done=done)
    saved = without.answer_nats - with_prompt.answer_nats
    bytes_N = np.array(sizes, dtype=np.float64)

    def resampled(weights: Any) -> dict[str, Any]:
        return {"gain": (weights @ saved) / (np.maximum(weights @ bytes_N, 1) * math.log(2))}

    return float(resampled(np.ones((1, len(sizes))))["gain"][0]), intervals(resampled, len(sizes)).get("gain")


def hits_at_1(
    model: "LoadedModel",
    exchanges: Sequence[Exchange],
    *,
    ranked: int = RANKED_DIALOGS,
    batch_size: int,
    done: Callable[[int], None],
) -> tuple[float, Interval | None] | None:
    """Return how often the true answer is the most probable of ten, by its mean log-probability.

    The nine others are the true answers to other prompts, of similar length; the first 64 tokens of each are
    compared. Chance is 10%. None if there are fewer than ten different answers.
    """
    import numpy as np

    from dialogkit.inference.reply_metrics import intervals

    others = candidates_of([exchange.answer for exchange in exchanges])
    if others is None:
        return None
    compared = [
        (exchange.prompt_ids, exchanges[index].answer_ids[:RANKED_TOKENS])
        for n, exchange in enumerate(exchanges[:ranked])
        for index in (n, *others[n])
    ]
    scored = score(model, pack(compared, [1] * len(compared)), batch_size=batch_size, done=done)
    per_token = (scored.nats / scored.tokens).reshape(-1, CANDIDATES)
    hit = (per_token[:, :1] < per_token[:, 1:]).all(1).astype(np.float64)

    def resampled(weights: Any) -> dict[str, Any]:
        return {"hits": weights @ hit / weights.sum(1)}

    return float(hit.mean()), intervals(resampled, hit.size).get("hits")


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


def probe_replies(model: "LoadedModel", exchanges: Sequence[Exchange], config: GenerateConfig) -> Replies:
    """Let a model answer prompts in one batch, and measure its replies."""
    from dialogkit.engine.attention import plain_attention
    from dialogkit.inference.replies import continue_prompts
    from dialogkit.inference.reply_metrics import Answered, ReplyMetrics

    started = time.perf_counter()
    with plain_attention(model.model):
        made = continue_prompts(
            model.model,
            model.tokenizer,
            [exchange.prompt_ids for exchange in exchanges],
            config,
            context=model.context,
            device=model.device,
            batch_size=len(exchanges),
        )
    seconds = time.perf_counter() - started
    answered = list(zip(exchanges, made, strict=True))
    metrics = ReplyMetrics(
        [
            Answered(exchange.prompt, reply.text.strip(), exchange.answer, reply.stop_reason == "end of turn")
            for exchange, reply in answered
        ]
    )
    speed = {"first_token_s": max(reply.first_token_s for reply in made)}
    if (tokens := sum(reply.tokens for reply in made)) >= ENOUGH_TOKENS:
        speed["reply_tokens_per_s"] = tokens / max(seconds, 1e-9)
    rows = [
        {
            "prompt": exchange.prompt,
            "reply": reply.text,
            "reference": exchange.answer,
            "stop_reason": reply.stop_reason,
        }
        for exchange, reply in answered
    ]
    return Replies(metrics.figures() | speed, metrics.intervals(), rows)
