"""The live conversation's KV and what tokens it belongs to; the only importer of transformers' cache classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicSlidingWindowLayer

GROWTH_TOKENS = 4096
"""How far the arena grows at a time where memory can't be reserved without being used (on a GPU)."""


class KVState(Protocol):
    """What the engine keeps between turns: the model's state after exactly `tokens`."""

    tokens: list[int]
    """The token ids whose state is held, in order. The state never says more than it holds."""

    @property
    def cache(self) -> Cache:
        """What goes into a forward as `past_key_values`."""

    @property
    def planes(self) -> list[torch.Tensor]:
        """K and V of each layer that has them, each [kv_heads, capacity, head_dim]; empty where KV can't be cut."""

    @property
    def is_divisible(self) -> bool:
        """Whether a prompt may be computed in several forwards, and a prefix of it kept."""

    def keep(self, num_tokens: int) -> int:
        """Forget all but the first `num_tokens`; returns how many could really be kept."""

    def advance(self, tokens: Sequence[int]) -> None:
        """A forward over `tokens` went through: their state is held from now on."""

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all. Raises torch.OutOfMemoryError or RuntimeError."""


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix, in tokens; bisected, so that equal lists cost a few comparisons."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low


class Arena:
    """One contiguous K and V buffer a layer, [1, kv_heads, capacity, head_dim], written in place.

    A forward writes behind `tokens`; only `advance` makes what it wrote count, so that an exception in the middle of
    a forward leaves the KV of exactly `tokens`. On a CPU the whole capacity is reserved at the first forward: pages
    that are never touched cost nothing. Sliding layers keep their whole history and show the model its window.
    """

    def __init__(self, config: Any, *, capacity: int, device: torch.device) -> None:
        self.tokens: list[int] = []
        self.capacity = capacity
        self.allocated = capacity if device.type == "cpu" else 0
        self._cache = Cache(
            layers=[_arena_layer(self, layer) for layer in DynamicCache(config=config).layers]
        )

    @property
    def cache(self) -> Cache:
        return self._cache

    @property
    def is_divisible(self) -> bool:
        return True

    @property
    def planes(self) -> list[torch.Tensor]:
        layers = [
            layer for layer in self._cache.layers if isinstance(layer, ArenaLayer) and layer.is_initialized
        ]
        return [plane[0] for layer in layers for plane in (layer.keys, layer.values)]

    def keep(self, num_tokens: int) -> int:
        del self.tokens[num_tokens:]
        return len(self.tokens)

    def advance(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    def reserve(self, num_tokens: int) -> None:
        assert num_tokens <= self.capacity, f"{num_tokens} tokens in an arena of {self.capacity}"
        if num_tokens <= self.allocated:
            return
        steps = -(-num_tokens // GROWTH_TOKENS)
        self.allocated = min(self.capacity, steps * GROWTH_TOKENS)
        for layer in self._cache.layers:
            if isinstance(layer, ArenaLayer) and layer.is_initialized:
                layer.grow()


class ArenaLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of the arena, as transformers sees it: `update` writes the new keys and returns all that count."""

    is_croppable = True
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, arena: Arena, window: int | None) -> None:
        super().__init__()
        self.arena = arena
        self.window = window
        self.is_sliding = window is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (self._buffer(states) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = len(self.arena.tokens)
        end = start + key_states.shape[-2]
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        first = self._first_visible(start)
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        start = len(self.arena.tokens)
        first = self._first_visible(start)
        return start + query_length - first, first

    def get_seq_length(self) -> int:
        return len(self.arena.tokens)

    def get_max_length(self) -> int:
        return -1

    def grow(self) -> None:
        """Move to buffers of the arena's present size."""
        held = len(self.arena.tokens)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._buffer(old)
            new[:, :, :held] = old[:, :, :held]
            setattr(self, name, new)

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = like.shape
        return like.new_empty(batch, heads, self.arena.allocated, dim)

    def _first_visible(self, start: int) -> int:
        return 0 if self.window is None else max(0, start - self.window + 1)


class Recomputed:
    """The state of a model whose cache can't be cut back: every prompt is computed anew, in one forward."""

    def __init__(self, config: Any) -> None:
        self.tokens: list[int] = []
        self._config = config
        self._cache = DynamicCache(config=config)

    @property
    def cache(self) -> Cache:
        return self._cache

    @property
    def is_divisible(self) -> bool:
        return False

    @property
    def planes(self) -> list[torch.Tensor]:
        return []

    def keep(self, num_tokens: int) -> int:
        self.tokens.clear()
        self._cache = DynamicCache(config=self._config)
        return 0

    def advance(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    def reserve(self, num_tokens: int) -> None:
        """Grows by itself."""


def _arena_layer(arena: Arena, layer: Any) -> Any:
    if not isinstance(layer, CacheLayerMixin):
        return layer  # a layer without KV of its own
    window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
    return ArenaLayer(arena, window)
