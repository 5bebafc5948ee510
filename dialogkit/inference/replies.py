"""Replies of a model to prompts."""

import inspect
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch
from packaging.version import Version

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import ChatTokenizer, Message
from dialogkit.inference.growing_text import GrowingText
from dialogkit.inference.row_cache import only_keys_and_values
from dialogkit.inference.sampling import Sampler, generator_of
from dialogkit.system import cpu_threads

AT_ONCE = 32
"""Prompts that are answered at once where memory suffices."""

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
        self._text, self._on_text = GrowingText(tokenizer), on_text
        self._ids: list[int] = []
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        self._show(self._text.add(self._ids))

    def end(self) -> None:
        self._show(self._text.end(self._ids))

    def _show(self, new: str) -> None:
        if new:
            self._on_text(new)


class _Clock:
    """HF stopping criterion that records the time of each token, and ends all replies on request."""

    def __init__(self, should_stop: Callable[[], bool] | None) -> None:
        self._started = time.perf_counter()
        self._at: list[float] = []
        self._should_stop = should_stop
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.tick(), dtype=torch.bool, device=input_ids.device)

    def tick(self) -> bool:
        """Record the time of a token, and return whether all replies end here on request."""
        self._at.append(time.perf_counter() - self._started)
        cpu_threads.of_process.adapt()
        self.stopped = self._should_stop is not None and self._should_stop()
        return self.stopped

    def seconds(self, tokens: int) -> float:
        """Return the seconds until N tokens were generated."""
        return self._at[tokens - 1]


