"""What KV looks like and what it is called: the layout, and the chain of hashes over token ids; knows no torch, no files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import xxhash

FORMAT_VERSION = 2
"""Of hashes and stored files: what was stored in another is not found."""
TOKEN_BYTES = 4
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_ALIGNED_BYTES = 16

HashFunction = Callable[[bytes], bytes]
"""Bytes -> 16 bytes. Equal digests are only a hint; a hit is proven by comparing tokens."""


def id_bytes(tokens: Sequence[int]) -> bytes:
    """Tokens as chains have them: int32, little-endian."""
    return struct.pack(f"<{len(tokens)}i", *tokens)


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the longest common prefix; bisected, so that equal lists cost a few comparisons."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return low


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

    @property
    def room_bytes(self) -> int:
        """Bytes that it takes in a snapshot, where each state begins at a multiple of 16."""
        return -(-self.num_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


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
        """Bytes of one token's KV over all planes, each in the widest dtype that one of them has."""
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
    """The blocks of a token sequence: their ids (int32 little-endian, from the root on) and their hashes.

    All blocks are full but the last of a chain that `is_state`. That one is a snapshot: it stands at the end of `tokens`,
    behind the full blocks, and has those ids for its own that no full block has, if any. Of a model without KV there
    are no full blocks, and it has all of them.
    """

    block_size: int
    tokens: bytes
    hashes: tuple[bytes, ...]
    is_state: bool = False

    def __len__(self) -> int:
        """Blocks, the snapshot among them."""
        return len(self.hashes)

    @property
    def num_full(self) -> int:
        """Full blocks."""
        return len(self.hashes) - self.is_state

    def num_tokens(self, num_blocks: int | None = None) -> int:
        """Tokens up to the end of the first blocks; of all without a number."""
        if num_blocks is None or num_blocks == len(self):
            return len(self.tokens) // TOKEN_BYTES
        return num_blocks * self.block_size

    def ids(self, start: int, end: int) -> bytes:
        """The ids of blocks [start, end)."""
        return self.tokens[self.num_tokens(start) * TOKEN_BYTES : self.num_tokens(end) * TOKEN_BYTES]

    def prefix(self, num_blocks: int) -> Chain:
        """The chain of the first blocks."""
        if num_blocks == len(self):
            return self
        return Chain(
            self.block_size,
            self.tokens[: self.num_tokens(num_blocks) * TOKEN_BYTES],
            self.hashes[:num_blocks],
        )

    def num_equal(self, start: int, ids: bytes, *, is_state: bool = False) -> int:
        """How many blocks from `start` on are equal to a run that has these `ids`, and may be a snapshot."""
        offset = start * self.block_size * TOKEN_BYTES
        if is_state:
            is_last = self.is_state and start == len(self) - 1
            return int(is_last and self.tokens[offset:] == ids)
        mine = self.tokens[offset : offset + len(ids)]
        return common_prefix(mine, ids) // (self.block_size * TOKEN_BYTES)


class Chains:
    """How one model's chains are made: from its `root` on. Without `has_blocks` there are snapshots alone.

    What a chain begins with as the one before did is not hashed again: a conversation grows at its end. From any thread.
    """

    def __init__(
        self, root: bytes, block_size: int, hash_function: HashFunction = xxh3_128, has_blocks: bool = True
    ) -> None:
        self.root = root
        self.block_size = block_size
        self.hash_function = hash_function
        self.has_blocks = has_blocks
        self._last = Chain(block_size, b"", ())
        self._read: tuple[list[int], bytes] = [], b""

    def blocks(self, tokens: Sequence[int]) -> Chain:
        """The full blocks of `tokens`; what is left over after the last one is dropped."""
        num_blocks = len(tokens) // self.block_size
        ids = self._bytes(list(tokens[: num_blocks * self.block_size]))
        last = self._last
        same = last.num_equal(0, ids)
        if same == num_blocks:
            return Chain(self.block_size, ids, last.hashes[:same])
        step = self.block_size * TOKEN_BYTES
        hashes = list(last.hashes[:same])
        parent = hashes[-1] if hashes else self.root
        for start in range(same * step, len(ids), step):
            parent = self.hash_function(parent + ids[start : start + step])
            hashes.append(parent)
        self._last = Chain(self.block_size, ids, tuple(hashes))
        return self._last

    def _bytes(self, tokens: list[int]) -> bytes:
        """Their `id_bytes`. Lists of the same numbers are compared in a tenth of the time that reading them takes."""
        read, ids = self._read
        same = common_prefix(read, tokens)
        ids = ids[: same * TOKEN_BYTES] + id_bytes(tokens[same:])
        self._read = tokens, ids
        return ids

    def state(self, tokens: Sequence[int]) -> Chain:
        """The full blocks of `tokens` and the snapshot behind all of them."""
        return self.state_at(self.blocks(tokens), id_bytes(tokens))

    def state_at(self, blocks: Chain, ids: bytes) -> Chain:
        """The chain of the snapshot at the end of `ids`, whose full blocks, and maybe more, are those of `blocks`."""
        num_full = len(ids) // (self.block_size * TOKEN_BYTES)
        parent = blocks.hashes[num_full - 1] if num_full else self.root
        digest = self.hash_function(parent + ids[num_full * self.block_size * TOKEN_BYTES :])
        before = blocks.hashes[:num_full] if self.has_blocks else ()
        return Chain(self.block_size, ids, (*before, digest), is_state=True)


def chain_root(layout: KVLayout, fingerprint: bytes, block_size: int, codec: str) -> bytes:
    """The root of a model's chains, and the name of its folder: 16 bytes."""
    regime = [FORMAT_VERSION, block_size, codec, layout.to_json()]
    return xxh3_128(fingerprint + json.dumps(regime, sort_keys=True).encode())
