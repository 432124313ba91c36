"""Blocks and snapshots by name: the KV layout, the hash chain over token ids, points on it; knows no torch, no files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
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
class StateShape:
    """One tensor of a recurrent layer's state; `dtype` is a key of ELEMENT_BYTES."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shapes of one token's KV: (heads, dim) of each K and V plane, in the order k0, v0, k1, v1, ...

    Layers without KV have no planes; K and V of a layer may differ. `dtype` is a key of ELEMENT_BYTES. `states` are
    the tensors of recurrent layers, whose size knows no length: with any of them only snapshots can be taken up again.
    """

    planes: tuple[tuple[int, int], ...]
    dtype: str
    states: tuple[StateShape, ...] = ()

    def __post_init__(self) -> None:
        assert (self.planes or self.states) and self.dtype in ELEMENT_BYTES, self
        assert all(state.dtype in ELEMENT_BYTES for state in self.states), self

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's KV over all planes, as it lies in the arena."""
        return sum(heads * dim for heads, dim in self.planes) * ELEMENT_BYTES[self.dtype]

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent states, whatever the length."""
        return sum(state.num_bytes for state in self.states)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form; `from_json` reads it back."""
        states = (
            {"states": [[list(state.shape), state.dtype] for state in self.states]} if self.states else {}
        )
        return {"planes": [list(plane) for plane in self.planes], "dtype": self.dtype, **states}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KVLayout:
        """The layout that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        planes = tuple((int(heads), int(dim)) for heads, dim in value["planes"])
        states = tuple(
            StateShape(tuple(int(size) for size in shape), dtype) for shape, dtype in value.get("states", ())
        )
        dtypes = {value["dtype"], *(state.dtype for state in states)}
        if not (planes or states) or not dtypes <= ELEMENT_BYTES.keys():
            raise ValueError(f"no KV layout: {value!r}")
        return cls(planes, value["dtype"], states)


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


@dataclass(frozen=True, slots=True)
class Point:
    """A position in a token sequence, where a snapshot may be kept: behind the full blocks of `chain` and `rest`.

    `rest` are the ids, as bytes, of fewer tokens than a block; `digest` names all ids up to here.
    """

    chain: Chain
    rest: bytes
    digest: bytes

    @property
    def tokens(self) -> bytes:
        """All ids up to here."""
        return self.chain.tokens + self.rest

    @property
    def num_tokens(self) -> int:
        """Tokens up to here."""
        return len(self.chain) * self.chain.block_size + len(self.rest) // TOKEN_BYTES

    def linked(self) -> Chain:
        """The full blocks and, behind them, the rest as one more, shorter than any block of KV."""
        return Chain(self.chain.block_size, self.tokens, (*self.chain.hashes, self.digest))

    def alone(self) -> Chain:
        """All ids as one block: for a model without KV, where there are no blocks to hang from."""
        return Chain(max(1, self.num_tokens), self.tokens, (self.digest,))


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


def point_at(
    tokens: Sequence[int], block_size: int, root: bytes, hash_function: HashFunction = xxh3_128
) -> Point:
    """The point behind all of `tokens`."""
    chain = hash_chain(tokens, block_size, root, hash_function)
    rest = np.asarray(tokens[len(chain) * block_size :], dtype="<i4").tobytes()
    return Point(chain, rest, hash_function((chain.hashes[-1] if len(chain) else root) + rest))
