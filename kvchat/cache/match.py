"""What PrefixCache takes and gives: settings, and the values of a match, a lease, a load and a commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from kvchat.cache.block import Chain, HashFunction, Point, xxh3_128
from kvchat.cache.disk import RETRY_S, open_new
from kvchat.cache.folder import default_disk_bytes
from kvchat.cache.index import Piece
from kvchat.cache.pool import Block, default_ram_bytes
from kvchat.cache.stats import StatsCounter
from kvchat.config import CacheConfig


class Ended(StrEnum):
    """Why a match ended where it did; `complete` when every full block was found."""

    COMPLETE = "complete"
    FIRST_USE = "first_use"
    NEW_TEXT = "new_text"
    EVICTED = "evicted"
    CORRUPT = "corrupt"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How a cache is run. Budgets in bytes; `disk_root` None means no disk tier, `ram_bytes` 0 no RAM tier.

    `wait_s` bounds how long one commit may wait for the background writer, `lock_timeout_s` how long the writer may
    wait for another process, `retry_s` how soon it tries again what the system refused. `stats` is counted on; None is a new counter.
    """

    mode: str = "rw"
    ram_bytes: int = 0
    disk_bytes: int = 0
    disk_root: Path | None = None
    block_size: int = 16
    codec: str = "raw"
    wait_s: float = 2.0
    lock_timeout_s: float = 10.0
    retry_s: float = RETRY_S
    stats: StatsCounter | None = None
    hash_function: HashFunction = xxh3_128
    open_new: Callable[[Path], BinaryIO] = open_new

    @classmethod
    def from_config(cls, config: CacheConfig, root: Path | None) -> CacheSettings:
        """The settings that the user chose, with the budgets worked out for this machine where none was given.

        `root` None keeps everything off the disk.
        """
        ram_bytes = default_ram_bytes() if config.ram is None else config.ram
        disk_bytes = 0
        if root is not None:
            disk_bytes = default_disk_bytes(root) if config.disk is None else config.disk
        return cls(config.mode, ram_bytes, disk_bytes, root, config.block_size, config.codec)


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """A stored snapshot: in RAM as `block`, else on disk as `piece`."""

    point: Point
    block: Block | None = None
    piece: Piece | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens whose state it is."""
        return self.point.num_tokens


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix of some tokens, in whole blocks: first `ram_tokens` in RAM, then `disk_tokens`.

    Where only a `snapshot` can be taken up again, it decides how long the prefix is; the blocks reach up to it.
    """

    chain: Chain
    ram_tokens: int
    disk_tokens: int
    ended: Ended
    tail: Block | None = None
    pieces: tuple[Piece, ...] = ()
    snapshot: FoundSnapshot | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens whose state is stored."""
        return self.snapshot.num_tokens if self.snapshot else self.block_tokens

    @property
    def block_tokens(self) -> int:
        """Tokens whose KV is stored in blocks."""
        return self.ram_tokens + self.disk_tokens


@dataclass(frozen=True, slots=True)
class Lease:
    """A match that holds still: what it found in RAM is pinned. `match` may differ from the one that was asked for."""

    match: Match


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` did: the arena is filled up to token `end`; `ram` and `disk` are the tokens from each tier."""

    end: int
    ram: int
    disk: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Committed:
    """What `commit` copied, to RAM or for the disk alone; the disk follows in the background.

    Blocks that were loaded from disk and are now in RAM too are among them.
    """

    num_blocks: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many tokens from the root on each tier holds by itself."""

    ram: int
    disk: int
