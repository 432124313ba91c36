"""The live KV of transformers' models; with its layers the only importer of transformers' cache classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from kvchat.models.kv_state import Divisible
from kvchat.models.stock.arena_layers import ArenaLayer, arena_layers

GROWTH_TOKENS = 4096
"""How far the arena grows at a time where memory can't be reserved without being used (on a GPU)."""

MARGIN_TOKENS = 1024
"""How much more than their window sliding layers hold, for what is cut back: a retry, an edit of what was said last."""


class Arena(Divisible):
    """One contiguous K and V buffer a layer, [1, kv_heads, capacity, head_dim], written in place.

    A forward writes behind `tokens`; only `advance` makes what it wrote count, so that an exception in the middle of
    a forward leaves the KV of exactly `tokens`. On a CPU the whole capacity is reserved at the first forward: pages
    that are never touched cost nothing. Sliding layers show the model its window; on a CPU `release` gives the pages
    back that are older than it and a margin, so that cutting back a little needs nothing, and further the cache.
    """

    def __init__(self, config: Any, *, capacity: int, device: torch.device) -> None:
        super().__init__()
        self.capacity = capacity
        self.grows = device.type != "cpu"
        self.allocated = 0 if self.grows else capacity
        self._cache = Cache(layers=arena_layers(self, DynamicCache(config=config).layers))
        windows = [layer.window for layer in self._cache.layers if isinstance(layer, ArenaLayer)]
        self._window = max((window for window in windows if window is not None), default=0)

    @property
    def cache(self) -> Cache:
        return self._cache

    @property
    def planes(self) -> list[torch.Tensor]:
        return [plane for layer in self.layers for plane in layer.planes]

    @property
    def layers(self) -> list[ArenaLayer]:
        """The layers with buffers; they have them from the first forward on."""
        return [
            layer for layer in self._cache.layers if isinstance(layer, ArenaLayer) and layer.is_initialized
        ]

    def keepable(self, num_tokens: int) -> int:
        length = min(num_tokens, len(self.tokens))
        return length if self.is_whole(length) else 0

    def keep(self, num_tokens: int) -> int:
        return super().keep(self.keepable(num_tokens))

    def is_whole(self, num_tokens: int) -> bool:
        """Whether sliding layers still hold the window behind the first `num_tokens`."""
        return self.first_held <= self._first_needed(num_tokens)

    def missing(self, shared: int, end: int) -> int:
        is_there = min(shared, end)
        return is_there if self.is_whole(end) else min(is_there, self._first_needed(end))

    @property
    def excess(self) -> int:
        if self.grows or not self._window:
            return 0
        return max(0, len(self.tokens) - self._window - MARGIN_TOKENS - self.first_held)

    def release(self) -> None:
        if not self.excess:  # on a GPU always
            return
        end = self.first_held + self.excess
        for layer in self.layers:
            if layer.window is not None:
                layer.release(self.first_held, end)
        self.first_held = end

    def _first_needed(self, num_tokens: int) -> int:
        return max(0, num_tokens - self._window + 1) if self._window else num_tokens

    def reserve(self, num_tokens: int) -> None:
        assert num_tokens <= self.capacity, f"{num_tokens} tokens in an arena of {self.capacity}"
        if num_tokens <= self.allocated:
            return
        before, self.allocated = self.allocated, self._size(num_tokens)
        try:
            for layer in self.layers:
                layer.move()
        except BaseException:
            self.allocated = before  # the layers that have moved have more, which does no harm
            raise

    def shrink(self) -> None:
        if self.grows:
            self.allocated = self._size(len(self.tokens))
        for layer in self.layers:
            layer.move()

    def _size(self, num_tokens: int) -> int:
        """How much is allocated for so many tokens."""
        return min(self.capacity, -(-num_tokens // GROWTH_TOKENS) * GROWTH_TOKENS)


class Recomputed:
    """The state of a model whose cache can't be cut back: every prompt is computed anew, in one forward."""

    def __init__(self, config: Any) -> None:
        self.tokens: list[int] = []
        self.first_held = 0
        self._config = config
        self._cache: Cache | None = None  # made for the models that can be continued

    @property
    def cache(self) -> Cache:
        if self._cache is None:
            self._cache = DynamicCache(config=self._config)
        return self._cache

    @property
    def is_divisible(self) -> bool:
        return False

    @property
    def planes(self) -> list[torch.Tensor]:
        return []

    @property
    def states(self) -> list[torch.Tensor]:
        return []

    @property
    def taken(self) -> Mapping[int, list[torch.Tensor]]:
        return {}

    def keepable(self, num_tokens: int) -> int:
        return 0

    def keep(self, num_tokens: int) -> int:
        self.tokens.clear()
        self._cache = None
        return 0

    def advance(self, tokens: Sequence[int], *, first_held: int | None = None) -> None:
        self.tokens.extend(tokens)

    def take(self) -> None:
        """There is no way back."""

    def drop(self, length: int) -> None:
        """There is none."""

    def lose(self) -> None:
        self.keep(0)

    def reserve(self, num_tokens: int) -> None:
        """Grows by itself."""

    def shrink(self) -> None:
        """There is nothing more than what is held."""

    def missing(self, shared: int, end: int) -> int:
        return 0

    @property
    def excess(self) -> int:
        return 0

    def release(self) -> None:
        """It holds what transformers holds."""
