"""How an exported ONNX file is measured: onnxruntime computes it, one dialog at a time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dialogkit.services.exporting.certificate import GREEDY, Means

if TYPE_CHECKING:
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.services.runs.loading import LoadedModel


def _likelihood(copy: "LoadedModel", dialogs: "DialogTokens") -> "Likelihood":
    from dialogkit.data.collate import batches_of
    from dialogkit.inference.likelihood import score_batches

    # One at a time: the logits of all tokens are in memory.
    return score_batches(copy.model, batches_of(dialogs, 1), copy.tokenizer.stop_ids, device="cpu")


def _answers(copy: "LoadedModel", prompts: Sequence[Sequence[int]]) -> list[str]:
    from dialogkit.inference.replies import fitted_lengths

    answers, ends = [], copy.tokenizer.reply_stop_ids
    for prompt in prompts:
        read, longest = fitted_lengths(len(prompt), GREEDY, copy.context)
        ids = copy.model.reply(prompt[-read:], longest=longest, ends=ends)
        answers.append(copy.tokenizer.decode(ids[:-1] if ids[-1] in ends else ids))
    return answers


BY_ONNX = Means(_likelihood, _answers)
"""For a copy whose model is an `OnnxModel`."""
