"""A model of the KV for tests: each token's KV is a function of all tokens up to it, so that a wrong hit is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import xxhash

from kvchat.cache.base import CacheSettings, Filled
from kvchat.cache.block import KVLayout
from kvchat.cache.codec import DTYPES
from kvchat.cache.entry import EntryName
from kvchat.cache.prefix_cache import PrefixCache

TINY = KVLayout(((2, 3), (2, 5), (1, 4)), "float32")
BLOCK_SIZE = 4
TINY_BLOCK_BYTES = TINY.bytes_per_token * BLOCK_SIZE


def empty_arena(layout: KVLayout = TINY, capacity: int = 64) -> list[torch.Tensor]:
    """Planes [heads, capacity, dim] of NaN, so that what was not written is seen."""
    return [
        torch.full((heads, capacity, dim), torch.nan, dtype=DTYPES[layout.dtype])
        for heads, dim in layout.planes
    ]


def computed_arena(tokens: Sequence[int], layout: KVLayout = TINY, capacity: int = 64) -> list[torch.Tensor]:
    """The planes as a model would have computed them for `tokens`; exact in float32."""
    planes = empty_arena(layout, capacity)
    prefix = xxhash.xxh3_64()
    for position, token in enumerate(tokens):
        prefix.update(token.to_bytes(4, "little"))
        for number, plane in enumerate(planes):
            heads, _, dim = plane.shape
            plane[:, position] = (
                prefix.intdigest() % 2**20 + number + torch.arange(heads * dim).view(heads, dim) / 8
            )
    return planes


def is_equal(planes: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], start: int, end: int) -> bool:
    """Whether the token range [start, end) is the same in both arenas, bit by bit."""
    return all(torch.equal(a[:, start:end], b[:, start:end]) for a, b in zip(planes, expected, strict=True))


def is_untouched(planes: Sequence[torch.Tensor], start: int, end: int | None = None) -> bool:
    """Whether nothing was written into the token range [start, end) of an empty arena."""
    return all(bool(plane[:, start:end].isnan().all()) for plane in planes)


def tiny_cache(root: Path | None = None, warnings: list[str] | None = None, **changed: object) -> PrefixCache:
    """A cache of the tiny layout with roomy budgets; `changed` are fields of CacheSettings."""
    fields: dict[str, object] = {
        "ram_bytes": 2**20,
        "disk_bytes": 2**22,
        "disk_root": root,
        "block_size": BLOCK_SIZE,
        "codec": "raw",
    }
    warn = (lambda message: None) if warnings is None else warnings.append
    return PrefixCache(TINY, b"a model", CacheSettings(**(fields | changed)), warn=warn)  # type: ignore[arg-type]


def store(cache: PrefixCache, tokens: Sequence[int], *, priority: int = 0) -> None:
    """Commit the KV of all of `tokens` and wait until it is written."""
    cache.commit(tokens, computed_arena(tokens), len(tokens), priority=priority)
    assert cache.drain(20)


def load(cache: PrefixCache, tokens: Sequence[int], start: int = 0, end: int | None = None) -> Filled:
    """Load what the cache has of `tokens`, and assert that it is right and that nothing else was written."""
    planes = empty_arena()
    with cache.lease(cache.match(tokens)) as lease:
        loaded = cache.load(lease, planes, start, len(tokens) if end is None else end)
    assert is_equal(planes, computed_arena(tokens), start, loaded.end)
    assert is_untouched(planes, 0, start) and is_untouched(planes, loaded.end)
    assert sum(loaded.tokens.values()) == loaded.end - start
    return loaded


def used_bytes(cache: PrefixCache, tier: str = "ram") -> int:
    """What a tier takes now."""
    return next(use.used_bytes for use in cache.usage() if use.tier == tier)


def name_of(path: Path) -> EntryName:
    """What a stored file's name says."""
    name = EntryName.parse(path.name)
    assert name is not None
    return name


def stored_files(root: Path) -> list[Path]:
    """The runs on disk."""
    return sorted(root.glob("*/*.kv"))
