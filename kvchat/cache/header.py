"""The checked header of a stored file, and its blocks as they lie there; knows no folder, no budget.

    magic 8 | version u32 | header_bytes u32 | header_checksum u64      the preamble, little-endian
    facts_bytes u32 | facts (JSON) | token ids | sizes u32 | checksums u64     the rest of the header
    blocks, one after the other, each of its size                        the payload

Of version 2 blocks lie there as they are, of version 3 packed (see `packing`). Checksums are xxh3_64, of what lies there.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import xxhash

from kvchat.cache.block import FORMAT_VERSION, TOKEN_BYTES, Chain
from kvchat.cache.entry import MAX_FACT, STATE_CODEC, EntryError, EntryName, FolderMeta, key_of

MAGIC = b"kvchatKV"
PACKED_VERSION = FORMAT_VERSION + 1
"""Of a file with packed blocks, which earlier versions of kvchat leave alone."""

_PREAMBLE = struct.Struct("<8sIIQ")
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 256 * 2**20
_MOST_HEADERS = 4096  # bytes, which most headers fit into


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header: the run's own ids from token `start` on, and of each block its size at rest and its checksum.

    `block_bytes` is the size of one block as the codec made it, before it was packed.
    """

    root: str
    parent: str
    start: int
    block_size: int
    block_bytes: int
    codec: str
    tokens: bytes
    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    payload_offset: int
    is_packed: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks of the run."""
        return len(self.sizes)

    @property
    def file_bytes(self) -> int:
        """The size that the whole file must have."""
        return self.payload_offset + sum(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each block begins in the file, and where the last one ends."""
        return tuple(accumulate(self.sizes, initial=self.payload_offset))

    def check(self, name: EntryName, root: str, meta: FolderMeta | None = None) -> None:
        """Raise EntryError unless this header belongs to that name in that folder."""
        mine = self.parent, self.start, len(self.tokens) // TOKEN_BYTES
        key = key_of(self.parent, self.start, self.tokens, is_state=name.is_state)
        is_named = (key, *mine) == (name.key, name.parent, name.start, name.num_tokens)
        if not is_named or self.root != root or (self.codec == STATE_CODEC) != name.is_state:
            raise EntryError("it belongs elsewhere")
        if meta is None:
            return
        block_bytes = meta.snapshot_bytes if name.is_state else meta.block_bytes
        codec = STATE_CODEC if name.is_state else meta.codec
        is_shaped = (self.block_size, self.block_bytes, self.codec) == (meta.block_size, block_bytes, codec)
        is_sized = codec in ("raw", STATE_CODEC) if self.is_packed else set(self.sizes) == {block_bytes}
        if not is_shaped or not is_sized:
            raise EntryError("it belongs elsewhere")


def checksum(block: memoryview) -> int:
    """The checksum of one block's bytes."""
    return xxhash.xxh3_64_intdigest(block)


def pack_header(
    root: str,
    name: EntryName,
    chain: Chain,
    meta: FolderMeta,
    blocks: Sequence[memoryview],
    *,
    is_packed: bool = False,
) -> bytes:
    """The header of the file with a chain's last `blocks`."""
    facts = {
        "root": root,
        "parent": name.parent,
        "start": name.start,
        "num_tokens": name.num_tokens,
        "num_blocks": len(blocks),
        "block_size": meta.block_size,
        "block_bytes": meta.snapshot_bytes if name.is_state else meta.block_bytes,
        "codec": STATE_CODEC if name.is_state else meta.codec,
    }
    text = json.dumps(facts).encode()
    sizes = struct.pack(f"<{len(blocks)}I", *(block.nbytes for block in blocks))
    checksums = struct.pack(f"<{len(blocks)}Q", *(checksum(block) for block in blocks))
    ids = chain.ids(len(chain) - len(blocks), len(chain))
    body = _LENGTH.pack(len(text)) + text + ids + sizes + checksums
    size = _PREAMBLE.size + len(body)
    version = PACKED_VERSION if is_packed else FORMAT_VERSION
    return _PREAMBLE.pack(MAGIC, version, size, xxhash.xxh3_64_intdigest(body)) + body


