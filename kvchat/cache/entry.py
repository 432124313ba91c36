"""One file of the disk tier: its name, its checked header and its payload's layout; knows no folder, no budget.

A file is a run of blocks (`.kv`) or a snapshot (`.state`), which counts as one block.

    magic 8 | version u32 | header_bytes u32 | header_checksum u64      the preamble, little-endian
    facts_bytes u32 | facts (JSON) | token ids | sizes u32 | checksums u64     the rest of the header
    blocks, one after the other, each of its size                        the payload

A file has its own token ids alone. The ones before them are those of the file that it continues, up to where it begins:
it names that file by its key, which is made of its ids and of the key of the file that it continues in turn. Names carry
the chain, so that a folder's listing is its index. Checksums are xxh3_64, keys BLAKE2b: nobody finds two runs of one key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import xxhash

from kvchat.cache.block import FORMAT_VERSION, TOKEN_BYTES, Chain, KVLayout

MAGIC = b"kvchatKV"
SUFFIX = ".kv"
STATE_SUFFIX = ".state"
STATE_CODEC = "snapshot"
"""What stands in a snapshot's header for its encoding: it is always exact."""
NO_PARENT = "0" * 32

_PREAMBLE = struct.Struct("<8sIIQ")
_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 256 * 2**20
_MAX_FACT = 2**40
_MOST_HEADERS = 4096  # bytes, which most headers fit into
_HASH = "([0-9a-f]{32})"
_NAME = re.compile(rf"{_HASH}-{_HASH}-{_HASH}-{_HASH}-(\d+)\+(\d+)-(-?\d+)(\.kv|\.state)")
_OLD_NAME = re.compile(rf"{_HASH}-{_HASH}-{_HASH}-{_HASH}-\d+-\d+-(-?\d+)(\.kv|\.state)")


class EntryError(Exception):
    """A stored file can't be used; `is_kept` when it is not ours to delete, or a later version's."""

    def __init__(self, reason: str, *, is_kept: bool = False) -> None:
        super().__init__(reason)
        self.is_kept = is_kept