class _Choice:
    """HF logits processor that chooses the next token of each reply and leaves it as the only possible one."""

    def __init__(self, config: GenerateConfig, replies: int, prompt_tokens: int) -> None:
        self._sampler, self._prompt_tokens = Sampler(config), prompt_tokens
        self._generators = [generator_of(config) for _ in range(replies)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = self._sampler.choose(scores, input_ids[:, self._prompt_tokens :], self._generators)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


@dataclass(frozen=True)
class _Prompt:
    """Token ids that fit into the context together with a reply."""

    ids: Sequence[int]
    cut: int
    """Tokens cut from the start."""
    limit: int
    """Most tokens of the reply."""


def _fitted(ids: Sequence[int], config: GenerateConfig, context: int) -> _Prompt:
    cut = max(0, len(ids) - prompt_room(config, context))
    return _Prompt(ids[cut:], cut, min(config.max_new_tokens, context - len(ids) + cut))


def fitted_lengths(prompt: int, config: GenerateConfig, context: int) -> tuple[int, int]:
    """Return the tokens that are read of a prompt of that length, and the most tokens of the reply to it."""
    one = _fitted(range(prompt), config, context)
    return len(one.ids), one.limit


def prompt_room(config: GenerateConfig, context: int) -> int:
    """Return the longest prompt, in tokens, that leaves room for a reply."""
    return context - max(1, min(config.max_new_tokens, context // 2))


def fitting(tokenizer: ChatTokenizer, messages: Sequence[Message], room: int) -> list[Message]:
    """Return the messages without as many of the oldest turns as do not fit into `room` tokens.

    A system text and the last message stay, and may not fit either.
    """
    first = 1 if messages[0].role == "system" else 0

    def without(turns: int) -> list[Message]:
        return [*messages[:first], *messages[first + 2 * turns :]]

    # Not one turn after the other: a long dialog would be encoded as often as it has turns.
    return without(
        bisect_left(
            range((len(messages) - first - 1) // 2),
            True,
            key=lambda turns: len(tokenizer.encode_prompt(without(turns))) <= room,
        )
    )


@torch.no_grad()
def continue_prompts(
    model: Any,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig,
    *,
    context: int,
    device: str,
    batch_size: int = AT_ONCE,
    on_text: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Reply]:
    """Return a reply to each prompt; a prompt longer than the context is cut at its start.

    Args:
        model: a causal model with its own attention and forward.
        tokenizer: its tokenizer with its chat format.
        prompts: token ids, which end where the answer starts; see `ChatTokenizer.encode_prompt`.
        config: sampling. Each reply has random numbers of its own from the same seed, so the others of its batch
            do not change what it draws.
        context: context length of the model, in tokens.
        device: where the model is.
        batch_size: prompts answered at once.
        on_text: receives new text as it is generated; only for a single prompt.
        should_stop: called after each token; True ends all replies as they are.
    """
    fitted = [_fitted(ids, config, context) for ids in prompts]
    on_text = on_text if len(fitted) == 1 else None
    order = sorted(range(len(fitted)), key=lambda i: (-fitted[i].limit, len(fitted[i].ids)))
    replies: dict[int, Reply] = {}
    was_training = model.training
    model.eval()
    try:
        with _no_generation_config(model):
            # Prompts with different limits are not batched: a reply must not depend on its batch.
            for _, group in groupby(order, key=lambda i: fitted[i].limit):
                alike = list(group)
                for start in range(0, len(alike), batch_size):
                    chosen = alike[start : start + batch_size]
                    batch = [fitted[i] for i in chosen]
                    made = _generate(model, tokenizer, batch, config, device, on_text, should_stop)
                    replies |= {i: reply for i, (_, reply) in zip(chosen, made, strict=True)}
    finally:
        model.train(was_training)
    return [replies[i] for i in range(len(fitted))]


def _generate(
    model: Any,
    tokenizer: ChatTokenizer,
    prompts: Sequence[_Prompt],
    config: GenerateConfig,
    device: str,
    on_text: Callable[[str], None] | None,
    should_stop: Callable[[], bool] | None,
    cache: Any = None,
) -> list[tuple[list[int], Reply]]:
    """Return the new ids and the reply for each prompt of a batch; all prompts have the same limit."""
    from transformers import LogitsProcessorList, StoppingCriteriaList, __version__

    if len(prompts) == 1 and only_keys_and_values(model) and _takes(model.forward, *_ONE_TAKES):
        return [_generate_one(model, tokenizer, prompts[0], config, device, on_text, should_stop, cache)]
    # Renamed in transformers 5.24.
    held = {"cache" if Version(__version__) >= Version("5.24") else "past_key_values": cache}
    longest, limit = max(len(prompt.ids) for prompt in prompts), prompts[0].limit
    inputs = torch.full((len(prompts), longest), tokenizer.pad_id)
    mask = torch.zeros_like(inputs)
    for row, prompt in enumerate(prompts):
        inputs[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, longest - len(prompt.ids) :] = 1
    clock = _Clock(should_stop)
    choice = _Choice(config, len(prompts), longest)
    output = model.generate(
        input_ids=inputs.to(device),
        attention_mask=mask.to(device),
        **held,
        logits_processor=LogitsProcessorList([choice]),
        stopping_criteria=StoppingCriteriaList([clock]),
        streamer=_TextStreamer(tokenizer, on_text) if on_text else None,
        generation_config=_generation_config(tokenizer, limit),
    )
    at_limit: StopReason = "context full" if limit < config.max_new_tokens else "length"
    made = zip(output[:, longest:].tolist(), prompts, strict=True)
    return [(ids, _reply(ids, tokenizer, clock, at_limit, prompt.cut)) for ids, prompt in made]


def _generate_one(
    model: Any,
    tokenizer: ChatTokenizer,
    prompt: _Prompt,
    config: GenerateConfig,
    device: str,
    on_text: Callable[[str], None] | None,
    should_stop: Callable[[], bool] | None,
    cache: Any,
) -> tuple[list[int], Reply]:
    """Return what `_generate` returns for one prompt, without what HF does besides the model for each token."""
    from transformers import DynamicCache

    clock, sampler, generators = _Clock(should_stop), Sampler(config), [generator_of(config)]
    text = GrowingText(tokenizer) if on_text else None
    cache = DynamicCache(config=model.config) if cache is None else cache
    held = "cache" if _takes(model.forward, "cache") else "past_key_values"
    read = cache.get_seq_length()
    said = torch.empty(1, prompt.limit, dtype=torch.long, device=device)
    ids: list[int] = []
    new = torch.tensor([prompt.ids[read:]], device=device)
    while True:
        at = torch.arange(read, read + new.shape[1], device=device)[None]
        out = model(input_ids=new, position_ids=at, **{held: cache}, use_cache=True, logits_to_keep=1)
        chosen = sampler.choose(out.logits[:, -1].float(), said[:, : len(ids)] if ids else None, generators)
        said[:, len(ids)] = chosen
        ids.append(int(chosen))
        if text is not None and on_text is not None and (grown := text.add(ids)):
            on_text(grown)
        if clock.tick() or ids[-1] in tokenizer.reply_stop_ids or len(ids) == prompt.limit:
            break
        read, new = read + new.shape[1], chosen[:, None]
    if text is not None and on_text is not None and (grown := text.end(ids)):
        on_text(grown)
    at_limit: StopReason = "context full" if prompt.limit < config.max_new_tokens else "length"
    return ids, _reply(ids, tokenizer, clock, at_limit, prompt.cut)


_ONE_TAKES = ("position_ids", "logits_to_keep")


def _takes(forward: Callable[..., Any], *names: str) -> bool:
    """Return whether a model's forward has all of these parameters."""
    return set(names) <= inspect.signature(forward).parameters.keys()


def _generation_config(tokenizer: ChatTokenizer, longest: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=longest,
        do_sample=False,  # `_Choice` has chosen
        eos_token_id=sorted(tokenizer.reply_stop_ids),
        pad_token_id=tokenizer.pad_id,
    )


@contextmanager
def _no_generation_config(model: Any) -> Iterator[None]:
    """Give a model an empty generation config within a context: transformers fills unset values from it."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _reply(ids: list[int], tokenizer: ChatTokenizer, clock: _Clock, at_limit: StopReason, cut: int) -> Reply:
    end = next((i for i, token in enumerate(ids) if token in tokenizer.reply_stop_ids), None)
    tokens = len(ids) if end is None else end + 1
    reason: StopReason = "end of turn" if end is not None else "interruption" if clock.stopped else at_limit
    return Reply(tokenizer.decode(ids[:end]), tokens, clock.seconds(tokens), reason, clock.seconds(1), cut)


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

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return len(self._read)

    def room(self, config: GenerateConfig) -> int:
        """Return the longest prompt, in tokens, that leaves room for a reply."""
        return prompt_room(config, self._context)

    @torch.no_grad()
    def reply(
        self,
        messages: Sequence[Message],
        config: GenerateConfig,
        *,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Reply:
        """Return the reply to a dialog that ends with a user's message; see `continue_prompts`."""
        from transformers import DynamicCache

        prompt = _fitted(self._tokenizer.encode_prompt(messages), config, self._context)
        ids = prompt.ids
        # The last id is always computed: it yields the reply's first token.
        pairs = zip(ids[:-1], self._read, strict=False)
        cached = next((i for i, (new, old) in enumerate(pairs) if new != old), min(len(ids) - 1, len(self._read)))
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
        if cached < len(self._read):
            self._cache.crop(cached - len(self._read))  # a negative number removes that count
        self.computed = len(ids) - cached
        model, tokenizer, device = self._model, self._tokenizer, self._device
        try:
            with _no_generation_config(model):
                made = _generate(model, tokenizer, [prompt], config, device, on_text, should_stop, self._cache)
        except BaseException:
            self._cache, self._read = None, []  # the cache may hold half a step
            raise
        ((new_ids, reply),) = made
        self._read = [*ids, *new_ids][: self._cache.get_seq_length()]
        return reply
