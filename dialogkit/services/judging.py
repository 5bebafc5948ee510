"""What is measured of one model on held-out dialogs, and what the figures mean in words."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.services.result import Result

if TYPE_CHECKING:
    from dialogkit.data.prepare import DialogTokens
    from dialogkit.inference.scoring import Likelihood
    from dialogkit.models.tokenizer import ChatTokenizer

GAIN_DIALOGS = 256
RANKED_DIALOGS = 100
CANDIDATES = 10
RANKED_TOKENS = 64
"""Tokens at the beginning of each candidate that are compared."""
REPLIES = 64
TRAINED_DIALOGS = 64
"""Training dialogs that are scored, to tell learning by heart."""
WORST = 20
LEAST = 10
"""Dialogs of a kind below which it has no figures of its own."""

LITTLE_GAIN = 0.02
"""Part of the bits of the answers below which what the prompt saves of them counts as little."""
TOO_SHORT, TOO_LONG = 0.5, 2.0
"""Bounds of the ratio of lengths: replies whose whole interval is outside are far too short or too long."""

ENOUGH_TOKENS = 256
"""Tokens of all replies from which on their speed is told: that of fewer is how long it takes to begin."""

Interval = tuple[float, float]


class SliceRow(Result):
    """The figures of the dialogs that have something in common."""

    name: str
    dialogs: int
    bits_per_byte: float
    interval: Interval | None


class WorstRow(Result):
    """A dialog whose answer the model finds most improbable."""

    bits_per_byte: float
    prompt: str
    answer: str


class Exchange(NamedTuple):
    """The first answer of a dialog, and what is before it."""

    prompt_ids: list[int]
    answer_ids: list[int]
    prompt: str
    answer: str


class Subject(NamedTuple):
    """A model to be measured, ready for padding-free batches."""

    model: Any
    tokenizer: "ChatTokenizer"
    context: int
    device: str


def exchanges(dialogs: "DialogTokens", tokenizer: "ChatTokenizer") -> list[Exchange]:
    """Return the first answer of each dialog with its prompt."""
    found = []
    for index in range(len(dialogs)):
        ids = dialogs[index]["input_ids"].tolist()
        learned = dialogs[index]["supervised"].tolist()
        start = learned.index(True, 1) if True in learned[1:] else len(ids)
        end = learned.index(False, start) if False in learned[start:] else len(ids)
        prompt, answer = ids[:start], ids[start:end]
        found.append(Exchange(prompt, answer, tokenizer.prompt_text(prompt), tokenizer.decode(answer)))
    return found


def pack(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], answer_bytes: Sequence[int]) -> "DialogTokens":
    """Return prompts with answers, of which the answers are supervised."""
    import numpy as np

    from dialogkit.data.prepare import DialogTokens

    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    return DialogTokens(
        np.array([token for pair in pairs for part in pair for token in part], dtype=np.int32),
        np.array([mark for prompt, answer in pairs for mark in [False] * len(prompt) + [True] * len(answer)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(answer_bytes, dtype=np.int64),
    )


def batches_of(dialogs: "DialogTokens", batch_size: int) -> "Iterator[tuple[dict[str, Any], list[int]]]":
    """Yield padding-free batches with the bytes of the answers of each dialog."""
    from dialogkit.data.collate import collate_dialogs

    for start in range(0, len(dialogs), batch_size):
        chunk = [dialogs[i] for i in range(start, min(start + batch_size, len(dialogs)))]
        yield collate_dialogs(chunk), [d["answer_bytes"] for d in chunk]


def score(
    subject: Subject, dialogs: "DialogTokens", *, batch_size: int = 8, done: Callable[[int], None] = lambda _: None
) -> "Likelihood":
    """Return the likelihood of dialogs in float32; `done` is told of each batch's dialogs."""
    from dialogkit.engine.attention import use_packed_attention
    from dialogkit.inference.scoring import score_batches

    def told() -> "Iterator[tuple[dict[str, Any], list[int]]]":
        for batch, sizes in batches_of(dialogs, batch_size):
            yield batch, sizes
            done(len(sizes))

    use_packed_attention(subject.model)
    return score_batches(subject.model, told(), subject.tokenizer.stop_ids, device=subject.device)


def unigram_likelihood(
    train: "DialogTokens", dialogs: "DialogTokens", *, vocabulary: int, stop_ids: frozenset[int]
) -> "Likelihood":
    """Return the likelihood under the frequencies of tokens in the training answers, one added to each count."""
    import numpy as np

    from dialogkit.inference.scoring import LIKELY, Likelihood

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

    from dialogkit.inference.metrics import intervals

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

    from dialogkit.inference.metrics import intervals

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


class Talk(NamedTuple):
    """Replies to held-out prompts, with the figures of how they came about."""

    figures: dict[str, float]
    intervals: dict[str, Interval]
    replies: list[dict[str, Any]]


def talk(subject: Subject, pairs: Sequence[Exchange], config: GenerateConfig | None = None) -> Talk:
    """Let a model answer prompts in one batch and measure its replies; without `config` as `generate` would."""
    from dialogkit.engine.attention import plain_attention
    from dialogkit.inference.metrics import ReplyFigures, Spoken
    from dialogkit.inference.session import continue_prompts

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


def talk_of_references(pairs: Sequence[Exchange]) -> Talk:
    """Return the figures that the true answers themselves have."""
    from dialogkit.inference.metrics import ReplyFigures, Spoken

    figures = ReplyFigures([Spoken(pair.prompt, pair.answer, pair.answer, stopped=True) for pair in pairs])
    return Talk(figures.figures(), figures.intervals(), [])


def slices_of(likelihood: "Likelihood", pairs: Sequence[Exchange]) -> list[SliceRow]:
    """Return the figures by kind of dialog; a kind with fewer than `LEAST` dialogs is left out."""
    import numpy as np

    from dialogkit.inference.metrics import intervals

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


_VERB = "verb: "


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
