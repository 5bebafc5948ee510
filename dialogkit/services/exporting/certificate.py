"""Certificates: how faithfully an exported model answers, measured with the weights read back from its file."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import computed_field

from dialogkit.config.base import Result
from dialogkit.config.data import DataConfig
from dialogkit.config.generate import TEST_PROMPTS, GenerateConfig
from dialogkit.dialog import Message
from dialogkit.errors import DialogKitError
from dialogkit.services.evaluate import own_data_config
from dialogkit.services.evaluation.evaluator import ProgressSink, read_data
from dialogkit.services.evaluation.questions import choose_questions, mark
from dialogkit.services.evaluation.scoring import first_exchanges, replies_to, score
from dialogkit.services.runs.resolve import Loadable
from dialogkit.text import counted

if TYPE_CHECKING:
    from dialogkit.data.prepare import PreparedData
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.services.runs.loading import LoadedModel

PROMPTS = 32
"""Prompts that are answered: the test prompts, and those of held-out dialogs."""
LONGEST = 48
"""Longest of these replies, in tokens."""
DIALOGS = 64
"""Held-out dialogs whose answers are scored."""
QUESTIONS = 64
"""Most checked questions that are asked."""
GREEDY = GenerateConfig(temperature=0, repetition_penalty=1.0)

EQUAL_TOKENS: Mapping[str, float] = {"f32": 0.999, "f16": 0.99}
"""The smallest share of equal tokens, for weights that are kept, or only rounded."""
BITS_LOST: Mapping[str, float] = {"f32": 0.001, "f16": 0.005, "q8_0": 0.02, "q4_0": 0.15}
"""The most bits per byte that may be lost."""


class Certificate(Result):
    """How faithful an exported model is to the original.

    The share of equal tokens is that of the original's greedy replies; each is compared after the same tokens.
    """

    model: str
    file: str
    bytes: int
    sha256: str
    weight_type: str
    read_back_with: str
    """What read the weights of the file."""
    kept_f16: list[str]
    """Matrices that have 16 bits, as their rows do not divide into blocks."""
    prompts: int
    equal_replies: int
    tokens: int
    equal_tokens: float
    dataset: str
    """Where the held-out dialogs are from."""
    own_data: bool
    """Whether the model was trained on this dataset."""
    dialogs: int
    bits_per_byte: float
    copy_bits_per_byte: float
    questions: int
    """Held-out questions whose answers the dataset can check."""
    right_answers: float | None
    copy_right_answers: float | None
    smallest_equal_tokens: float | None
    """The tolerance; None for none."""
    most_bits_per_byte_lost: float
    """The tolerance."""
    versions: dict[str, str]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bits_per_byte_lost(self) -> float:
        """How much worse the copy predicts the held-out answers."""
        return self.copy_bits_per_byte - self.bits_per_byte

    @computed_field  # type: ignore[prop-decorator]
    @property
    def within_tolerance(self) -> bool:
        """Whether the copy is as faithful as its form should be."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is beyond the tolerance, in one sentence; None if nothing is."""
        least, most = self.smallest_equal_tokens, self.most_bits_per_byte_lost
        if least is not None and self.equal_tokens < least:
            return (
                f"as {self.weight_type}, {self.equal_tokens:.2%} of {counted(self.tokens, 'greedy token')} equal "
                f"those of {self.model!r}; at least {least:.1%} should"
            )
        if not self.bits_per_byte_lost <= most:  # NaN is no success
            return (
                f"as {self.weight_type}, {self.model!r} loses {self.bits_per_byte_lost:.3f} bits/byte on "
                f"{counted(self.dialogs, 'held-out dialog')}; {most:g} is the most that it should"
            )
        return None

    def rows(self) -> dict[str, str]:
        """Return what was measured, in words."""
        rows = {
            "equal tokens": f"{self.equal_tokens:.2%} of {self.tokens:,} in greedy replies; "
            f"{self.equal_replies} of {self.prompts} replies are wholly equal",
            "bits/byte": f"{self.bits_per_byte:.3f} before, {self.copy_bits_per_byte:.3f} after "
            f"({self.bits_per_byte_lost:+.4f}), on {counted(self.dialogs, 'held-out dialog')} of {self.dataset}",
        }
        if self.right_answers is not None and self.copy_right_answers is not None:
            rows["right answers"] = (
                f"{self.right_answers:.0%} before, {self.copy_right_answers:.0%} after, "
                f"of {counted(self.questions, 'question')}"
            )
        least = self.smallest_equal_tokens
        equal = "" if least is None else f"at least {least:.1%} equal tokens, "
        kept = "kept" if self.within_tolerance else "not kept"
        rows["tolerance"] = f"{equal}at most {self.most_bits_per_byte_lost:g} bits/byte lost: {kept}"
        rows["read back with"] = self.read_back_with
        if self.kept_f16:
            more = f" and {len(self.kept_f16) - 3} more" if len(self.kept_f16) > 3 else ""
            rows["16 bits"] = f"{', '.join(self.kept_f16[:3])}{more}, whose rows do not divide into blocks of 32"
        return rows


