"""Blocks by name: the KV layout and the hash chain over token ids; knows no torch, no files and no text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

DIGEST_BYTES = 16
TOKEN_BYTES = 4
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

HashFunction = Callable[[bytes], bytes]
"""Bytes -> 16 bytes. Equal digests are only a hint; a hit is proven by comparing tokens."""


def xxh3_128(data: bytes) -> bytes:
    """The 16-byte xxh3_128 digest, the same in every process and on every machine."""
    return xxhash.xxh3_128_digest(data)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shapes of one token's KV: (heads, dim) of each K and V plane, in the order k0, v0, k1, v1, ...

    Layers without KV have no planes; K and V of a layer may differ. `dtype` is a key of ELEMENT_BYTES.
    """

    planes: tuple[tuple[int, int], ...]
    dtype: str

    def __post_init__(self) -> None:
        assert self.planes and self.dtype in ELEMENT_BYTES, self

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's KV over all planes, as it lies in the arena."""
        return sum(heads * dim for heads, dim in self.planes) * ELEMENT_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form; `from_json` reads it back."""
        return {"planes": [list(plane) for plane in self.planes], "dtype": self.dtype}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KVLayout:
        """The layout that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        planes = tuple((int(heads), int(dim)) for heads, dim in value["planes"])
        if not planes or value["dtype"] not in ELEMENT_BYTES:
            raise ValueError(f"no KV layout: {value!r}")
        return cls(planes, value["dtype"])


@dataclass(frozen=True, slots=True)
class Chain:
    """The full blocks of a token sequence: their ids (int32 little-endian, from the root on) and their hashes."""

    block_size: int
    tokens: bytes
    hashes: tuple[bytes, ...]

    def __len__(self) -> int:
        """Full blocks."""
        return len(self.hashes)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block's token ids."""
        return self.block_size * TOKEN_BYTES

    def block_tokens(self, index: int) -> bytes:
        """The ids of one block."""
        return self.tokens[index * self.bytes_per_block : (index + 1) * self.bytes_per_block]

    def prefix(self, num_blocks: int) -> Chain:
        """The chain of the first blocks."""
        return Chain(
            self.block_size, self.tokens[: num_blocks * self.bytes_per_block], self.hashes[:num_blocks]
        )

    def num_common_blocks(self, tokens: bytes) -> int:
        """How many blocks from the root on are equal to `tokens`, ids as bytes."""
        mine = self.tokens
        size = min(len(mine), len(tokens))
        if mine.startswith(tokens) if len(tokens) < len(mine) else tokens.startswith(mine):
            return size // self.bytes_per_block
        ids, others = (np.frombuffer(each, "<i4", size // TOKEN_BYTES) for each in (mine, tokens))
        return int(np.argmax(ids != others)) // self.block_size


class RecentDigests:
    """A bounded set of digests that forgets the one added longest ago."""

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digest: bytes) -> None:
        """Remember a digest, the latest."""
        self._digests[digest] = None
        self._digests.move_to_end(digest)
        if len(self._digests) > self._limit:
            self._digests.popitem(last=False)


def block_hashes(
    tokens: Sequence[int], block_size: int, root: bytes, hash_function: HashFunction = xxh3_128
) -> list[bytes]:
    """The digests of the full blocks of `tokens`: each over its parent's digest and its own ids."""
    return list(hash_chain(tokens, block_size, root, hash_function).hashes)


def hash_chain(
    tokens: Sequence[int], block_size: int, root: bytes, hash_function: HashFunction = xxh3_128
) -> Chain:
    """The full blocks of `tokens`, hashed from `root` on; what is left over after the last full block is dropped."""
    num_blocks = len(tokens) // block_size
    ids = np.asarray(tokens[: num_blocks * block_size], dtype="<i4").tobytes()
    step = block_size * TOKEN_BYTES
    hashes: list[bytes] = []
    parent = root
    for start in range(0, len(ids), step):
        parent = hash_function(parent + ids[start : start + step])
        hashes.append(parent)
    return Chain(block_size, ids, tuple(hashes))
