"""Whether a model predicts dialogs better in another chat template, or with swapped roles."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from dialogkit.config.model import ModelConfig
from dialogkit.data.tokens import encode
from dialogkit.dialog import Dialog, Message
from dialogkit.errors import DialogKitError
from dialogkit.services.evaluation.results import Interval
from dialogkit.services.evaluation.scoring import Exchange

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.models.tokenizer import ChatTokenizer
    from dialogkit.services.runs.loading import LoadedModel

ALTERNATIVE_DIALOGS = 64
"""Number of dialogs, the first ones, that are scored in other formats."""
FEWEST = 8
"""Fewest dialogs from which anything is concluded."""
CLEARLY = 0.8
"""Another format is clearly better if it needs at most this fraction of the bits."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Alternative(NamedTuple):
    """Bits per byte of the same dialogs as they are written and in another format."""

    name: str
    """The chat template, or `swapped`: the model answers with the prompt."""
    bits: float
    as_written: float


def better_alternative(
    model: "LoadedModel", exchanges: Sequence[Exchange], score: "Callable[[DialogTokens], Likelihood]"
) -> Alternative | None:
    """Return the format in which the model predicts the first dialogs much better; None if there is none."""
    texts = [
        (e.prompt, e.answer) for e in exchanges[:ALTERNATIVE_DIALOGS] if e.prompt.strip() and e.answer.strip()
    ]
    if len(texts) < FEWEST:
        return None
    dialogs = _dialogs(texts)
    as_written = _bits(dialogs, model.tokenizer, model.context, score)
    if as_written is None:
        return None
    candidates = [(name, dialogs, tokenizer) for name, tokenizer in _other_formats(model.tokenizer)]
    candidates.append(("swapped", _dialogs([(answer, prompt) for prompt, answer in texts]), model.tokenizer))
    found = []
    for name, rewritten, tokenizer in candidates:
        if (otherwise := _bits(rewritten, tokenizer, model.context, score)) is not None:
            (bits, (_, high)), (own, (low, _)) = otherwise, as_written
            if bits < CLEARLY * own and high < low:
                found.append(Alternative(name, bits, own))
    return min(found, key=lambda one: one.bits, default=None)


def _dialogs(texts: Sequence[tuple[str, str]]) -> list[Dialog]:
    return [(Message("user", asked), Message("assistant", said)) for asked, said in texts]


def _bits(
    dialogs: Sequence[Dialog],
    tokenizer: "ChatTokenizer",
    context: int,
    score: "Callable[[DialogTokens], Likelihood]",
) -> tuple[float, Interval] | None:
    """Return the bits per byte of the answers and their interval; None if too few can be written this way."""
    try:
        tokens = encode(dialogs, tokenizer, context).tokens
    except DialogKitError:  # the model's own template takes too long
        return None
    if len(tokens) < FEWEST:
        return None
    likelihood = score(tokens)
    bounds = likelihood.intervals().get("bits_per_byte")
    return None if bounds is None else (likelihood.figures()["bits_per_byte"], bounds)


def _other_formats(tokenizer: "ChatTokenizer") -> "Iterator[tuple[str, ChatTokenizer]]":
    """Yield the chat formats that the vocabulary of a model allows, besides its own."""
    from dialogkit.models.tokenizer import with_format

    seen = {tokenizer.hf.chat_template}
    names: tuple[Literal["dialogkit", "plain", "turns", "auto"], ...] = ("dialogkit", "plain", "turns", "auto")
    for name in names:
        hf = copy.deepcopy(tokenizer.hf)
        if name == "auto":
            if "<|im_start|>" not in hf.get_vocab():
                continue
            hf.chat_template = CHATML
        try:
            other = with_format(hf, ModelConfig(source="alternative", chat_format=name))
        except DialogKitError:  # the vocabulary lacks its tokens
            continue
        if other.hf.chat_template not in seen:
            seen.add(other.hf.chat_template)
            yield ("ChatML" if name == "auto" else name), other
