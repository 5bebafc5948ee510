"""A cache of keys and values whose rows join and leave without the others being copied."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

SPARE_TOKENS = 32
"""Tokens that a copy leaves room for."""

Row = list[tuple[torch.Tensor, torch.Tensor] | None]
"""Keys and values [1, H, T, D] of each layer; None for a layer that uses those of another."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer within tensors that have room for more rows and tokens.

    HF copies all of them at each token. Here a token is written behind the others, and a row below them.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens [B, H, T, D] of all rows; return all keys and values."""
        if not self.is_initialized:
            self.hold(key_states, value_states)
        else:
            new = key_states.shape[-2]
            if self._end + new > self._wholes[0].shape[-2]:
                self._move(len(self.keys), self._end - self._start, SPARE_TOKENS + new)
            for whole, states in zip(self._wholes, (key_states, value_states), strict=True):
                whole[: len(states), :, self._end : self._end + new] = states
            self._end += new
            self._show(len(key_states))
        return self.keys, self.values

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold these keys and values, and no others."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._wholes, self._start, self._end = (keys, values), 0, keys.shape[-2]
        self._show(len(keys))

    def join(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add a row [1, H, T, D], whose last token stands beside those of the others."""
        rows, length = len(self.keys), keys.shape[-2]
        if rows == len(self._wholes[0]) or length > self._end:
            self._move(rows + 1 + rows // 8, max(length, self._end - self._start), SPARE_TOKENS)
        for whole, states in zip(self._wholes, (keys, values), strict=True):
            whole[rows, :, : self._end - length] = 0
            whole[rows, :, self._end - length : self._end] = states[0]
        begin = min(self._start, self._end - length)
        for whole in self._wholes:
            whole[:rows, :, begin : self._start] = 0
        self._start = begin
        self._show(rows + 1)

    def keep(self, order: Sequence[int], padding: int) -> None:
        """Keep these rows, in this order, without as many tokens at their beginning.

        A row moves up only from behind the rows that are kept.
        """
        for whole in self._wholes:
            for to, source in enumerate(order):
                if to != source:
                    whole[to, :, self._start : self._end] = whole[source, :, self._start : self._end]
        self._start += padding
        self._show(len(order))

    def _show(self, rows: int) -> None:
        self.keys, self.values = (whole[:rows, :, self._start : self._end] for whole in self._wholes)

    def _move(self, rows: int, length: int, spare: int) -> None:
        """Copy everything to where there is room for so many rows, and tokens before and behind the end."""

        def moved(part: torch.Tensor) -> torch.Tensor:
            kept, heads, tokens, size = part.shape
            # Zeros, as padding is multiplied by the attention's weight of zero.
            new = part.new_zeros(rows, heads, length + spare, size)
            new[:kept, :, length - tokens : length] = part
            return new

        kept, tokens = len(self.keys), self._end - self._start
        self._wholes = (moved(self.keys), moved(self.values))
        self._start, self._end = length - tokens, length
        self._show(kept)


class RowCache(Cache):  # type: ignore[misc]
    """The cache of a model that keeps nothing but keys and values; see `RoomyLayer`."""

    def __init__(self, row: Row | None = None) -> None:
        """Begin with a row, which is not changed, or with none."""
        super().__init__(layer_class_to_replicate=RoomyLayer)
        for held in row or []:
            self.layers.append(RoomyLayer())
            if held is not None:
                self.layers[-1].hold(*held)

    def row(self, at: int, tokens: int, first: int) -> Row:
        """Return the first keys and values of the row at `at`, which has so many tokens, without copying them."""

        def part(states: torch.Tensor) -> torch.Tensor:
            begin = states.shape[-2] - tokens
            return states[at : at + 1, :, begin : begin + first]

        return [(part(layer.keys), part(layer.values)) if layer.is_initialized else None for layer in self.layers]

    def join(self, other: "RowCache") -> None:
        """Add the one row of another cache."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            if layer.is_initialized:
                layer.join(new.keys, new.values)

    def keep(self, order: Sequence[int], padding: int) -> None:
        """Keep these rows, in this order, without as much padding; see `RoomyLayer.keep`."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keep(order, padding)


def only_keys_and_values(model: Any) -> bool:
    """Return whether keys and values are all that a model keeps of what it has read."""
    # Their subclasses keep more, such as the state of a convolution.
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
