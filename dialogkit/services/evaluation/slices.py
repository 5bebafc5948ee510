"""Metrics by kind of exchange, and the worst answers."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dialogkit.services.evaluation.results import SliceRow, WorstRow
from dialogkit.services.evaluation.scoring import Exchange

if TYPE_CHECKING:
    from dialogkit.inference.likelihood import Likelihood


WORST = 20
LEAST = 10
"""Minimum number of dialogs of a kind that has metrics of its own."""
_VERB = "verb: "


def slices_of(likelihood: "Likelihood", exchanges: Sequence[Exchange]) -> list[SliceRow]:
    """Return the metrics by kind of dialog, without the kinds that have fewer than `LEAST` dialogs."""
    import numpy as np

    kinds = _by_kind(exchanges)
    verbs = sorted((k for k in kinds if k.startswith(_VERB)), key=lambda k: (-len(kinds[k]), k))
    rows = []
    for kind in [*sorted(k for k in kinds if not k.startswith(_VERB)), *verbs[:8]]:
        if len(kinds[kind]) < LEAST:
            continue
        part = likelihood.select(np.array(kinds[kind]))
        rows.append(
            SliceRow(
                name=kind,
                dialogs=len(kinds[kind]),
                bits_per_byte=part.figures()["bits_per_byte"],
                interval=part.intervals().get("bits_per_byte"),
            )
        )
    return rows


def too_small_kinds(exchanges: Sequence[Exchange]) -> dict[str, int]:
    """Return the kinds with too few dialogs for metrics, and their numbers; without the kinds by first word."""
    kinds = {kind: len(found) for kind, found in _by_kind(exchanges).items() if not kind.startswith(_VERB)}
    return {kind: number for kind, number in sorted(kinds.items()) if number < LEAST}


def _by_kind(exchanges: Sequence[Exchange]) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for index, exchange in enumerate(exchanges):
        for kind in kinds_of(exchange):
            kinds.setdefault(kind, []).append(index)
    return kinds


def kinds_of(exchange: Exchange) -> list[str]:
    """Return the kinds of a dialog: by its input, by length and form of its answer, and by its first word."""
    prompt, answer = exchange.prompt, exchange.answer
    size = len(answer.encode())
    length = "short (to 100 bytes)" if size <= 100 else "middle" if size <= 500 else "long (over 500 bytes)"
    listed = len(re.findall(r"^\s*(?:\d+[.)]|[-*•])\s", answer, re.MULTILINE)) >= 2
    coded = "```" in answer or len(re.findall(r"[;{}]\s*$|^\s*(?:def|import|return)\b", answer, re.MULTILINE)) >= 2
    word = re.match(r"[^\W\d_]+", prompt)
    return [
        "prompt: with input" if "\n" in prompt.strip() else "prompt: without input",
        f"answer: {length}",
        f"answer: {'code' if coded else 'list' if listed else 'prose'}",
        *([f"{_VERB}{word.group().lower()}"] if word else []),
    ]


def worst_rows(likelihood: "Likelihood", exchanges: Sequence[Exchange]) -> list[WorstRow]:
    """Return the dialogs with the most bits per byte, the worst first."""
    bits = likelihood.answer_nats / (likelihood.answer_bytes.clip(1) * math.log(2))
    worst = sorted(range(len(exchanges)), key=lambda i: -bits[i])[:WORST]
    return [
        WorstRow(bits_per_byte=float(bits[i]), prompt=exchanges[i].prompt, answer=exchanges[i].answer)
        for i in worst
    ]
