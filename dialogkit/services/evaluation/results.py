"""The rows of an evaluation: what is measured of a model, of its baselines, and in tasks."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from dialogkit.config.base import Result
from dialogkit.tracking.metric_specs import METRICS

CANDIDATES = 10
"""Answers among which the true one is to be found."""

Interval = tuple[float, float]
Scores = Mapping[str, tuple[float, float]]
"""Nats and UTF-8 bytes of the answers of each dialog, by the dialog's content hash."""


class SliceRow(Result):
    """The metrics of one kind of dialogs."""

    name: str
    dialogs: int
    bits_per_byte: float
    interval: Interval | None


class RightRow(Result):
    """How many questions of one kind are answered right."""

    name: str
    questions: int
    right: int
    interval: Interval | None
    """95%, of the fraction."""


class WrongRow(Result):
    """A question that is not answered right."""

    question: str
    """The dialog up to the answer, its turns separated by slashes."""
    reply: str
    answer: str
    """That of the dataset."""
    check: Any
    """What a right reply contains."""
    topic: str


class WorstRow(Result):
    """A dialog whose answer is among the least probable to the model."""

    bits_per_byte: float
    prompt: str
    answer: str
    reply: str | None = None
    """What the model said instead; None if it was not asked."""


class TaskFigure(Result):
    """One metric of a task."""

    name: str
    filter: str
    """How replies were filtered before they were scored; empty if they were not."""
    value: float
    interval: Interval | None
    """95%, from the harness's standard error."""
    better: int
    """Whether a higher (1) or a lower (-1) value is better; 0 if unknown."""


class TaskRow(Result):
    """The metrics of a model in one task, or in a group of tasks."""

    name: str
    version: str
    questions: int
    of_questions: int
    """All questions of the task; 0 for a group, where their number is unknown."""
    examples: int
    """Answered questions shown before each question (shots)."""
    cut: int
    """Questions whose beginning did not fit into the model's context."""
    figures: list[TaskFigure]


class EvaluateRow(Result):
    """The metrics of one model, or of a baseline beside it; None for what was not measured."""

    model: str
    anchor: Literal["untrained", "unigram", "answers"] | None = None
    """Which baseline: the model before training, token frequencies, or the true answers. None: the model."""
    dataset: str
    dialogs: int
    held_out: int | None = None
    """Dialogs of the dataset that are held out."""
    of_dialogs: int | None = None
    """All dialogs of the dataset, including those to train on."""
    trained_on: bool = False
    """Whether they include dialogs that the model was trained on."""
    known_prompts: int | None = None
    """Those whose prompt is in a dialog that the model was trained on; None if unknown."""
    known_answers: int | None = None
    """Those whose first answer is in a dialog that the model was trained on; None if unknown."""
    own_data: bool = False
    """Whether the model was trained on the other dialogs of the dataset."""
    tokens: int
    """Supervised tokens, including ends of turn."""
    nats_per_token: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    """Bits per UTF-8 byte of the answers, without ends of turn; comparable between tokenizers."""
    accuracy: float | None = None
    """Fraction of supervised tokens that are the model's most probable one."""
    top5_accuracy: float | None = None
    """Fraction of supervised tokens that are among the model's five most probable ones."""
    end_of_turn_nats: float | None = None
    prompt_gain: float | None = None
    """Bits per byte that the prompt saves, compared with the prompt of another dialog."""
    hits_at_1: float | None = None
    """How often the true answer is the most probable of ten; chance is 0.1."""
    right_answers: float | None = None
    """Fraction of the checked questions that are answered right."""
    stop_rate: float | None = None
    """Fraction of the replies that ended with an end of turn."""
    empty_rate: float | None = None
    cut_rate: float | None = None
    """Fraction of the replies that ran to the limit."""
    repetition: float | None = None
    """Fraction of the four-word sequences of a reply that occurred in it before."""
    distinct_1: float | None = None
    """Fraction of distinct words in all replies."""
    distinct_2: float | None = None
    length_ratio: float | None = None
    """Bytes of the replies divided by bytes of the true answers."""
    echo: float | None = None
    """Fraction of the three-word sequences of a reply that occur in its prompt."""
    chrf: float | None = None
    """Character similarity to the true answers, 0 to 100."""
    rouge_l: float | None = None
    """Similarity to the true answers by longest common subsequence of words, 0 to 1."""
    first_token_s: float | None = None
    """Seconds until every reply of the batch had its first token."""
    reply_tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    """Peak memory of the process so far, or of the GPU."""
    trained_bits_per_byte: float | None = None
    """Bits per byte of dialogs that the model was trained on."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """95% intervals over the dialogs."""
    slices: list[SliceRow] = Field(default_factory=list)
    scarce: dict[str, int] = Field(default_factory=dict)
    """Kinds with too few dialogs for metrics of their own, and the number of dialogs in each."""
    worst: list[WorstRow] = Field(default_factory=list)
    questions: int = 0
    """Checked questions that were asked."""
    right_by_topic: list[RightRow] = Field(default_factory=list)
    right_by_new: list[RightRow] = Field(default_factory=list)
    """By what is new in the question: its phrasing, a pair of phrasing and fact, or the fact."""
    wrong: list[WrongRow] = Field(default_factory=list)
    scores: Scores = Field(default_factory=dict, exclude=True, repr=False)
    """Kept beside an evaluation, to compare models dialog by dialog; too long for its JSON."""
    remarks: list[str] = Field(default_factory=list)
    """The diagnosis: what is wrong with the model."""
    checks: list[str] = Field(default_factory=list)
    """The faults that were looked for."""
    model_settings: str | None = None
    """What its replies used of the model's own sampling settings, if that was requested."""
    data_notes: list[str] = Field(default_factory=list)
    """How dialogs were changed to fit the model's chat template."""
    tasks: list[TaskRow] = Field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return the metrics that were measured, by name."""
        return {one.name: value for one in METRICS if (value := getattr(self, one.name)) is not None}
