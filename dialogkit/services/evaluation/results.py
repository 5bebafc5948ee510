"""What an evaluation returns."""

from typing import Any, Literal, NamedTuple

from pydantic import Field

from dialogkit.services.result import Result

CANDIDATES = 10

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


class Talk(NamedTuple):
    """Replies to held-out prompts, with the figures of how they came about."""

    figures: dict[str, float]
    intervals: dict[str, Interval]
    replies: list[dict[str, Any]]


class TaskFigure(Result):
    """One figure of a task."""

    name: str
    filter: str
    """How replies were read before they were judged; empty where they were not."""
    value: float
    interval: Interval | None
    """95%, from the harness's standard error."""
    better: int
    """Whether more (1) or less (-1) of it is better; 0 where that is not known."""


class TaskRow(Result):
    """The figures of a model in one task, or in a group of tasks."""

    name: str
    version: str
    questions: int
    of_questions: int
    """Questions that the task has; of a group unknown, and 0."""
    examples: int
    """Answered questions that stand before each question."""
    cut: int
    """Questions whose beginning did not fit into the model's context."""
    figures: list[TaskFigure]


class EvaluateRow(Result):
    """The figures of one model, or of an anchor beside it; None for what was not measured."""

    model: str
    anchor: Literal["untrained", "unigram", "answers"] | None = None
    """What stands beside a model: itself before the training, the frequencies of tokens, or the true answers."""
    dataset: str
    dialogs: int
    held_out: int | None = None
    """Dialogs of the dataset that are held out."""
    of_dialogs: int | None = None
    """Dialogs of the dataset, those to train on included."""
    trained_on: bool = False
    """Whether dialogs are among them that the model was trained on."""
    tokens: int
    """Supervised tokens, ends of turn included."""
    nats_per_token: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    """Bits per UTF-8 byte of the answers, ends of turn left out; comparable between tokenizers."""
    accuracy: float | None = None
    """Share of supervised tokens that the model finds most probable."""
    top5_accuracy: float | None = None
    """Share of supervised tokens among the five that the model finds most probable."""
    end_of_turn_nats: float | None = None
    prompt_gain: float | None = None
    """Bits per byte that the prompt saves, against an empty one."""
    hits_at_1: float | None = None
    """How often the true answer is the most probable of ten; chance is 0.1."""
    stop_rate: float | None = None
    """Share of the replies that ended by themselves."""
    empty_rate: float | None = None
    cut_rate: float | None = None
    """Share of the replies that ran to the limit."""
    repetition: float | None = None
    """Share of the sequences of four words in a reply that were there before."""
    distinct_1: float | None = None
    """Share of different words in all replies."""
    distinct_2: float | None = None
    length_ratio: float | None = None
    """Bytes of the replies by those of the true answers."""
    echo: float | None = None
    """Share of the sequences of three words in a reply that stand in its prompt."""
    chrf: float | None = None
    """Likeness to the true answers in characters, 0 to 100."""
    rouge_l: float | None = None
    """Likeness to the true answers in the order of words, 0 to 1."""
    first_token_s: float | None = None
    """Seconds to the first token of all replies, answered at once."""
    reply_tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    """Of the process so far, or of the GPU."""
    trained_bits_per_byte: float | None = None
    """Bits per byte of dialogs that the model was trained on."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """95% intervals by bootstrap over the dialogs."""
    slices: list[SliceRow] = Field(default_factory=list)
    scarce: dict[str, int] = Field(default_factory=dict)
    """Kinds of dialogs that are too few for figures of their own, and how many there are."""
    worst: list[WorstRow] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)
    """What is wrong with the model, in words."""
    model_settings: str | None = None
    """What its replies owe to settings that came with the model, where that was asked for."""
    tasks: list[TaskRow] = Field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return what was measured, by name."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), float)}