class Means(NamedTuple):
    """How to measure a model: the likelihood of dialogs, and its greedy answers to prompts of ids."""

    likelihood: "Callable[[LoadedModel, DialogTokens], Likelihood]"
    answers: "Callable[[LoadedModel, Sequence[Sequence[int]]], list[str]]"


def _answers(model: "LoadedModel", prompts: Sequence[Sequence[int]]) -> list[str]:
    return [reply.text for reply in replies_to(model, prompts, GREEDY)]


BY_TRANSFORMERS = Means(score, _answers)
"""For a model of transformers."""


def certify(
    loadable: Loadable,
    original: "LoadedModel",
    copy: "LoadedModel",
    *,
    weight_type: str,
    on_progress: ProgressSink,
    means: Means = BY_TRANSFORMERS,
    **about: Any,
) -> Certificate:
    """Return the certificate of a copy; `about` are the fields that say what the file is.

    The held-out dialogs are those of the model's run; where they are not at hand, those of `starter`.

    Args:
        loadable: the model.
        original: as it was loaded.
        copy: what was read from the file.
        weight_type: how the file stores weights.
        on_progress: receives the current stage and the fraction of the work that is done.
        means: how to measure the copy.
        about: other fields of the certificate.
    """
    from dialogkit.inference.agreement import agreement_on

    data, is_own = _held_out(loadable, original)
    dialogs = data.evaluation.select(range(min(DIALOGS, len(data.evaluation))))
    prompts = [original.tokenizer.encode_prompt([Message("user", text)]) for text in TEST_PROMPTS]
    prompts += [one.prompt_ids for one in first_exchanges(dialogs, original.tokenizer)]
    prompts = prompts[:PROMPTS]
    longest = min(LONGEST, original.context // 2)
    questions = choose_questions(data.evaluation, data.checked, original.tokenizer, QUESTIONS)

    agreements = []
    for number, prompt in enumerate(prompts):
        on_progress("comparing replies", 0.2 + 0.3 * number / len(prompts))
        agreements.append(
            agreement_on(
                original.model,
                copy.model,
                original.tokenizer,
                prompt,
                context=original.context,
                longest=longest,
            )
        )
    bits, right = [], []
    for number, (one, by) in enumerate(((original, BY_TRANSFORMERS), (copy, means))):
        on_progress("predicting held-out answers", 0.5 + 0.25 * number)
        bits.append(by.likelihood(one, dialogs).figures()["bits_per_byte"])
        if questions:
            on_progress("answering checked questions", 0.6 + 0.25 * number)
            marked = mark(questions, by.answers(one, [question.prompt_ids for question in questions]))
            right.append(sum(each.is_right for each in marked) / len(marked))
    tokens = sum(one.tokens for one in agreements)
    return Certificate(
        **about,
        model=loadable.display_name,
        weight_type=weight_type,
        prompts=len(prompts),
        equal_replies=sum(one.tokens == one.equal for one in agreements),
        tokens=tokens,
        equal_tokens=sum(one.equal for one in agreements) / tokens,
        dataset=data.ledger.dataset,
        own_data=is_own,
        dialogs=len(dialogs),
        bits_per_byte=bits[0],
        copy_bits_per_byte=bits[1],
        questions=len(questions),
        right_answers=right[0] if right else None,
        copy_right_answers=right[1] if right else None,
        smallest_equal_tokens=EQUAL_TOKENS.get(weight_type),
        most_bits_per_byte_lost=BITS_LOST[weight_type],
    )


def _held_out(loadable: Loadable, model: "LoadedModel") -> "tuple[PreparedData, bool]":
    """Return the data of a model's run, or the starter dialogs, and whether they are its own."""
    if (own := own_data_config(loadable)) is not None:
        with suppress(DialogKitError):
            return read_data(own, model), True
    return read_data(DataConfig(), model), False
