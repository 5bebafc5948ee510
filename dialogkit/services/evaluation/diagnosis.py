"""A diagnosis of a model in words, from its metrics."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

from dialogkit.services.evaluation.results import CANDIDATES, Interval

LITTLE_GAIN = 0.02
"""Part of the bits of the answers below which what the prompt saves of them counts as little."""

TOO_SHORT, TOO_LONG = 0.5, 2.0
"""Bounds of the ratio of lengths: replies whose whole interval is outside are far too short or too long."""


class Judged(NamedTuple):
    """What is known of a model that is to be judged in words.

    Attributes:
        figures: by name, as far as they were measured.
        bounds: their intervals.
        unigram_bits: bits per byte under the frequencies of the training answers' tokens.
        trained_bits: bits per byte of dialogs that the model was trained on.
        before: figures of the model as it was before its training.
        replies: prompts, each with `reply` and `reference`.
    """

    figures: Mapping[str, float]
    bounds: Mapping[str, Interval]
    unigram_bits: float | None = None
    trained_bits: float | None = None
    before: Mapping[str, float] = {}
    replies: Sequence[Mapping[str, str]] = ()


def remarks(judged: Judged) -> list[str]:
    """Return in words what is wrong with a model, as far as its figures tell, and what to try."""
    return [*_of_likelihood(judged), *_of_listening(judged), *_of_replies(judged)]


def _of_likelihood(judged: Judged) -> Iterator[str]:
    bits, before = judged.figures["bits_per_byte"], judged.before.get("bits_per_byte")
    if judged.unigram_bits is not None and bits >= judged.unigram_bits:
        yield (
            f"knows no more than how frequent each token is: {bits:.2f} bits/byte, and frequencies alone have "
            f"{judged.unigram_bits:.2f}; train longer, or with another learning rate"
        )
    if before is not None and bits >= before:
        yield (
            f"has learned nothing that helps with held-out answers: {bits:.2f} bits/byte, and {before:.2f} before "
            "its training; try a lower learning rate, or more dialogs like these"
        )
    if judged.trained_bits is not None and judged.trained_bits < 0.6 * bits:
        yield (
            f"knows its training dialogs by heart: {judged.trained_bits:.2f} bits/byte on them, {bits:.2f} on "
            "held-out ones; train it on more dialogs, or fewer times on the same"
        )


def _of_listening(judged: Judged) -> Iterator[str]:
    """Tell of a model to which its prompts are worth nothing, or next to it, and that does not find the answer."""
    figures = judged.figures
    if "prompt_gain" not in judged.bounds:
        return
    gain, hits = figures["prompt_gain"], figures.get("hits_at_1")
    nothing, little = judged.bounds["prompt_gain"][0] <= 0, gain < LITTLE_GAIN * figures["bits_per_byte"]
    if hits is not None and judged.bounds.get("hits_at_1", (0.0, 0.0))[0] > 1 / CANDIDATES:
        return
    if not (nothing or little):
        return
    found = "" if hits is None else f", and the true answer is found among ten in {hits:.0%} (10% by chance)"
    doubt = ", which may be none" if nothing else ""
    yield (
        f"{'does not listen' if nothing else 'hardly listens'} to the prompt: knowing it saves {gain:.3f} bits a "
        f"byte of {figures['bits_per_byte']:.2f}{doubt}{found}; train it longer, "
        "and look whether the prompts and answers of its data belong together"
    )


def _of_replies(judged: Judged) -> Iterator[str]:
    figures, bounds = judged.figures, judged.bounds
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
            "answers; train it longer, or on answers of the length that is wanted"
        )
    if longest < TOO_SHORT:
        yield (
            f"answers far too short: its replies have {figures['length_ratio']:.0%} of the length of the true "
            "answers; to stop is learned before to speak, so train it longer, or on longer answers"
        )
    if figures.get("empty_rate", 0.0) > 0.1:
        yield f"says nothing: {figures['empty_rate']:.0%} of the replies are empty; train it longer"
    if (said := same_reply(judged.replies)) is not None:
        yield (
            f"says the same whatever it is asked: {said[1]:.0%} of its replies are "
            f"{json.dumps(said[0], ensure_ascii=False)}; train it longer, or on answers that differ more"
        )
    if "chrf" in bounds and bounds["chrf"][1] <= judged.before.get("chrf", -1.0):
        yield (
            f"answers less like the true answers than before its training: chrF {figures['chrf']:.1f}, and "
            f"{judged.before['chrf']:.1f} before; train it longer, or with another learning rate"
        )
    if figures.get("repetition", 0.0) > 0.3:
        yield (
            f"goes round in circles: {figures['repetition']:.0%} of its sequences of four words were there "
            "before; try a repetition penalty, or train it longer"
        )
    if figures.get("echo", 0.0) > 0.5:
        yield (
            f"repeats the prompt: {figures['echo']:.0%} of its sequences of three words stand there; train it "
            "longer, and look whether the answers of its data repeat their prompts"
        )


def same_reply(replies: Sequence[Mapping[str, str]]) -> tuple[str, float] | None:
    """Return the reply that most of at least five different prompts are given, and its share.

    None where there is no such reply, where it is empty, or where the true answers are alike as well.
    """
    answered = {row["prompt"]: row for row in replies}.values()
    if len(answered) < 5:
        return None
    (reply, times), (_, alike) = (_most(row[what] for row in answered) for what in ("reply", "reference"))
    share = times / len(answered)
    if not reply or share <= 0.5 or share - alike / len(answered) <= 0.3:
        return None
    return shorten(reply, 40, placeholder=" ..."), share


def _most(texts: Iterable[str]) -> tuple[str, int]:
    """Return the text that is there most often, and how often; blanks do not count."""
    return Counter(" ".join(text.split()) for text in texts).most_common(1)[0]