def read_header(descriptor: int) -> Header:
    """The header of an open file, with all that can be checked without the payload. Raises EntryError, OSError."""
    begin = os.pread(descriptor, _MOST_HEADERS, 0)
    if len(begin) < _PREAMBLE.size:
        raise EntryError("it is truncated")
    magic, version, header_bytes, expected = _PREAMBLE.unpack_from(begin)
    if magic != MAGIC:
        raise EntryError("it is not a file of this cache")
    if version not in (FORMAT_VERSION, PACKED_VERSION):
        raise EntryError(f"its format {version} is not known", is_kept=True)
    file_bytes = os.fstat(descriptor).st_size
    if not _PREAMBLE.size < header_bytes <= min(file_bytes, _MAX_HEADER_BYTES):
        raise EntryError("it is truncated")
    if len(begin) < header_bytes:
        begin += os.pread(descriptor, header_bytes - len(begin), len(begin))
    body = begin[_PREAMBLE.size : header_bytes]
    if xxhash.xxh3_64_intdigest(body) != expected:
        raise EntryError("its header's checksum is wrong")
    header = _unpack_body(body, header_bytes, is_packed=version == PACKED_VERSION)
    if header.file_bytes != file_bytes:
        raise EntryError("it is truncated")
    return header


def read_blocks(descriptor: int, header: Header, first: int, into: memoryview) -> list[memoryview]:
    """Fill a buffer with an open file's blocks from `first` on, as they lie there, and verify them; returns each.

    Raises EntryError, OSError.
    """
    at, offset = 0, header.offsets[first]
    while at < into.nbytes:
        num_bytes = os.preadv(descriptor, [into[at:]], offset + at)
        if num_bytes == 0:
            raise EntryError("it is truncated")
        at += num_bytes
    blocks: list[memoryview] = []
    at = 0
    while at < into.nbytes:
        number = first + len(blocks)
        blocks.append(into[at : at + header.sizes[number]])
        if checksum(blocks[-1]) != header.checksums[number]:
            raise EntryError("a block's checksum is wrong")
        at += header.sizes[number]
    return blocks


def _unpack_body(body: bytes, header_bytes: int, *, is_packed: bool) -> Header:
    try:
        (length,) = _LENGTH.unpack_from(body)
        facts = _facts(json.loads(body[_LENGTH.size : _LENGTH.size + length].decode()))
        tokens_at = _LENGTH.size + length
        sizes_at = tokens_at + facts["num_tokens"] * TOKEN_BYTES
        checksums_at = sizes_at + facts["num_blocks"] * 4
        header = Header(
            root=facts["root"],
            parent=facts["parent"],
            start=facts["start"],
            block_size=facts["block_size"],
            block_bytes=facts["block_bytes"],
            codec=facts["codec"],
            tokens=body[tokens_at:sizes_at],
            sizes=struct.unpack(f"<{facts['num_blocks']}I", body[sizes_at:checksums_at]),
            checksums=struct.unpack(f"<{facts['num_blocks']}Q", body[checksums_at:]),
            payload_offset=header_bytes,
            is_packed=is_packed,
        )
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise EntryError("its header can't be read") from error
    is_state = header.codec == STATE_CODEC
    num_full = 0 if is_state else facts["num_blocks"]
    is_measured = is_state or facts["num_tokens"] == num_full * header.block_size
    counts = {len(header.checksums), len(header.sizes), 1 if is_state else num_full}
    is_long = len(header.tokens) == facts["num_tokens"] * TOKEN_BYTES
    if len(counts) > 1 or 0 in counts or not (is_measured and is_long):
        raise EntryError("its header contradicts itself")
    return header


def _facts(value: dict[str, Any]) -> dict[str, Any]:
    """A header's facts, each of the right kind. Raises KeyError, TypeError or ValueError for others."""
    for key in ("root", "parent", "codec"):
        if type(value[key]) is not str:
            raise TypeError(key)
    for key in ("start", "num_tokens", "num_blocks", "block_bytes", "block_size"):
        if type(value[key]) is not int or not 0 <= value[key] <= MAX_FACT:
            raise ValueError(key)
    return value
