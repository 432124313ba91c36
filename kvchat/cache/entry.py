"""One file of the disk tier: its name, its checked header and its payload's layout; knows no folder, no budget.

A file is a run of blocks (`.kv`) or a snapshot (`.state`), which counts as one block behind those it continues.

    magic 8 | version u32 | header_bytes u32 | header_checksum u64      the preamble, little-endian
    facts_bytes u32 | facts (JSON) | token ids | block checksums u64     the rest of the header
    blocks, num_blocks * block_bytes                                     the payload

The token ids are all of them, from the root to the run's end: the file proves by itself which prefix it continues.
Names carry the chain, so that a folder's listing is its index. Checksums are xxh3_64.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from kvchat.cache.block import TOKEN_BYTES, Chain, KVLayout, Point

FORMAT_VERSION = 1
MAGIC = b"kvchatKV"
SUFFIX = ".kv"
SNAPSHOT_SUFFIX = ".state"
SNAPSHOT_CODEC = "snapshot"
"""What stands in a snapshot's header for its encoding: it is always exact."""
NO_PARENT = "0" * 32

_PREAMBLE = struct.Struct("<8sIIQ")
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 256 * 2**20
_MAX_FACT = 2**40
_NAME = re.compile(
    r"([0-9a-f]{32})-([0-9a-f]{32})-([0-9a-f]{32})-([0-9a-f]{32})-(\d+)-(\d+)-(-?\d+)(\.kv|\.state)"
)


class EntryError(Exception):
    """A stored file can't be used; `is_kept` when it is not ours to delete, or a later version's."""

    def __init__(self, reason: str, *, is_kept: bool = False) -> None:
        super().__init__(reason)
        self.is_kept = is_kept


@dataclass(frozen=True, slots=True)
class EntryName:
    """What a file's name says: blocks [start, end) of a chain whose block hashes are `first` to `last`.

    `key` names the content, `parent` the key of the file with the block before `start`; both and the hashes in hex.
    """

    key: str
    parent: str
    first: str
    last: str
    start: int
    num_blocks: int
    priority: int
    is_snapshot: bool = False

    @property
    def end(self) -> int:
        """The first block after this file's."""
        return self.start + self.num_blocks

    def __str__(self) -> str:
        chain = f"{self.key}-{self.parent}-{self.first}-{self.last}"
        suffix = SNAPSHOT_SUFFIX if self.is_snapshot else SUFFIX
        return f"{chain}-{self.start}-{self.num_blocks}-{self.priority}{suffix}"

    @classmethod
    def parse(cls, text: str) -> EntryName | None:
        """The name, or None when `text` is not one."""
        found = _NAME.fullmatch(text)
        if found is None or len(text) > 255:
            return None
        key, parent, first, last, *numbers, suffix = found.groups()
        start, num_blocks, priority = (int(number) for number in numbers)
        return cls(key, parent, first, last, start, num_blocks, priority, suffix == SNAPSHOT_SUFFIX)

    @classmethod
    def of(cls, chain: Chain, start: int, parent: str, priority: int) -> EntryName:
        """The name of the file with a chain's blocks from `start` to its end."""
        key = xxhash.xxh3_128_hexdigest(_LENGTH.pack(start) + chain.tokens)
        first, last = chain.hashes[start].hex(), chain.hashes[-1].hex()
        return cls(key, parent, first, last, start, len(chain) - start, priority)

    @classmethod
    def of_snapshot(cls, point: Point, parent: str, priority: int) -> EntryName:
        """The name of the file with the snapshot at a point."""
        key = xxhash.xxh3_128_hexdigest(SNAPSHOT_SUFFIX.encode() + point.tokens)
        digest = point.digest.hex()
        return cls(key, parent, digest, digest, len(point.chain), 1, priority, is_snapshot=True)


