"""What a chain's blocks are in bytes: full ones by the codec, a snapshot always exact; copies, and keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch

from kvchat.cache.base import Stored
from kvchat.cache.block import Chain, KVLayout
from kvchat.cache.codec import DTYPES, make_codec


class Arena(NamedTuple):
    """What a model holds: `planes` [heads, capacity, dim], one a K and one a V of each layer, and the recurrent layers' `states`."""

    planes: Sequence[torch.Tensor]
    states: Sequence[torch.Tensor]


class Encoding:
    """The bytes of one model's blocks and snapshots."""

    def __init__(self, layout: KVLayout, codec: str, block_size: int) -> None:
        self._codec = make_codec(codec, layout, block_size)
        self._states = SnapshotCodec(layout, block_size)
        self._block_size = block_size
        self.block_bytes = self._codec.block_bytes
        """Bytes of one full block."""
        self.state_bytes = self._states.num_bytes
        """Bytes of a snapshot; 0 for a model that needs none."""

    def num_bytes(self, chain: Chain, start: int, end: int) -> int:
        """Bytes of a chain's blocks [start, end), the snapshot among them."""
        num_states = int(end > chain.num_full)
        return (end - start - num_states) * self.block_bytes + num_states * self.state_bytes

    def encode(self, arena: Arena, chain: Chain, start: int, data: np.ndarray[Any, Any]) -> None:
        """Fill a buffer with full blocks from `start` on as they lie in the arena, or with the snapshot."""
        buffer = torch.from_numpy(data)
        if start < chain.num_full:
            self._codec.encode(arena.planes, chain.num_tokens(start), buffer)
        else:
            self._states.encode(arena, self.rest(chain), buffer)

    def decode(self, stored: Stored, arena: Arena, start: int, end: int) -> int:
        """Write the tokens [start, end) into the arena, as far as they are in some full blocks; returns up to where."""
        base = stored.start * self._block_size
        end = min(end, stored.end * self._block_size)
        buffer = torch.from_numpy(stored.data)
        self._codec.decode(buffer, arena.planes, start, first=start - base, end=end - base)
        return end

    def decode_state(self, stored: Stored, arena: Arena, chain: Chain) -> None:
        """Write a chain's snapshot into the states, and into the arena behind the last full block."""
        self._states.decode(arena, self.rest(chain), torch.from_numpy(stored.data))

    def rest(self, chain: Chain) -> range:
        """The tokens behind the last full block that a snapshot holds the KV of."""
        num_tokens = chain.num_tokens()
        return range(num_tokens // self._block_size * self._block_size, num_tokens)


class SnapshotCodec:
    """A recurrent state byte by byte, and the KV of the tokens behind the last full block, always exact.

    First the states in the layout's order, each at a multiple of 16 bytes; then each plane as [heads, rest, dim] with
    room for one token less than a block.
    """

    def __init__(self, layout: KVLayout, block_size: int) -> None:
        self._layout = layout
        self._room = block_size - 1
        *self._offsets, self._rest_offset = accumulate((each.room_bytes for each in layout.states), initial=0)
        self.num_bytes = self._rest_offset + layout.bytes_per_token * self._room if layout.states else 0

    def encode(self, arena: Arena, rest: range, buffer: torch.Tensor) -> None:
        """Fill a buffer, uint8 [num_bytes], with the states and the arena's tokens `rest`."""
        buffer[self._rest_offset :] = 0
        for place, state in zip(self._states(buffer), arena.states, strict=True):
            place.copy_(state)
        for place, plane in zip(self._rests(buffer), arena.planes, strict=True):
            place[:, : len(rest)].copy_(plane[:, rest.start : rest.stop])

    def decode(self, arena: Arena, rest: range, buffer: torch.Tensor) -> None:
        """Write what `encode` filled into a buffer back into the states and the arena."""
        for place, state in zip(self._states(buffer), arena.states, strict=True):
            state.copy_(place)
        for place, plane in zip(self._rests(buffer), arena.planes, strict=True):
            plane[:, rest.start : rest.stop].copy_(place[:, : len(rest)])

    def _states(self, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
        for offset, state in zip(self._offsets, self._layout.states, strict=True):
            yield buffer[offset : offset + state.num_bytes].view(DTYPES[state.dtype]).view(state.shape)

    def _rests(self, buffer: torch.Tensor) -> Iterator[torch.Tensor]:
        dtype = DTYPES[self._layout.dtype]
        values = buffer[self._rest_offset :].view(dtype)
        offset = 0
        for heads, dim in self._layout.planes:
            size = heads * self._room * dim
            yield values[offset : offset + size].view(heads, self._room, dim)
            offset += size
