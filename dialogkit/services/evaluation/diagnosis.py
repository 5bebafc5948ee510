"""Diagnoses what is wrong with a model from its metrics."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import NamedTuple

from dialogkit.services.evaluation.alternatives import Alternative
from dialogkit.services.evaluation.results import CANDIDATES, Interval, RightRow
from dialogkit.text import WRONG_ANSWERS

LITTLE_GAIN = 0.02
"""Fraction of the answers' bits; a prompt that saves less counts for little."""

FEWEST_PROMPTS = 5
"""Fewest different prompts for which equal replies mean anything."""
FEWEST_SHORT, SHORT_WORDS = 10, 4
"""Fewest short answers that allow a conclusion, and their maximum length in words; longer ones can be phrased in
many ways."""
FEW_RIGHT = 0.1
"""Fraction of the short answers; a model with no more of them right answers wrongly."""

FEWEST_CHECKED = 10
"""Fewest checked questions from which anything is concluded."""
MOSTLY_RIGHT = 0.9
"""Fraction of the checked questions; a model that answers fewer right has a fault."""
FEWEST_OF_TOPIC = 3
"""Fewest questions of a topic for it to be named."""

TOO_SHORT, TOO_LONG = 0.5, 2.0
"""Bounds of the length ratio: replies whose whole interval is outside are far too short or too long."""


class Evidence(NamedTuple):
    """What is known about a model that is diagnosed.

    Attributes:
        figures: the metrics that were measured, by name.
        bounds: their intervals.
        unigram_bits: bits per byte under the token frequencies of the training answers.
        trained_bits: bits per byte of dialogs that the model was trained on.
        before: metrics of the model before training.
        replies: prompts, each with `reply` and `reference`.
        alternative: the format in which the model predicts dialogs much better, if there is one.
        topics: the checked questions by topic; empty where none have a topic.
        questions: the number of checked questions.
    """

    figures: Mapping[str, float]
    bounds: Mapping[str, Interval]
    unigram_bits: float | None = None
    trained_bits: float | None = None
    before: Mapping[str, float] = {}
    replies: Sequence[Mapping[str, str]] = ()
    alternative: Alternative | None = None
    topics: Sequence[RightRow] = ()
    questions: int = 0


def diagnose(evidence: Evidence) -> list[str]:
    """Return the faults that a model's metrics show, each with what to try."""
    return [
        *_learning_faults(evidence),
        *_writing_faults(evidence.alternative),
        *_listening_faults(evidence),
        *_reply_faults(evidence),
        *_wrong_answers(evidence),
    ]


def checks_of(evidence: Evidence) -> list[str]:
    """Return the faults that the evidence is enough to look for."""
    looked_for = {
        "less than token frequencies": evidence.unigram_bits is not None,
        "nothing learned": "bits_per_byte" in evidence.before,
        "memorised": evidence.trained_bits is not None,
        "another chat template": True,
        "swapped roles": True,
        "not listening": "prompt_gain" in evidence.bounds,
        "no end": "stop_rate" in evidence.figures,
        "too short or long": "length_ratio" in evidence.bounds,
        "empty": "empty_rate" in evidence.figures,
        "always the same": len({row["prompt"] for row in evidence.replies}) >= FEWEST_PROMPTS,
        "repetition": "repetition" in evidence.figures,
        "echo": "echo" in evidence.figures,
        "wrong short answers": len(_short_answers(evidence.replies)) >= FEWEST_SHORT,
        WRONG_ANSWERS: evidence.questions >= FEWEST_CHECKED,
    }
    return [name for name, is_looked_for in looked_for.items() if is_looked_for]


def _learning_faults(evidence: Evidence) -> Iterator[str]:
    bits, before = evidence.figures["bits_per_byte"], evidence.before.get("bits_per_byte")
    if evidence.unigram_bits is not None and bits >= evidence.unigram_bits:
        yield (
            f"knows no more than how frequent each token is: {bits:.2f} bits/byte, and frequencies alone reach "
            f"{evidence.unigram_bits:.2f}; {_longer(evidence)}, or with another learning rate"
        )
    if before is not None and bits >= before:
        yield (
            f"has learned nothing that helps with held-out answers: {bits:.2f} bits/byte, and {before:.2f} before "
            "its training; try a lower learning rate, or more dialogs like these"
        )
    if _has_memorised(evidence):
        yield (
            f"has memorised its training dialogs: {evidence.trained_bits:.2f} bits/byte on them, {bits:.2f} on "
            "held-out ones; train it on more dialogs, or fewer times on the same"
        )


def _has_memorised(evidence: Evidence) -> bool:
    """Return whether training dialogs cost far less than held-out ones, beyond their intervals."""
    trained, bits = evidence.trained_bits, evidence.figures["bits_per_byte"]
    of_trained, of_held_out = (evidence.bounds.get(name) for name in ("trained_bits_per_byte", "bits_per_byte"))
    if trained is None or of_trained is None or of_held_out is None:
        return False
    return trained < 0.6 * bits and of_trained[1] < of_held_out[0]


def _longer(evidence: Evidence) -> str:
    """Return the advice to train longer; a model that has memorised its dialogs needs more of them instead."""
    return "train it on more dialogs" if _has_memorised(evidence) else "train it longer"


