"""Replies that are generated together although each begins and ends at its own time."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import ChatTokenizer
from dialogkit.inference.prefixes import Prefixes, common
from dialogkit.inference.replies import StopReason
from dialogkit.inference.row_cache import Row, RowCache, only_keys_and_values
from dialogkit.inference.sampling import Sampler, generator_of
from dialogkit.system import cpu_threads


@dataclass(eq=False)
class RunningReply:
    """One reply of a batch."""

    prompt: list[int]
    config: GenerateConfig
    limit: int
    """Most tokens."""
    generator: torch.Generator
    reused: int = 0
    """Tokens of the prompt that had been read before."""
    ids: list[int] = field(default_factory=list)
    """Its tokens, including the end of turn."""
    stop_reason: StopReason | None = None
    """Why it ended; set from outside, it ends the reply before the next step."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def read(self) -> list[int]:
        """The ids that the model has read: all but the last."""
        return self.prompt + self.ids[:-1] if self.ids else self.prompt[:-1]

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
    the same whatever stands beside it; only its last id is read in the next step of the others, so that their step
    yields its first token too. What was read for another reply, of the batch or ended, is not read again where a
    prompt begins with it.

    Attributes:
        rows: the replies, of which those with a `stop_reason` leave before the next step.
    """

    def __init__(
        self, model: Any, tokenizer: ChatTokenizer, *, context: int, device: str, prefix_bytes: int = 0
    ) -> None:
        """Begin without replies; of those that end, keys and values of so many bytes are kept."""
        self._model, self._tokenizer = model, tokenizer
        self._context, self._device = context, device
        self._parameters = inspect.signature(model.forward).parameters
        self._samplers: dict[tuple[float, ...], Sampler] = {}
        self._prefixes = Prefixes(prefix_bytes)
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.rows: list[RunningReply] = []
        self.is_mergeable = only_keys_and_values(model)
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
        """Read a prompt, begin the reply to it, and return the reply; without others, with its first token.

        The prompt leaves room for at least one token in the context.
        """
        self._leave()
        ids = list(prompt)
        reused, row = self._read_before(ids[:-1])  # the last id always is read: it yields the reply's first token
        reply = RunningReply(ids, config, self.limit(len(ids), config), generator_of(config), reused)
        last = len(ids) - 1 if self.rows and len(ids) > 1 else len(ids)
        cache, mask = self._new_cache(row), torch.ones(1, last, dtype=torch.long, device=self._device)
        if reused < last:
            positions = torch.arange(reused, last, device=self._device)[None]
            new = torch.tensor([ids[reused:last]], device=self._device)
            scores = self._forward(new, mask, positions, cache, logits=last == len(ids))
            if last == len(ids):
                self._extend([reply], scores)
        self._merge(cache, mask)
        self.rows.append(reply)
        return reply

    def forget(self) -> bool:
        """Free the memory of what ended replies have read; return whether there was any."""
        self._leave()
        held = self._prefixes.held_bytes > 0
        self._prefixes.clear()
        return held

    @torch.no_grad()
    def step(self) -> None:
        """Generate the next token of every reply."""
        self._leave()
        if not self.rows:
            return
        last = torch.tensor([[(row.ids or row.prompt)[-1]] for row in self.rows], device=self._device)
        at = torch.tensor([[row.prompt_tokens + len(row.ids) - 1] for row in self.rows], device=self._device)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        self._extend(self.rows, self._forward(last, self._mask, at, self._cache))
        cpu_threads.of_process.adapt()

    def _read_before(self, ids: Sequence[int]) -> tuple[int, Row]:
        """Return how many ids at the beginning were read before, and their keys and values."""
        length, row = self._prefixes.find(ids)
        if self.is_mergeable:
            for at, reply in enumerate(self.rows):
                read = reply.read
                if (shared := common(ids, read)) > length:
                    length, row = shared, self._cache.row(at, len(read), shared)
        return length, row

    def _new_cache(self, row: Row) -> Any:
        from transformers import DynamicCache

        # Without the model's settings every layer keeps all keys and values, so that rows can be cut and joined; a
        # sliding window is then up to the mask.
        return RowCache(row) if self.is_mergeable else DynamicCache(config=self._model.config)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, *, logits: bool = True
    ) -> torch.Tensor:
        """Read ids [B, T] and return the logits [B, V] of the next token, or for `logits=False` anything."""
        takes = self._parameters
        given: dict[str, Any] = {"cache" if "cache" in takes else "past_key_values": cache}
        if "position_ids" in takes:
            given["position_ids"] = positions
        if "logits_to_keep" in takes:  # an index of no token spares the product with the vocabulary
            given["logits_to_keep"] = 1 if logits else torch.zeros(0, dtype=torch.long, device=self._device)
        out = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **given)
        scores: torch.Tensor = out.logits[:, -1].float() if logits else out.logits
        return scores

    def _extend(self, replies: Sequence[RunningReply], scores: torch.Tensor) -> None:
        """Append the next token of each reply, by its scores [B, V]."""
        kinds = [(reply.sampling, not reply.ids) for reply in replies]  # a penalty has nothing to count yet
        order = sorted(range(len(replies)), key=kinds.__getitem__)
        for (sampling, _), group in groupby(order, key=kinds.__getitem__):
            rows = list(group)
            alike = [replies[i] for i in rows]
            if sampling not in self._samplers:
                if len(self._samplers) > 100:  # settings come from outside
                    self._samplers.clear()
                self._samplers[sampling] = Sampler(alike[0].config)
            sampler = self._samplers[sampling]
            of_rows = scores if len(rows) == len(replies) else scores[rows]
            said = self._said(alike) if sampler.penalty != 1 else None
            chosen = sampler.choose(of_rows, said, [reply.generator for reply in alike])
            for reply, token in zip(alike, chosen.tolist(), strict=True):
                self._append(reply, token)

    def _said(self, replies: Sequence[RunningReply]) -> torch.Tensor | None:
        """Return the tokens of replies [B, T], the last of each as often as it takes to the longest."""
        longest = max(len(reply.ids) for reply in replies)
        filled = [reply.ids + reply.ids[-1:] * (longest - len(reply.ids)) for reply in replies]
        return torch.tensor(filled, device=self._device) if longest else None

    def _append(self, reply: RunningReply, token: int) -> None:
        reply.ids.append(token)
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
        self._mask = torch.cat([_padded(part, longest) for part in (self._mask, mask)])
        self._cache.join(cache)

    def _leave(self) -> None:
        """Remove the rows that have ended, and the padding that no other row needs."""
        order = [at for at, row in enumerate(self.rows) if row.stop_reason is None]
        if len(order) == len(self.rows):
            return
        if self.is_mergeable:
            for at, row in enumerate(self.rows):
                if row.stop_reason is not None:
                    read = row.read
                    self._prefixes.add(read, self._cache.row(at, len(read), len(read)))
        # The last rows move to where others have left, so that most stay where they are.
        for hole in [at for at, row in enumerate(self.rows) if row.stop_reason is not None]:
            if hole < len(order):
                order.insert(hole, order.pop())
        self.rows = [self.rows[at] for at in order]
        if not order:
            self._cache = None
            return
        self._mask = self._mask[order]
        padding = int((self._mask.cumsum(dim=1) == 0).sum(dim=1).min())
        self._mask = self._mask[:, padding:]
        self._cache.keep(order, padding)


def _padded(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return a mask [B, T] padded on the left."""
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))
