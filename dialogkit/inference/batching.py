"""Replies that are generated together although each begins and ends at its own time."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import ChatTokenizer
from dialogkit.inference.replies import StopReason
from dialogkit.inference.sampling import Sampler, generator_of


@dataclass(eq=False)
class RunningReply:
    """One reply of a batch."""

    prompt_tokens: int
    config: GenerateConfig
    limit: int
    """Most tokens."""
    generator: torch.Generator
    seen: torch.Tensor | None
    """Which tokens it has already [V]; None without a repetition penalty."""
    ids: list[int] = field(default_factory=list)
    """Its tokens, including the end of turn."""
    stop_reason: StopReason | None = None
    """Why it ended; set from outside, it ends the reply before the next step."""

    @property
    def text_ids(self) -> list[int]:
        """Its tokens without the end of turn."""
        return self.ids[:-1] if self.stop_reason == "end of turn" else self.ids

    @property
    def sampling(self) -> tuple[float, ...]:
        """What replies have in common whose tokens are chosen together."""
        config = self.config
        return config.temperature, float(config.top_k), config.top_p, config.repetition_penalty


class ReplyBatch:
    """A batch of replies of one model; replies join and leave it between any two tokens.

    Their keys and values are one cache, padded on the left to the longest. A prompt is read alone, so its cache is
    the same whatever stands beside it.

    Attributes:
        rows: the replies, of which those with a `stop_reason` leave before the next step.
    """

    def __init__(self, model: Any, tokenizer: ChatTokenizer, *, context: int, device: str) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._context, self._device = context, device
        self._parameters = inspect.signature(model.forward).parameters
        self._samplers: dict[tuple[float, ...], Sampler] = {}
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.rows: list[RunningReply] = []
        self.is_mergeable = _only_keys_and_values(model)
        """Whether replies can join others: models with a recurrent state answer one after another."""

    @property
    def length(self) -> int:
        """Tokens of the cache, padding included."""
        return int(self._mask.shape[1]) if self.rows else 0

    def limit(self, prompt_tokens: int, config: GenerateConfig) -> int:
        """Return the most tokens of a reply to a prompt of that length."""
        return min(config.max_new_tokens, self._context - prompt_tokens)

    @torch.no_grad()
    def join(self, prompt: Sequence[int], config: GenerateConfig) -> RunningReply:
        """Read a prompt, begin the reply to it, and return the reply with its first token.

        The prompt leaves room for at least one token in the context.
        """
        self._leave()
        cache, mask = self._new_cache(), torch.ones(1, len(prompt), dtype=torch.long, device=self._device)
        positions = torch.arange(len(prompt), device=self._device)[None]
        scores = self._forward(torch.tensor([list(prompt)], device=self._device), mask, positions, cache)
        seen = (
            torch.zeros(scores.shape[-1], dtype=torch.bool, device=self._device)
            if config.repetition_penalty != 1
            else None
        )
        limit = self.limit(len(prompt), config)
        reply = RunningReply(len(prompt), config, limit, generator_of(config, self._device), seen)
        self._extend([reply], scores)
        self._merge(cache, mask)
        self.rows.append(reply)
        return reply

    @torch.no_grad()
    def step(self) -> None:
        """Generate the next token of every reply."""
        self._leave()
        if not self.rows:
            return
        last = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._device)
        at = torch.tensor([[row.prompt_tokens + len(row.ids) - 1] for row in self.rows], device=self._device)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        self._extend(self.rows, self._forward(last, self._mask, at, self._cache))

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        # Without the model's settings every layer keeps all keys and values, so that rows can be cut and joined; a
        # sliding window is then up to the mask.
        return DynamicCache() if self.is_mergeable else DynamicCache(config=self._model.config)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Read ids [B, T] and return the logits [B, V] of the next token."""
        takes = self._parameters
        given: dict[str, Any] = {"cache" if "cache" in takes else "past_key_values": cache}
        if "position_ids" in takes:
            given["position_ids"] = positions
        if "logits_to_keep" in takes:
            given["logits_to_keep"] = 1
        out = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **given)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _extend(self, replies: Sequence[RunningReply], scores: torch.Tensor) -> None:
        """Append the next token of each reply, by its scores [B, V]."""
        order = sorted(range(len(replies)), key=lambda i: replies[i].sampling)
        for sampling, group in groupby(order, key=lambda i: replies[i].sampling):
            rows = list(group)
            alike = [replies[i] for i in rows]
            if sampling not in self._samplers:
                if len(self._samplers) > 100:  # settings come from outside
                    self._samplers.clear()
                self._samplers[sampling] = Sampler(alike[0].config)
            of_rows = scores if len(rows) == len(replies) == 1 else scores[rows]
            masks = [reply.seen for reply in alike if reply.seen is not None]
            seen = torch.stack(masks) if masks else None
            chosen = self._samplers[sampling].choose(of_rows, seen, [reply.generator for reply in alike])
            for reply, token in zip(alike, chosen.tolist(), strict=True):
                self._append(reply, token)

    def _append(self, reply: RunningReply, token: int) -> None:
        reply.ids.append(token)
        if reply.seen is not None:
            reply.seen[token] = True
        if token in self._tokenizer.reply_stop_ids:
            reply.stop_reason = "end of turn"
        elif len(reply.ids) >= reply.limit:
            reply.stop_reason = "context full" if reply.limit < reply.config.max_new_tokens else "length"

    def _merge(self, cache: Any, mask: torch.Tensor) -> None:
        """Put the cache of a row below those of the others."""
        if not self.rows:
            self._cache, self._mask = cache, mask
            return
        longest = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_padded(part, longest, dim=-1) for part in (self._mask, mask)])
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            if layer.is_initialized:  # a layer may use the keys of another
                layer.keys = torch.cat([_padded(part, longest, dim=-2) for part in (layer.keys, new.keys)])
                layer.values = torch.cat([_padded(part, longest, dim=-2) for part in (layer.values, new.values)])

    def _leave(self) -> None:
        """Remove the rows that have ended, and the padding that no other row needs."""
        keep = [i for i, row in enumerate(self.rows) if row.stop_reason is None]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in keep]
        if not keep:
            self._cache = None
            return
        self._mask = self._mask[keep]
        padding = int((self._mask.cumsum(dim=1) == 0).sum(dim=1).min())
        self._mask = self._mask[:, padding:]
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[keep, :, padding:], layer.values[keep, :, padding:]


def _padded(part: torch.Tensor, length: int, *, dim: int) -> torch.Tensor:
    """Return a tensor padded on the left of a dimension, counted from the last."""
    missing = length - part.shape[dim]
    return torch.nn.functional.pad(part, (0, 0) * (-dim - 1) + (missing, 0)) if missing else part


def _only_keys_and_values(model: Any) -> bool:
    """Return whether keys and values are all that a model keeps of what it has read."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    # Their subclasses keep more, such as the state of a convolution.
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
