"""Replies of a model to prompts."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import ChatTokenizer, Message

StopReason = Literal["end of turn", "length", "context full", "interruption"]


@dataclass(frozen=True)
class Reply:
    """One reply and how it was generated; comparisons ignore the times."""

    text: str
    tokens: int
    """Generated tokens, including the end of turn."""
    seconds: float = field(compare=False)
    """Wall time from the start of its batch to its last token."""
    stop_reason: StopReason
    first_token_s: float = field(default=0.0, compare=False)
    """Wall time from the start of its batch to its first token."""
    cut_tokens: int = 0
    """Tokens cut from the start of the prompt to fit the context."""


class _TextStreamer:
    """HF streamer that passes on the growing text of a single reply."""

    def __init__(self, tokenizer: ChatTokenizer, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._shown = ""
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        text = self._tokenizer.decode(self._ids)
        # A multi-byte character may still be incomplete.
        if not text.endswith("\ufffd"):
            self._show(text)

    def end(self) -> None:
        self._show(self._tokenizer.decode(self._ids))

    def _show(self, text: str) -> None:
        if text.startswith(self._shown) and text != self._shown:
            self._on_text(text[len(self._shown) :])
            self._shown = text


class _Clock:
    """HF stopping criterion that records the time of each token, and ends all replies on request."""

    def __init__(self, should_stop: Callable[[], bool] | None) -> None:
        self._started = time.perf_counter()
        self._at: list[float] = []
        self._should_stop = should_stop
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._at.append(time.perf_counter() - self._started)
        self.stopped = self._should_stop is not None and self._should_stop()
        return torch.full((len(input_ids),), self.stopped, dtype=torch.bool, device=input_ids.device)

    def seconds(self, tokens: int) -> float:
        """Return the seconds until N tokens were generated."""
        return self._at[tokens - 1]


def generate_replies(
    model: Any,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[Message]],
    config: GenerateConfig,
    *,
    context: int,
    device: str,
    batch_size: int = 32,
    on_text: Callable[[str], None] | None = None,
    leave: Callable[[], bool] | None = None,
) -> list[Reply]:
    """Return a reply to each prompt; a prompt longer than the context is cut at its start.

    Args:
        model: a causal model with its own attention and forward.
        tokenizer: its tokenizer with its chat format.
        prompts: dialogs that end with a user's message.
        config: sampling. The same seed gives the same replies to the same prompts.
        context: context length of the model, in tokens.
        device: where the model is.
        batch_size: prompts answered at once.
        on_text: receives new text as it is generated; only for a single prompt.
        leave: called after each token; True ends all replies as they are.
    """
    encoded = [tokenizer.encode_prompt(messages) for messages in prompts]
    return continue_prompts(
        model,
        tokenizer,
        encoded,
        config,
        context=context,
        device=device,
        batch_size=batch_size,
        on_text=on_text,
        leave=leave,
    )


@torch.no_grad()
def continue_prompts(
    model: Any,
    tokenizer: ChatTokenizer,
    encoded: Sequence[Sequence[int]],
    config: GenerateConfig,
    *,
    context: int,
    device: str,
    batch_size: int = 32,
    on_text: Callable[[str], None] | None = None,
    leave: Callable[[], bool] | None = None,
) -> list[Reply]:
    """Return a reply to each prompt of token ids, which end where the answer starts; see `generate_replies`."""
    from transformers import StoppingCriteriaList

    room = max(1, min(config.max_new_tokens, context // 2))
    cut = [max(0, len(ids) - (context - room)) for ids in encoded]
    encoded = [ids[left_out:] for ids, left_out in zip(encoded, cut, strict=True)]
    limits = [min(config.max_new_tokens, context - len(ids)) for ids in encoded]
    order = sorted(range(len(encoded)), key=lambda i: (-limits[i], len(encoded[i])))
    batches: list[list[int]] = []
    # Prompts with different limits are not batched: a reply must not depend on its batch.
    for _, group in groupby(order, key=lambda i: limits[i]):
        alike = list(group)
        batches += [alike[start : start + batch_size] for start in range(0, len(alike), batch_size)]
    replies: dict[int, Reply] = {}
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), _without_own_settings(model):
            torch.manual_seed(config.seed)
            for chosen in batches:
                ids, limit = [encoded[i] for i in chosen], limits[chosen[0]]
                longest = max(map(len, ids))
                inputs = torch.full((len(ids), longest), tokenizer.pad_id)
                mask = torch.zeros_like(inputs)
                for row, prompt in enumerate(ids):
                    inputs[row, longest - len(prompt) :] = torch.tensor(prompt)
                    mask[row, longest - len(prompt) :] = 1
                clock = _Clock(leave)
                output = model.generate(
                    input_ids=inputs.to(device),
                    attention_mask=mask.to(device),
                    stopping_criteria=StoppingCriteriaList([clock]),
                    streamer=_TextStreamer(tokenizer, on_text) if on_text and len(encoded) == 1 else None,
                    generation_config=_generation_config(config, tokenizer, limit),
                )
                for row, index in enumerate(chosen):
                    new = output[row, longest:].tolist()
                    replies[index] = _reply(
                        new, tokenizer, clock, context_full=limit < config.max_new_tokens, cut=cut[index]
                    )
    finally:
        model.train(was_training)
    return [replies[i] for i in range(len(encoded))]


def _generation_config(config: GenerateConfig, tokenizer: ChatTokenizer, longest: int) -> Any:
    from transformers import GenerationConfig

    sampling = config.temperature > 0
    options = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p} if sampling else {}
    return GenerationConfig(
        max_new_tokens=longest,
        do_sample=sampling,
        repetition_penalty=config.repetition_penalty,
        eos_token_id=sorted(tokenizer.reply_stop_ids),
        pad_token_id=tokenizer.pad_id,
        **options,
    )


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Give a model an empty generation config meanwhile: transformers fills unset values from it."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _reply(ids: list[int], tokenizer: ChatTokenizer, clock: _Clock, *, context_full: bool, cut: int) -> Reply:
    end = next((i for i, token in enumerate(ids) if token in tokenizer.reply_stop_ids), None)
    if end is not None:
        first_s = clock.seconds(1)
        return Reply(tokenizer.decode(ids[:end]), end + 1, clock.seconds(end + 1), "end of turn", first_s, cut)
    reason: StopReason = "interruption" if clock.stopped else "context full" if context_full else "length"
    return Reply(tokenizer.decode(ids), len(ids), clock.seconds(len(ids)), reason, clock.seconds(1), cut)


class Conversation:
    """Replies to one growing dialog; a cache keeps what the model has already read."""

    def __init__(self, model: Any, tokenizer: ChatTokenizer, *, context: int, device: str) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._context, self._device = context, device
        self._cache: Any = None
        self._read: list[int] = []
        """Ids in the cache."""
        self.computed = 0
        """Ids of the last prompt that were not in the cache."""

    def room(self, config: GenerateConfig) -> int:
        """Return the longest prompt, in tokens, that leaves room for a reply."""
        return self._context - max(1, min(config.max_new_tokens, self._context // 2))

    @torch.no_grad()
    def reply(
        self,
        messages: Sequence[Message],
        config: GenerateConfig,
        *,
        on_text: Callable[[str], None] | None = None,
        leave: Callable[[], bool] | None = None,
    ) -> Reply:
        """Return the reply to a dialog that ends with a user's message; see `generate_replies`."""
        from transformers import DynamicCache, StoppingCriteriaList

        ids = self._tokenizer.encode_prompt(messages)
        cut = max(0, len(ids) - self.room(config))
        ids = ids[cut:]
        limit = min(config.max_new_tokens, self._context - len(ids))
        # The last id is always computed: it yields the reply's first token.
        pairs = zip(ids[:-1], self._read, strict=False)
        cached = next((i for i, (new, old) in enumerate(pairs) if new != old), min(len(ids) - 1, len(self._read)))
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
        if cached < len(self._read):
            self._cache.crop(cached - len(self._read))  # a negative number removes that count
        self.computed = len(ids) - cached
        clock = _Clock(leave)
        devices = [torch.cuda.current_device()] if self._device == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), _without_own_settings(self._model):
                torch.manual_seed(config.seed)
                inputs = torch.tensor([ids], device=self._device)
                output = self._model.generate(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    past_key_values=self._cache,
                    stopping_criteria=StoppingCriteriaList([clock]),
                    streamer=_TextStreamer(self._tokenizer, on_text) if on_text else None,
                    generation_config=_generation_config(config, self._tokenizer, limit),
                )
        except BaseException:
            self._cache, self._read = None, []  # the cache may hold half a step
            raise
        new = output[0, len(ids) :].tolist()
        self._read = [*ids, *new][: self._cache.get_seq_length()]
        return _reply(new, self._tokenizer, clock, context_full=limit < config.max_new_tokens, cut=cut)