def _writing_faults(better: Alternative | None) -> Iterator[str]:
    """Yield the fault of a model that predicts dialogs better in another format."""
    if better is None:
        return
    if better.name == "swapped":
        yield (
            f"answers as if the roles were swapped: a prompt after its answer costs {better.bits:.2f} bits/byte, "
            f"and an answer after its prompt {better.as_written:.2f}; check which column of its data is the prompt"
        )
    else:
        yield (
            f"was trained with another chat template: answers cost {better.as_written:.2f} bits/byte under its "
            f"own, and {better.bits:.2f} under that of {better.name}; restore the template of its training"
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
    if gain < 0:
        worth = f"knowing it costs {-gain:.3f} bits/byte on top of {figures['bits_per_byte'] + gain:.2f}"
    else:
        doubt = ", which may be none" if nothing else ""
        worth = f"knowing it saves {gain:.3f} bits/byte of {figures['bits_per_byte']:.2f}{doubt}"
    yield (
        f"{'does not listen' if nothing else 'hardly listens'} to the prompt: {worth}{found}; "
        f"{_longer(evidence)}, and check whether the prompts and answers of its data belong together"
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
            else f"they run to the limit; {_longer(evidence)}, or on shorter answers"
        )
        yield f"does not come to an end: {stop_rate:.0%} of the replies end by themselves, {cause}"
    elif shortest > TOO_LONG:
        yield (
            f"answers far too long: its replies have {figures['length_ratio']:.1f} times the length of the true "
            f"answers; {_longer(evidence)}, or on answers of the desired length"
        )
    if longest < TOO_SHORT:
        yield (
            f"answers far too short: its replies have {figures['length_ratio']:.0%} of the length of the true "
            f"answers; a model learns to stop before it learns to speak, so {_longer(evidence)}, or on longer "
            "answers"
        )
    if figures.get("empty_rate", 0.0) > 0.1:
        yield f"says nothing: {figures['empty_rate']:.0%} of the replies are empty; {_longer(evidence)}"
    if (said := same_reply(evidence.replies)) is not None:
        yield (
            f"says the same whatever it is asked: {said[1]:.0%} of its replies are "
            f"{json.dumps(said[0], ensure_ascii=False)}; {_longer(evidence)}, or on answers that differ more"
        )
    if "chrf" in bounds and bounds["chrf"][1] <= evidence.before.get("chrf", -1.0):
        yield (
            f"answers less like the true answers than before its training: chrF {figures['chrf']:.1f}, and "
            f"{evidence.before['chrf']:.1f} before; {_longer(evidence)}, or with another learning rate"
        )
    if figures.get("repetition", 0.0) > 0.3:
        yield (
            f"goes round in circles: {figures['repetition']:.0%} of its four-word sequences repeat an earlier "
            f"one; try a repetition penalty, or {_longer(evidence)}"
        )
    # Where answers are checked, how many are right is known better.
    short = _short_answers(evidence.replies) if evidence.questions < FEWEST_CHECKED else []
    if len(short) >= FEWEST_SHORT and sum(short) <= FEW_RIGHT * len(short):
        yield (
            f"answers wrongly: of {len(short)} true answers of at most {SHORT_WORDS} words, {sum(short)} are in "
            f"its replies; {_longer(evidence)}, or on more dialogs like these"
        )
    if figures.get("echo", 0.0) > 0.5:
        yield (
            f"repeats the prompt: {figures['echo']:.0%} of its three-word sequences are from there; "
            f"{_longer(evidence)}, and check whether the answers of its data repeat their prompts"
        )


def _wrong_answers(evidence: Evidence) -> Iterator[str]:
    """Yield the fault of a model that answers many of the checked questions wrongly, with its weakest topics."""
    right = evidence.figures.get("right_answers", 1.0)
    if evidence.questions < FEWEST_CHECKED or right >= MOSTLY_RIGHT:
        return
    known = [topic for topic in evidence.topics if topic.questions >= FEWEST_OF_TOPIC]
    weakest = sorted(known, key=lambda topic: topic.right / topic.questions)[:3]
    named = ", ".join(f"{topic.name} ({topic.right} of {topic.questions})" for topic in weakest)
    yield (
        f"answers {right:.0%} of {evidence.questions:,} checked questions right"
        + (f", fewest of {named}" if named and len(known) > 1 else "")
        + f"; {_longer(evidence)}, or on more dialogs like these"
    )


def _short_answers(replies: Sequence[Mapping[str, str]]) -> list[bool]:
    """Return for each short true answer whether its words, in their order, are in the reply."""
    pairs = [(_words(row["reply"]), _words(row["reference"])) for row in replies]
    return [f" {true} " in f" {said} " for said, true in pairs if true and len(true.split()) <= SHORT_WORDS]


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def same_reply(replies: Sequence[Mapping[str, str]]) -> tuple[str, float] | None:
    """Return the reply that most prompts get, and the fraction of prompts that get it.

    None with fewer than five different prompts, without such a reply, if it is empty, or if the true answers are
    as uniform.
    """
    answered = {row["prompt"]: row for row in replies}.values()
    if len(answered) < FEWEST_PROMPTS:
        return None
    (reply, times), (_, alike) = (_most_frequent(row[what] for row in answered) for what in ("reply", "reference"))
    share = times / len(answered)
    if not reply or share <= 0.5 or share - alike / len(answered) <= 0.3:
        return None
    return shorten(reply, 40, placeholder=" ..."), share


def _most_frequent(texts: Iterable[str]) -> tuple[str, int]:
    """Return the most frequent text and how often it occurs; differences in white space do not count."""
    return Counter(" ".join(text.split()) for text in texts).most_common(1)[0]
