"""What is measured of one model on held-out dialogs, and what the figures mean in words."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dialogkit.config.generate import GenerateConfig
from dialogkit.data.tokens import pack
from dialogkit.dialog import Message
from dialogkit.services.evaluation.results import CANDIDATES, Interval, Talk
from dialogkit.services.evaluation.scoring import Exchange, Subject, score

if TYPE_CHECKING:
    from dialogkit.inference.likelihood import Likelihood

GAIN_DIALOGS = 256
RANKED_DIALOGS = 100
RANKED_TOKENS = 64
"""Tokens at the beginning of each candidate that are compared."""
REPLIES = 64
TRAINED_DIALOGS = 64
"""Training dialogs that are scored, to tell learning by heart."""


ENOUGH_TOKENS = 256
"""Tokens of all replies from which on their speed is told: that of fewer is how long it takes to begin."""


def prompt_gain(
    subject: Subject,
    pairs: Sequence[Exchange],
    *,
    known: "Likelihood | None" = None,
    batch_size: int,
    done: Callable[[int], None],
) -> tuple[float, Interval | None]:
    """Return the bits a byte that the prompt saves: those after an empty prompt minus those after their own.

    `known` is the likelihood of the answers after their own prompts, where it was measured before.
    """
    import numpy as np

    from dialogkit.inference.reply_metrics import intervals

    empty = subject.tokenizer.encode_prompt([Message("user", "")])
    sizes = [len(pair.answer.encode()) for pair in pairs]
    own = [(p.prompt_ids, p.answer_ids) for p in pairs]
    with_prompt = known or score(subject, pack(own, sizes), batch_size=batch_size, done=done)
    without = score(subject, pack([(empty, p.answer_ids) for p in pairs], sizes), batch_size=batch_size, done=done)
    saved = without.answer_nats - with_prompt.answer_nats
    bytes_N = np.array(sizes, dtype=np.float64)

    def resampled(weights: Any) -> dict[str, Any]:
        return {"gain": (weights @ saved) / (np.maximum(weights @ bytes_N, 1) * math.log(2))}

    return float(resampled(np.ones((1, len(sizes))))["gain"][0]), intervals(resampled, len(sizes)).get("gain")


def candidates_of(answers: Sequence[str]) -> list[list[int]] | None:
    """Return for each answer nine others of similar length, by index; None without ten different ones."""
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


def hits_at_1(
    subject: Subject,
    pairs: Sequence[Exchange],
    *,
    ranked: int = RANKED_DIALOGS,
    batch_size: int,
    done: Callable[[int], None],
) -> tuple[float, Interval | None] | None:
    """Return how often the true answer is the most probable of ten, by its mean log-probability.

    The nine others are the true answers of other prompts, of similar length; the first 64 tokens of each are
    compared. Chance is 10%. None where there are not ten different answers.
    """
    import numpy as np

    from dialogkit.inference.reply_metrics import intervals

    others = candidates_of([pair.answer for pair in pairs])
    if others is None:
        return None
    compared = [
        (pair.prompt_ids, pairs[index].answer_ids[:RANKED_TOKENS])
        for n, pair in enumerate(pairs[:ranked])
        for index in (n, *others[n])
    ]
    scored = score(subject, pack(compared, [1] * len(compared)), batch_size=batch_size, done=done)
    per_token = (scored.nats / scored.tokens).reshape(-1, CANDIDATES)
    hit = (per_token[:, :1] < per_token[:, 1:]).all(1).astype(np.float64)

    def resampled(weights: Any) -> dict[str, Any]:
        return {"hits": weights @ hit / weights.sum(1)}

    return float(hit.mean()), intervals(resampled, hit.size).get("hits")


def talk(subject: Subject, pairs: Sequence[Exchange], config: GenerateConfig | None = None) -> Talk:
    """Let a model answer prompts in one batch and measure its replies; without `config` as `generate` would."""
    from dialogkit.engine.attention import plain_attention
    from dialogkit.inference.replies import continue_prompts
    from dialogkit.inference.reply_metrics import ReplyFigures, Spoken

    started = time.perf_counter()
    with plain_attention(subject.model):
        made = continue_prompts(
            subject.model,
            subject.tokenizer,
            [pair.prompt_ids for pair in pairs],
            config or GenerateConfig(),
            context=subject.context,
            device=subject.device,
            batch_size=len(pairs),
        )
    seconds = time.perf_counter() - started
    spoken = [
        Spoken(pair.prompt, reply.text.strip(), pair.answer, reply.stop_reason == "end of turn")
        for pair, reply in zip(pairs, made, strict=True)
    ]
    figures = ReplyFigures(spoken)
    speed = {"first_token_s": max(reply.first_token_s for reply in made)}
    if (tokens := sum(reply.tokens for reply in made)) >= ENOUGH_TOKENS:
        speed["reply_tokens_per_s"] = tokens / max(seconds, 1e-9)
    rows = [
        {"prompt": pair.prompt, "reply": reply.text, "reference": pair.answer, "stop_reason": reply.stop_reason}
        for pair, reply in zip(pairs, made, strict=True)
    ]
    return Talk(figures.figures() | speed, figures.intervals(), rows)
