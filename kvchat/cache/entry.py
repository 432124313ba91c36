"""What one file of the disk tier is called, and what all files of a folder share; reads nothing, knows no budget.

A file is a run of blocks (`.kv`) or a snapshot (`.state`), which counts as one block. It has its own token ids alone. The
ones before them are those of the file that it continues, up to where it begins: it names that file by its key, which is made
of its ids and of the key of the file that it continues in turn. Names carry the chain, so that a folder's listing is its
index. Keys are BLAKE2b: nobody finds two runs of one key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvchat.cache.block import FORMAT_VERSION, TOKEN_BYTES, Chain, KVLayout

SUFFIX = ".kv"
STATE_SUFFIX = ".state"
STATE_CODEC = "snapshot"
"""What stands in a snapshot's header for its encoding: it is always exact."""
NO_PARENT = "0" * 32

MAX_FACT = 2**40
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
        if not all(0 <= size <= MAX_FACT for size in sizes):
            raise ValueError("a size is out of bounds")
        return cls(KVLayout.from_json(value["layout"]), str(value["codec"]), *sizes, described)
