"""Says in words what is wrong with a model, from its metrics."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

from dialogkit.services.evaluation.results import CANDIDATES, Interval

LITTLE_GAIN = 0.02
"""Fraction of the answers' bits; a prompt that saves less counts for little."""

TOO_SHORT, TOO_LONG = 0.5, 2.0
"""Bounds of the length ratio: replies whose whole interval is outside are far too short or too long."""


class Evidence(NamedTuple):
    """What is known of a model that is diagnosed.

    Attributes:
        figures: the metrics that were measured, by name.
        bounds: their intervals.
        unigram_bits: bits per byte under the token frequencies of the training answers.
        trained_bits: bits per byte of dialogs that the model was trained on.
        before: metrics of the model before its training.
        replies: prompts, each with `reply` and `reference`.
    """

    figures: Mapping[str, float]
    bounds: Mapping[str, Interval]
    unigram_bits: float | None = None
    trained_bits: float | None = None
    before: Mapping[str, float] = {}
    replies: Sequence[Mapping[str, str]] = ()


def diagnose(evidence: Evidence) -> list[str]:
    """Return the faults of a model that its metrics show, in words, each with what to try."""
    return [*_learning_faults(evidence), *_listening_faults(evidence), *_reply_faults(evidence)]


def _learning_faults(evidence: Evidence) -> Iterator[str]:
    bits, before = evidence.figures["bits_per_byte"], evidence.before.get("bits_per_byte")
    if evidence.unigram_bits is not None and bits >= evidence.unigram_bits:
        yield (
            f"knows no more than how frequent each token is: {bits:.2f} bits/byte, and frequencies alone reach "
            f"{evidence.unigram_bits:.2f}; train longer, or with another learning rate"
        )
    if before is not None and bits >= before:
        yield (
            f"has learned nothing that helps with held-out answers: {bits:.2f} bits/byte, and {before:.2f} before "
            "its training; try a lower learning rate, or more dialogs like these"
        )
    if evidence.trained_bits is not None and evidence.trained_bits < 0.6 * bits:
        yield (
            f"knows its training dialogs by heart: {evidence.trained_bits:.2f} bits/byte on them, {bits:.2f} on "
            "held-out ones; train it on more dialogs, or fewer times on the same"
        )


def _listening_faults(evidence: Evidence) -> Iterator[str]:
    """Yield the fault of a model that gains little from its prompts and does not find the true answer."""
    figures = evidence.figures
    if "prompt_gain" not in evidence.bounds:
        return
    gain, hits = figures["prompt_gain"], figures.get("hits_at_1")
    nothing, little = evidence.bounds["prompt_gain"][0] <= 0, gain < LITTLE_GAIN * figures["bits_per_byte"]
    if hits is not None and evidence.bounds.get("hits_at_1", (0.0, 0.0))[0] > 1 / CANDIDATES:
        return
    if not (nothing or little):
        return
    found = "" if hits is None else f", and the true answer is found among ten in {hits:.0%} (10% by chance)"
    doubt = ", which may be none" if nothing else ""
    yield (
        f"{'does not listen' if nothing else 'hardly listens'} to the prompt: knowing it saves {gain:.3f} bits a "
        f"byte of {figures['bits_per_byte']:.2f}{doubt}{found}; train it longer, "
        "and check whether the prompts and answers of its data belong together"
    )


def _reply_faults(evidence: Evidence) -> Iterator[str]:
    figures, bounds = evidence.figures, evidence.bounds
    stop_rate, end_nats = figures.get("stop_rate", 1.0), figures["end_of_turn_nats"]
    shortest, longest = bounds.get("length_ratio", (1.0, 1.0))
    if stop_rate < 0.5:
        cause = (
            f"ends of turn cost {end_nats:.1f} nats where tokens cost {figures['nats_per_token']:.1f}, "
            "as if they had not been supervised"
            if end_nats > figures["nats_per_token"] + 2
            else "they run to the limit; train it longer, or on shorter answers"
        )
        yield f"does not come to an end: {stop_rate:.0%} of the replies end by themselves, {cause}"
    elif shortest > TOO_LONG:
        yield (
            f"answers far too long: its replies have {figures['length_ratio']:.1f} times the length of the true "
            "answers; train it longer, or on answers of the desired length"
        )
    if longest < TOO_SHORT:
        yield (
            f"answers far too short: its replies have {figures['length_ratio']:.0%} of the length of the true "
            "answers; a model learns to stop before it learns to speak, so train it longer, or on longer answers"
        )
    if figures.get("empty_rate", 0.0) > 0.1:
        yield f"says nothing: {figures['empty_rate']:.0%} of the replies are empty; train it longer"
    if (said := same_reply(evidence.replies)) is not None:
        yield (
            f"says the same whatever it is asked: {said[1]:.0%} of its replies are "
            f"{json.dumps(said[0], ensure_ascii=False)}; train it longer, or on answers that differ more"
        )
    if "chrf" in bounds and bounds["chrf"][1] <= evidence.before.get("chrf", -1.0):
        yield (
            f"answers less like the true answers than before its training: chrF {figures['chrf']:.1f}, and "
            f"{evidence.before['chrf']:.1f} before; train it longer, or with another learning rate"
        )
    if figures.get("repetition", 0.0) > 0.3:
        yield (
            f"goes round in circles: {figures['repetition']:.0%} of its four-word sequences repeat an earlier "
            "one; try a repetition penalty, or train it longer"
        )
    if figures.get("echo", 0.0) > 0.5:
        yield (
            f"repeats the prompt: {figures['echo']:.0%} of its three-word sequences are from there; train it "
            "longer, and check whether the answers of its data repeat their prompts"
        )


def same_reply(replies: Sequence[Mapping[str, str]]) -> tuple[str, float] | None:
    """Return the reply that most prompts get, and the share of prompts that get it.

    None with fewer than five different prompts, without such a reply, if it is empty, or if the true answers are
    as uniform.
    """
    answered = {row["prompt"]: row for row in replies}.values()
    if len(answered) < 5:
        return None
    (reply, times), (_, alike) = (_most_frequent(row[what] for row in answered) for what in ("reply", "reference"))
    share = times / len(answered)
    if not reply or share <= 0.5 or share - alike / len(answered) <= 0.3:
        return None
    return shorten(reply, 40, placeholder=" ..."), share


def _most_frequent(texts: Iterable[str]) -> tuple[str, int]:
    """Return the most frequent text and how often it occurs; differences in white space do not count."""
    return Counter(" ".join(text.split()) for text in texts).most_common(1)[0]
