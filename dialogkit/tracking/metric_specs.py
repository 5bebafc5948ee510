"""The figures of an evaluation: what they are called, how they are written, and which way is better."""

from typing import Literal, NamedTuple

Group = Literal["predicts", "listens", "talks", "takes"]

GROUPS: dict[Group, tuple[str, str]] = {
    "predicts": ("How well it predicts", "held-out answers, word by word"),
    "listens": ("Whether it listens", "what the prompt is worth to it, and whether it finds the true answer"),
    "talks": ("How it talks", "replies to held-out prompts, beside the true answers"),
    "takes": ("What it takes", "to answer all of them at once"),
}
"""Title of each group of figures, and what they are of."""


ANCHORS = {"untrained": "untrained", "unigram": "unigram", "answers": "true answers"}
"""What stands beside a model, in words."""


class Figure(NamedTuple):
    """One figure.

    Attributes:
        name: of the field of an evaluation.
        title: as people read it, with its unit.
        form: how it is written.
        better: whether more (1) or less (-1) of it is better; 0 where neither is.
        group: what it belongs to.
    """

    name: str
    title: str
    form: str
    better: int
    group: Group


FIGURES = (
    Figure("nats_per_token", "loss (nats/token)", ".4f", -1, "predicts"),
    Figure("perplexity", "perplexity", ",.2f", -1, "predicts"),
    Figure("bits_per_byte", "bits/byte", ".4f", -1, "predicts"),
    Figure("accuracy", "token accuracy", ".1%", 1, "predicts"),
    Figure("top5_accuracy", "token accuracy, top 5", ".1%", 1, "predicts"),
    Figure("end_of_turn_nats", "end of turn (nats)", ".3f", -1, "predicts"),
    Figure("prompt_gain", "prompt gain (bits/byte)", ".4f", 1, "listens"),
    Figure("hits_at_1", "hits@1 of 10", ".1%", 1, "listens"),
    Figure("stop_rate", "ends by itself", ".1%", 1, "talks"),
    Figure("empty_rate", "empty", ".1%", 0, "talks"),
    Figure("cut_rate", "cut at the limit", ".1%", 0, "talks"),
    Figure("repetition", "repeated 4-grams", ".1%", 0, "talks"),
    Figure("distinct_1", "distinct-1", ".3f", 0, "talks"),
    Figure("distinct_2", "distinct-2", ".3f", 0, "talks"),
    Figure("length_ratio", "length ratio", ".2f", 0, "talks"),
    Figure("echo", "prompt echo", ".1%", 0, "talks"),
    Figure("chrf", "chrF", ".1f", 1, "talks"),
    Figure("rouge_l", "ROUGE-L", ".3f", 1, "talks"),
    Figure("first_token_s", "first token (s)", ".2f", 0, "takes"),
    Figure("reply_tokens_per_s", "tokens/s", ",.0f", 0, "takes"),
)
