"""The metrics of an evaluation: their titles, their formats, and which direction is better."""

from collections.abc import Hashable, Mapping
from typing import Literal, NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)

Group = Literal["predicts", "listens", "talks", "takes"]

GROUPS: dict[Group, tuple[str, str]] = {
    "predicts": ("How well it predicts", "held-out answers, word by word"),
    "listens": ("Whether it listens", "what the prompt is worth to it, and whether it finds the true answer"),
    "talks": ("How it talks", "replies to held-out prompts, beside the true answers"),
    "takes": ("What it takes", "to answer all of them at once"),
}
"""Title and subtitle of each group of metrics."""


FEW = 10
"""Dialogs below which metrics and their intervals say little (`benchmarks/intervals.py`)."""

HELD_OUT = {
    "bits_per_byte": ("bits per byte", ",.3f"),
    "nats_per_token": ("loss (nats/token)", ",.3f"),
    "perplexity": ("perplexity", ",.1f"),
    "accuracy": ("token accuracy", ".1%"),
    "right_answers": ("right answers", ".1%"),
}
"""Titles and number formats of the metrics of a run on held-out dialogs; the last one needs checks."""

STOP_RATE = "ends by itself (test prompts)"
"""Title of the stop rate of a training, to distinguish it from that of an evaluation, on held-out prompts."""

ANCHORS = {"untrained": "untrained", "unigram": "unigram", "answers": "true answers"}
"""Titles of the baselines shown beside a model, by their `anchor`."""


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: field of an evaluation.
        title: title for readers, with the unit.
        form: format specification.
        better: 1 if higher is better, -1 if lower is better, 0 if neither.
        group: group in which it is shown.
    """

    name: str
    title: str
    form: str
    better: int
    group: Group


METRICS = (
    Metric("nats_per_token", "loss (nats/token)", ".4f", -1, "predicts"),
    Metric("perplexity", "perplexity", ",.2f", -1, "predicts"),
    Metric("bits_per_byte", "bits/byte", ".4f", -1, "predicts"),
    Metric("accuracy", "token accuracy", ".1%", 1, "predicts"),
    Metric("top5_accuracy", "token accuracy, top 5", ".1%", 1, "predicts"),
    Metric("end_of_turn_nats", "end of turn (nats)", ".3f", -1, "predicts"),
    Metric("prompt_gain", "prompt gain (bits/byte)", ".4f", 1, "listens"),
    Metric("hits_at_1", "hits@1 of 10", ".1%", 1, "listens"),
    Metric("right_answers", "right answers", ".1%", 1, "talks"),
    Metric("stop_rate", "ends by itself", ".1%", 1, "talks"),
    Metric("empty_rate", "empty", ".1%", 0, "talks"),
    Metric("cut_rate", "cut at the limit", ".1%", 0, "talks"),
    Metric("repetition", "repeated 4-grams", ".1%", 0, "talks"),
    Metric("distinct_1", "distinct-1", ".3f", 0, "talks"),
    Metric("distinct_2", "distinct-2", ".3f", 0, "talks"),
    Metric("length_ratio", "length ratio", ".2f", 0, "talks"),
    Metric("echo", "prompt echo", ".1%", 0, "talks"),
    Metric("chrf", "chrF", ".1f", 1, "talks"),
    Metric("rouge_l", "ROUGE-L", ".3f", 1, "talks"),
    Metric("first_token_s", "first token of all (s)", ".2f", 0, "takes"),
    Metric("reply_tokens_per_s", "tokens/s", ",.0f", 0, "takes"),
)


def best_of(bounds: Mapping[Name, tuple[float, float]], better: int) -> Name | None:
    """Return the best one, if its interval does not overlap any other; one without a width is evidence of nothing.

    Args:
        bounds: the interval of each, on the same dialogs.
        better: whether more (1) or less (-1) is better; 0: neither.
    """
    if not better or len(bounds) < 2 or any(low >= high for low, high in bounds.values()):
        return None
    turned = {name: (low, high) if better > 0 else (-high, -low) for name, (low, high) in bounds.items()}
    first = max(turned, key=lambda name: turned[name][0])
    return first if all(turned[first][0] > high for name, (_, high) in turned.items() if name != first) else None