@dataclass(frozen=True, slots=True)
class FolderMeta:
    """What all files of one fingerprint's folder share. `described` is free text about the model, by key."""

    layout: KVLayout
    codec: str
    block_size: int
    block_bytes: int
    snapshot_bytes: int = 0
    described: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form; `from_json` reads it back."""
        sizes = {"block_size": self.block_size, "block_bytes": self.block_bytes}
        if self.snapshot_bytes:
            sizes["snapshot_bytes"] = self.snapshot_bytes
        shared = {"format": FORMAT_VERSION, "codec": self.codec, "layout": self.layout.to_json()}
        return {**shared, **sizes, "described": dict(self.described)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FolderMeta:
        """What `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        described = {str(key): str(text) for key, text in value["described"].items()}
        sizes = int(value["block_size"]), int(value["block_bytes"]), int(value.get("snapshot_bytes", 0))
        if not all(0 <= size <= _MAX_FACT for size in sizes):
            raise ValueError("a size is out of bounds")
        return cls(KVLayout.from_json(value["layout"]), str(value["codec"]), *sizes, described)


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header: `tokens` are the ids from the root to the run's or snapshot's end, `checksums` one a block."""

    root: str
    start: int
    num_blocks: int
    block_bytes: int
    block_size: int
    codec: str
    tokens: bytes
    checksums: tuple[int, ...]
    payload_offset: int

    @property
    def file_bytes(self) -> int:
        """The size that the whole file must have."""
        return self.payload_offset + self.num_blocks * self.block_bytes

    def check(self, name: EntryName, root: str, meta: FolderMeta) -> None:
        """Raise EntryError unless this header belongs to that name in that folder."""
        is_named = (self.start, self.num_blocks) == (name.start, name.num_blocks)
        block_bytes = meta.snapshot_bytes if name.is_snapshot else meta.block_bytes
        codec = SNAPSHOT_CODEC if name.is_snapshot else meta.codec
        is_shaped = (self.block_size, self.block_bytes, self.codec) == (meta.block_size, block_bytes, codec)
        if not is_named or not is_shaped or self.root != root:
            raise EntryError("it belongs elsewhere")


def checksum(block: memoryview) -> int:
    """The checksum of one block's bytes."""
    return xxhash.xxh3_64_intdigest(block)


def pack_header(root: str, meta: FolderMeta, chain: Chain, start: int, payload: memoryview) -> bytes:
    """The header of the file with a chain's blocks from `start` to its end, whose bytes are `payload`."""
    num_blocks = len(chain) - start
    facts = {"root": root, "start": start, "num_blocks": num_blocks}
    facts |= {"block_size": meta.block_size, "codec": meta.codec}
    return _pack(facts, chain.tokens, payload)


def pack_snapshot_header(root: str, meta: FolderMeta, point: Point, payload: memoryview) -> bytes:
    """The header of the file with the snapshot at a point, whose bytes are `payload`."""
    facts = {"root": root, "start": len(point.chain), "num_blocks": 1}
    facts |= {"block_size": meta.block_size, "codec": SNAPSHOT_CODEC}
    return _pack(facts, point.tokens, payload)


def _pack(facts: dict[str, Any], tokens: bytes, payload: memoryview) -> bytes:
    block_bytes = payload.nbytes // facts["num_blocks"]
    text = json.dumps({**facts, "block_bytes": block_bytes, "token_bytes": len(tokens)}).encode()
    offsets = range(0, payload.nbytes, block_bytes)
    checksums = [checksum(payload[offset : offset + block_bytes]) for offset in offsets]
    body = _LENGTH.pack(len(text)) + text + tokens + np.asarray(checksums, dtype="<u8").tobytes()
    size = _PREAMBLE.size + len(body)
    return _PREAMBLE.pack(MAGIC, FORMAT_VERSION, size, xxhash.xxh3_64_intdigest(body)) + body


def read_header(descriptor: int) -> Header:
    """The header of an open file, with all that can be checked without the payload. Raises EntryError, OSError."""
    preamble = os.pread(descriptor, _PREAMBLE.size, 0)
    if len(preamble) < _PREAMBLE.size:
        raise EntryError("it is truncated")
    magic, version, header_bytes, expected = _PREAMBLE.unpack(preamble)
    if magic != MAGIC:
        raise EntryError("it is not a file of this cache")
    if version != FORMAT_VERSION:
        raise EntryError(f"its format {version} is not known", is_kept=True)
    file_bytes = os.fstat(descriptor).st_size
    if not _PREAMBLE.size < header_bytes <= min(file_bytes, _MAX_HEADER_BYTES):
        raise EntryError("it is truncated")
    body = os.pread(descriptor, header_bytes - _PREAMBLE.size, _PREAMBLE.size)
    if xxhash.xxh3_64_intdigest(body) != expected:
        raise EntryError("its header's checksum is wrong")
    header = _unpack_body(body, header_bytes)
    if header.file_bytes != file_bytes:
        raise EntryError("it is truncated")
    return header


def _unpack_body(body: bytes, header_bytes: int) -> Header:
    try:
        (length,) = _LENGTH.unpack_from(body)
        facts = _facts(json.loads(body[_LENGTH.size : _LENGTH.size + length]))
        tokens_at = _LENGTH.size + length
        checksums_at = tokens_at + facts["token_bytes"]
        checksums = np.frombuffer(body, "<u8", offset=checksums_at)
        header = Header(
            root=facts["root"],
            start=facts["start"],
            num_blocks=facts["num_blocks"],
            block_bytes=facts["block_bytes"],
            block_size=facts["block_size"],
            codec=facts["codec"],
            tokens=body[tokens_at:checksums_at],
            checksums=tuple(checksums.tolist()),
            payload_offset=header_bytes,
        )
        num_tokens = len(header.tokens) / TOKEN_BYTES
        most = (header.start + header.num_blocks) * header.block_size
        is_snapshot = header.codec == SNAPSHOT_CODEC
        is_long_enough = most - header.block_size <= num_tokens < most if is_snapshot else num_tokens == most
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise EntryError("its header can't be read") from error
    if len(header.checksums) != header.num_blocks or not is_long_enough or num_tokens % 1:
        raise EntryError("its header contradicts itself")
    return header


def _facts(value: dict[str, Any]) -> dict[str, Any]:
    """A header's facts, each of the right kind. Raises KeyError, TypeError or ValueError for others."""
    for key in ("root", "codec"):
        if type(value[key]) is not str:
            raise TypeError(key)
    for key in ("start", "num_blocks", "block_bytes", "block_size", "token_bytes"):
        if type(value[key]) is not int or not 0 <= value[key] <= _MAX_FACT:
            raise ValueError(key)
    return value
