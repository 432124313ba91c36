"""The arena as transformers sees it: one cache layer a model's layer, written in place. Knows no policy."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicIndexedLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)


class Room(Protocol):
    """What the layers look at of the arena that they lie in: what counts, and how many tokens their buffers are for."""

    tokens: list[int]
    first_held: int
    allocated: int
    grows: bool


def arena_layers(arena: Room, layers: Sequence[Any]) -> list[Any]:
    """For each layer of a fresh cache of transformers' own one over the arena; those without KV stay as they are."""
    return [_arena_layer(arena, layer) for layer in layers]


def _arena_layer(arena: Room, layer: Any) -> Any:
    if not isinstance(layer, CacheLayerMixin):
        return layer
    if isinstance(layer, DynamicIndexedLayer):
        return IndexedArenaLayer(arena, None)
    window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return HybridArenaLayer(arena, window, layer.number_of_states)
    return ArenaLayer(arena, window)


class ArenaLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of the arena, as transformers sees it: `update` writes the new keys and returns all that count."""

    is_croppable = True
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, arena: Room, window: int | None) -> None:
        CacheLayerMixin.__init__(self)
        self._pages: dict[int, mmap.mmap] = {}  # of buffers on a CPU, by address
        self.arena = arena
        self.window = window
        self.is_sliding = window is not None

    @property
    def planes(self) -> list[torch.Tensor]:
        """Its buffers without the batch, each [kv_heads, capacity, head_dim]."""
        return [self.keys[0], self.values[0]]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = (self._buffer(states) for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            ArenaLayer.lazy_initialization(self, key_states, value_states)
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

    def move(self) -> None:
        """Move to buffers of the arena's present size."""
        self.keys, self.values = self._moved(self.keys), self._moved(self.values)

    def release(self, first: int, end: int) -> None:
        """Give back the pages of the tokens [first, end), which become undefined."""
        for plane in (self.keys, self.values):
            token_bytes = plane.shape[3] * plane.element_size()
            for head in range(plane.shape[1]):
                base = head * plane.shape[2]
                _release(
                    self._pages[plane.data_ptr()], (base + first) * token_bytes, (base + end) * token_bytes
                )

    def _moved(self, old: torch.Tensor) -> torch.Tensor:
        first = 0 if self.window is None else self.arena.first_held
        held = slice(first, max(first, len(self.arena.tokens)))
        new = self._buffer(old)
        new[:, :, held] = old[:, :, held]
        self._pages.pop(old.data_ptr(), None)
        return new

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        batch, heads, _, dim = like.shape
        shape = (batch, heads, self.arena.allocated, dim)
        if self.window is None or self.arena.grows:
            return like.new_empty(shape)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared pages would not be given back
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size(), flags=flags)
        buffer = torch.frombuffer(pages, dtype=torch.uint8).view(like.dtype).view(shape)
        self._pages[buffer.data_ptr()] = pages
        return buffer

    def _first_visible(self, start: int) -> int:
        return 0 if self.window is None else max(0, start - self.window + 1)


def _release(pages: mmap.mmap, start: int, end: int) -> None:
    """Give back the whole pages of a range of bytes, where the system can."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED, start, end - start)


class IndexedArenaLayer(ArenaLayer):
    """With a third buffer, of the keys by which sparse attention chooses what to look at."""

    indexer_keys: torch.Tensor | None = None
    indexer_position_ids: torch.Tensor | None = None

    @property
    def planes(self) -> list[torch.Tensor]:
        """K, V and, where the layer chooses for itself, the indexer's keys, [1, capacity, index_head_dim]."""
        own = [] if self.indexer_keys is None else [self.indexer_keys[0]]
        return [self.keys[0], self.values[0], *own]

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Write the new keys [1, new, index_head_dim]; returns all that count."""
        new = indexer_key_states[:, None]
        if self.indexer_keys is None:
            self.indexer_keys = self._buffer(new)
        start = len(self.arena.tokens)
        end = start + new.shape[-2]
        self.indexer_keys[:, :, start:end] = new
        return self.indexer_keys[:, 0, :end]

    def move(self) -> None:
        """Move to buffers of the arena's present size."""
        super().move()
        self.indexer_keys = None if self.indexer_keys is None else self._moved(self.indexer_keys)


class HybridArenaLayer(ArenaLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """A layer with attention over the arena and a recurrent state side by side."""

    def __init__(self, arena: Room, window: int | None, number_of_states: int) -> None:
        ArenaLayer.__init__(self, arena, window)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of the recurrent state; the arena's buffers are made by `update`."""
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)
