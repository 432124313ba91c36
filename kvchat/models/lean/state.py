"""The KV of one conversation beside a lean model, in one tensor for many layers. Knows tensors alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kvchat.models.kv_state import Divisible
from kvchat.models.lean.attention import KEYS_AT_ONCE
from kvchat.models.lean.shape import LeanShape

_NUMBERS_AT_ONCE = 2**29  # of one allocation: a larger one may be refused where several are not


class LeanState(Divisible):
    """The arena of one conversation: K and V of every layer, each [kv_heads, capacity, head_dim].

    The whole context is reserved at once, and some more, so that products never have to be smaller at its end: pages
    that are never touched cost nothing. Some layers lie in one tensor [layers, 2 kv_heads, room, head_dim], K before V,
    so that one call makes the views of all of them.
    """

    def __init__(self, shape: LeanShape, capacity: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.capacity = capacity
        room = (-(-capacity // KEYS_AT_ONCE) + 1) * KEYS_AT_ONCE
        layer = 2 * shape.kv_heads * room * shape.head_dim
        at_once = max(1, _NUMBERS_AT_ONCE // layer)
        self._kv_heads = shape.kv_heads
        self._finite = 0
        self._arenas = [
            torch.empty(
                (min(at_once, shape.layers - first), 2 * shape.kv_heads, room, shape.head_dim),
                dtype=dtype,
            )
            for first in range(0, shape.layers, at_once)
        ]
        self.planes = self._planes()

    def _planes(self) -> list[torch.Tensor]:
        layers = [layer for arena in self._arenas for layer in arena]
        return [plane for layer in layers for plane in layer.split(self._kv_heads)]

    def views(
        self, start: int, end: int, reach: int, *, is_flat: bool = False
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """For each layer where K and V of the tokens from `start` to `end` go, [new, 2 kv_heads, head_dim], and the K
        and the V of `reach` tokens, each [1, kv_heads, reach, head_dim], or if `is_flat` without the 1."""
        own, kv_heads = max(end, self._finite), self._kv_heads
        for arena in self._arenas:
            if own < reach:
                arena[:, :, own:reach].zero_()  # whatever lay there, it may be no number
            written = arena[:, :, start:end].transpose(1, 2).unbind(0)
            held = arena[:, :, :reach] if is_flat else arena[:, None, :, :reach]
            keys, values = held[..., :kv_heads, :, :].unbind(0), held[..., kv_heads:, :, :].unbind(0)
            yield from zip(written, keys, values, strict=True)
        self._finite = max(self._finite, reach)

    def reserve(self, num_tokens: int) -> None:
        """There is room for the whole context already."""
        assert num_tokens <= self.capacity, f"{num_tokens} tokens in an arena of {self.capacity}"

    def shrink(self) -> None:
        """Give back the pages that longer conversations have touched."""
        held = self._finite = len(self.tokens)
        for index, arena in enumerate(self._arenas):
            self._arenas[index] = torch.empty_like(arena)
            self._arenas[index][:, :, :held] = arena[:, :, :held]
        self.planes = self._planes()