class EntryName(NamedTuple):
    """What a file's name says: the tokens [start, end) of a chain in blocks whose hashes are `first` to `last`.

    `key` names the content from the root on, `parent` the key of the file with the block before; both and the hashes in
    hex. A snapshot's tokens are those behind the last full block, which may be none.
    """

    key: str
    parent: str
    first: str
    last: str
    start: int
    num_tokens: int
    priority: int
    is_state: bool = False

    @property
    def end(self) -> int:
        """The first token after this file's."""
        return self.start + self.num_tokens

    def __str__(self) -> str:
        chain = f"{self.key}-{self.parent}-{self.first}-{self.last}"
        suffix = STATE_SUFFIX if self.is_state else SUFFIX
        return f"{chain}-{self.start}+{self.num_tokens}-{self.priority}{suffix}"

    @classmethod
    def parse(cls, text: str) -> EntryName | None:
        """The name, or None when `text` is not one."""
        found = _NAME.fullmatch(text)
        if found is None or len(text) > 255:
            return None
        key, parent, first, last, start, num_tokens, priority, suffix = found.groups()
        return cls(
            key, parent, first, last, int(start), int(num_tokens), int(priority), suffix == STATE_SUFFIX
        )

    @classmethod
    def of(cls, chain: Chain, start: int, parent: str, priority: int) -> EntryName:
        """The name of the file with a chain's blocks from `start` to its end."""
        ids = chain.ids(start, len(chain))
        is_state = start == chain.num_full and chain.is_state
        first, last = chain.hashes[start].hex(), chain.hashes[-1].hex()
        at = chain.num_tokens(start)
        key = key_of(parent, at, ids, is_state=is_state)
        return cls(key, parent, first, last, at, len(ids) // TOKEN_BYTES, max(0, priority), is_state)


def is_old_name(text: str) -> bool:
    """Whether an earlier version of kvchat gave this name to a file, which nobody reads any more."""
    return _OLD_NAME.fullmatch(text) is not None


def key_of(parent: str, start: int, ids: bytes, *, is_state: bool) -> str:
    """The key of a run with these `ids` from token `start` on, behind the file `parent`."""
    about = f"{parent} {start} {STATE_SUFFIX if is_state else SUFFIX} ".encode()
    return hashlib.blake2b(about + ids, digest_size=16).hexdigest()


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
        if value["format"] != FORMAT_VERSION:
            raise ValueError("another version's")
        described = {str(key): str(text) for key, text in value["described"].items()}
        sizes = int(value["block_size"]), int(value["block_bytes"]), int(value.get("snapshot_bytes", 0))
        if not all(0 <= size <= _MAX_FACT for size in sizes):
            raise ValueError("a size is out of bounds")
        return cls(KVLayout.from_json(value["layout"]), str(value["codec"]), *sizes, described)


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
        if not is_shaped or any(size != block_bytes for size in self.sizes):
            raise EntryError("it belongs elsewhere")


def checksum(block: memoryview) -> int:
    """The checksum of one block's bytes."""
    return xxhash.xxh3_64_intdigest(block)


def pack_header(
    root: str, name: EntryName, chain: Chain, meta: FolderMeta, blocks: Sequence[memoryview]
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
    sizes = np.asarray([block.nbytes for block in blocks], dtype="<u4").tobytes()
    checksums = np.asarray([checksum(block) for block in blocks], dtype="<u8").tobytes()
    ids = chain.ids(len(chain) - len(blocks), len(chain))
    body = _LENGTH.pack(len(text)) + text + ids + sizes + checksums
    size = _PREAMBLE.size + len(body)
    return _PREAMBLE.pack(MAGIC, FORMAT_VERSION, size, xxhash.xxh3_64_intdigest(body)) + body


def read_header(descriptor: int) -> Header:
    """The header of an open file, with all that can be checked without the payload. Raises EntryError, OSError."""
    begin = os.pread(descriptor, _MOST_HEADERS, 0)
    if len(begin) < _PREAMBLE.size:
        raise EntryError("it is truncated")
    magic, version, header_bytes, expected = _PREAMBLE.unpack_from(begin)
    if magic != MAGIC:
        raise EntryError("it is not a file of this cache")
    if version != FORMAT_VERSION:
        raise EntryError(f"its format {version} is not known", is_kept=True)
    file_bytes = os.fstat(descriptor).st_size
    if not _PREAMBLE.size < header_bytes <= min(file_bytes, _MAX_HEADER_BYTES):
        raise EntryError("it is truncated")
    begin += os.pread(descriptor, max(0, header_bytes - len(begin)), len(begin))
    body = begin[_PREAMBLE.size : header_bytes]
    if xxhash.xxh3_64_intdigest(body) != expected:
        raise EntryError("its header's checksum is wrong")
    header = _unpack_body(body, header_bytes)
    if header.file_bytes != file_bytes:
        raise EntryError("it is truncated")
    return header


def read_blocks(descriptor: int, header: Header, first: int, into: memoryview) -> None:
    """Fill a buffer with an open file's blocks from `first` on, and verify them. Raises EntryError, OSError."""
    at, offset, size = 0, header.offsets[first], header.block_bytes
    while at < into.nbytes:
        num_bytes = os.preadv(descriptor, [into[at:]], offset + at)
        if num_bytes == 0:
            raise EntryError("it is truncated")
        at += num_bytes
    for number, begin in enumerate(range(0, into.nbytes, size), first):
        if checksum(into[begin : begin + size]) != header.checksums[number]:
            raise EntryError("a block's checksum is wrong")


def _unpack_body(body: bytes, header_bytes: int) -> Header:
    try:
        (length,) = _LENGTH.unpack_from(body)
        facts = _facts(json.loads(body[_LENGTH.size : _LENGTH.size + length]))
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
            sizes=tuple(np.frombuffer(body[sizes_at:checksums_at], "<u4").tolist()),
            checksums=tuple(np.frombuffer(body, "<u8", offset=checksums_at).tolist()),
            payload_offset=header_bytes,
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
        if type(value[key]) is not int or not 0 <= value[key] <= _MAX_FACT:
            raise ValueError(key)
    return value
