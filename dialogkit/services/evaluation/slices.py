"""An evaluation by kinds of exchanges, and its worst answers."""

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
"""Dialogs of a kind below which it has no figures of its own."""


_VERB = "verb: "


def slices_of(likelihood: "Likelihood", pairs: Sequence[Exchange]) -> list[SliceRow]:
    """Return the figures by kind of dialog; a kind with fewer than `LEAST` dialogs is left out."""
    import numpy as np

    from dialogkit.inference.reply_metrics import intervals

    kinds = _by_kind(pairs)
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
                interval=intervals(part.resampled, len(kinds[kind])).get("bits_per_byte"),
            )
        )
    return rows


def scarce_kinds(pairs: Sequence[Exchange]) -> dict[str, int]:
    """Return the kinds that have too few dialogs for figures, and how many each has; first words are not named."""
    kinds = {kind: len(found) for kind, found in _by_kind(pairs).items() if not kind.startswith(_VERB)}
    return {kind: number for kind, number in sorted(kinds.items()) if number < LEAST}


def _by_kind(pairs: Sequence[Exchange]) -> dict[str, list[int]]:
    kinds: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        for kind in kinds_of(pair):
            kinds.setdefault(kind, []).append(index)
    return kinds


def kinds_of(pair: Exchange) -> list[str]:
    """Return what a dialog has in common with others: input, length and form of the answer, first word."""
    size = len(pair.answer.encode())
    length = "short (to 100 bytes)" if size <= 100 else "middle" if size <= 500 else "long (over 500 bytes)"
    listed = len(re.findall(r"^\s*(?:\d+[.)]|[-*•])\s", pair.answer, re.MULTILINE)) >= 2
    coded = (
        "```" in pair.answer or len(re.findall(r"[;{}]\s*$|^\s*(?:def|import|return)\b", pair.answer, re.M)) >= 2
    )
    word = re.match(r"[^\W\d_]+", pair.prompt)
    return [
        "prompt: with input" if "\n" in pair.prompt.strip() else "prompt: without input",
        f"answer: {length}",
        f"answer: {'code' if coded else 'list' if listed else 'prose'}",
        *([f"{_VERB}{word.group().lower()}"] if word else []),
    ]


def worst_rows(likelihood: "Likelihood", pairs: Sequence[Exchange]) -> list[WorstRow]:
    """Return the dialogs with the most bits a byte, the worst first."""
    bits = likelihood.answer_nats / (likelihood.answer_bytes.clip(1) * math.log(2))
    order = sorted(range(len(pairs)), key=lambda i: -bits[i])[:WORST]
    return [WorstRow(bits_per_byte=float(bits[i]), prompt=pairs[i].prompt, answer=pairs[i].answer) for i in order]
