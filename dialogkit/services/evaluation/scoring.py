"""The first exchanges of dialogs, the likelihood of dialogs under a model, and its replies."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.hints import Change
from dialogkit.services.evaluation.results import Scores
from dialogkit.services.inference_memory import replies_at_once, scored_at_once

if TYPE_CHECKING:
    from dialogkit.config.generate import GenerateConfig
    from dialogkit.data.tokens import DialogTokens
    from dialogkit.inference.likelihood import Likelihood
    from dialogkit.inference.replies import Reply
    from dialogkit.models.tokenizer import ChatTokenizer
    from dialogkit.services.runs.loading import LoadedModel


class Exchange(NamedTuple):
    """The first answer of a dialog, and everything before it."""

    prompt_ids: list[int]
    answer_ids: list[int]
    prompt: str
    answer: str


def first_exchanges(dialogs: "DialogTokens", tokenizer: "ChatTokenizer") -> list[Exchange]:
    """Return the first answer of each dialog with its prompt."""
    exchanges = []
    for index in range(len(dialogs)):
        ids = dialogs[index]["input_ids"].tolist()
        supervised = dialogs[index]["supervised"].tolist()
        start = supervised.index(True, 1) if True in supervised[1:] else len(ids)
        end = supervised.index(False, start) if False in supervised[start:] else len(ids)
        prompt, answer = ids[:start], ids[start:end]
        exchanges.append(Exchange(prompt, answer, tokenizer.prompt_text(prompt), tokenizer.decode(answer)))
    return exchanges


def score(
    model: "LoadedModel",
    dialogs: "DialogTokens",
    *,
    batch_size: int = 8,
    done: Callable[[int], None] = lambda dialogs: None,
) -> "Likelihood":
    """Return the likelihood of dialogs in float32; `done` receives the number of dialogs of each batch."""
    from dialogkit.data.collate import batches_of
    from dialogkit.engine.attention import use_packed_attention
    from dialogkit.inference.likelihood import score_batches

    def batches() -> "Iterator[tuple[dict[str, Any], list[int]]]":
        for batch, sizes in batches_of(dialogs, at_once):
            yield batch, sizes
            done(len(sizes))

    use_packed_attention(model.model)
    at_once = scored_at_once(model, dialogs.lengths.tolist(), batch_size)
    return score_batches(model.model, batches(), model.tokenizer.stop_ids, device=model.device)


def scores_of(likelihood: "Likelihood", dialogs: "DialogTokens") -> Scores:
    """Return the nats and the bytes of the answers of each dialog whose content hash is known."""
    rows = zip(dialogs.hashes, likelihood.answer_nats, likelihood.answer_bytes, strict=True)
    return {f"{hashed:016x}": (round(float(nats), 6), float(size)) for hashed, nats, size in rows if hashed}


def replies_to(model: "LoadedModel", prompts: Sequence[Sequence[int]], config: "GenerateConfig") -> "list[Reply]":
    """Return the reply to each prompt of token ids, in one batch if memory suffices."""
    from dialogkit.engine.attention import plain_attention
    from dialogkit.inference.replies import continue_prompts

    where: dict[str, Any] = {"context": model.context, "device": model.device}
    with plain_attention(model.model):
        lengths = list(map(len, prompts))
        at_once = replies_at_once(model, lengths, config, len(prompts), otherwise=Change({"quick": True}))
        return continue_prompts(model.model, model.tokenizer, prompts, config, **where, batch_size=at_once)
