"""A model of the KV for tests: each token's KV is a function of all tokens up to it, so that a wrong hit is seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xxhash

from kvchat.cache.block import KVLayout
from kvchat.cache.codec import DTYPES

TINY = KVLayout(((2, 3), (2, 5), (1, 4)), "float32")


def empty_arena(layout: KVLayout = TINY, capacity: int = 64) -> list[torch.Tensor]:
    """Planes [heads, capacity, dim] of NaN, so that what was not written is seen."""
    return [
        torch.full((heads, capacity, dim), torch.nan, dtype=DTYPES[layout.dtype])
        for heads, dim in layout.planes
    ]


def computed_arena(tokens: Sequence[int], layout: KVLayout = TINY, capacity: int = 64) -> list[torch.Tensor]:
    """The planes as a model would have computed them for `tokens`."""
    planes = empty_arena(layout, capacity)
    prefix = xxhash.xxh3_64()
    for position, token in enumerate(tokens):
        prefix.update(token.to_bytes(4, "little"))
        for plane in planes:
            generator = torch.Generator().manual_seed(prefix.intdigest() % 2**62)
            plane[:, position] = torch.randn(plane[:, position].shape, generator=generator).to(plane.dtype)
    return planes


def is_equal(planes: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], start: int, end: int) -> bool:
    """Whether the token range [start, end) is the same in both arenas, bit by bit."""
    return all(torch.equal(a[:, start:end], b[:, start:end]) for a, b in zip(planes, expected, strict=True))
