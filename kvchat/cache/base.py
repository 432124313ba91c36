"""What the cache takes and gives, and what a tier is: this file is the documentation of both. Knows no tier.

A cache is a row of tiers, the fastest first. Each holds chains of blocks from the root on, so what is stored of a prompt
is a prefix, served as spans: the first tier's part, then what the next one has beyond it, and so on. A model that keeps
states can only be taken up again where a snapshot stands; that is one more block of the chain, the last.

The first tier is written at once. What it holds, and what it has no room for, is given to the others in the background.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from kvchat.cache.block import Chain, HashFunction, xxh3_128
from kvchat.cache.folder import default_disk_bytes, open_new
from kvchat.cache.stats import StatsCounter
from kvchat.config import CacheConfig

if TYPE_CHECKING:
    import numpy as np

RETRY_S = 5.0

Warn = Callable[[str], None]
"""Takes one line for the user."""


class Ended(StrEnum):
    """Why a match ended where it did; `complete` when every full block was found."""

    COMPLETE = "complete"
    FIRST_USE = "first_use"
    NEW_TEXT = "new_text"
    EVICTED = "evicted"
    CORRUPT = "corrupt"
    OFF = "off"


class Piece(NamedTuple):
    """Blocks [start, end) of a chain in one run, whatever a tier takes for a run; of at least this priority."""

    run: Any
    start: int
    end: int
    priority: int = 0


class Stored(NamedTuple):
    """Blocks [start, end) of a chain as they are encoded: uint8, one after the other."""

    start: int
    end: int
    data: np.ndarray[Any, Any]


class Tier(Protocol):
    """A place where blocks live. What has a body here suits a tier that never evicts and pins nothing.

    All methods may be called from any thread. None raises because of what is stored or what the system refuses: that is
    a miss, or a store that did not happen. `store` and `use` of all tiers but the first run on the writer's thread.
    """

    name: str
    """What its counts are called wherever they are shown."""

    @property
    def used_bytes(self) -> int:
        """Bytes of what is stored, of all models."""

    @property
    def budget_bytes(self) -> int:
        """Bytes that it may take, never passed."""

    def match(self, chain: Chain) -> Sequence[Piece]:
        """What is held of a chain, from the root on, as far as it reaches without a gap; proven by token ids."""

    def read(self, pieces: Sequence[Piece], start: int, end: int) -> Iterator[Stored]:
        """Blocks [start, end) of what `match` found, in order and right; ends early where they can't be had.

        What it yields is valid until the next one is asked for; of pinned pieces of the first tier, until they are unpinned.
        """

    def store(self, chain: Chain, start: int, data: np.ndarray[Any, Any], *, priority: int = 0) -> bool:
        """Keep a chain's blocks from `start` to its end: full ones, or its snapshot alone. False when they are not held after it.

        The blocks before `start` have to be held: a chain without its root is dead weight. Evicts first. The first tier
        keeps `data` itself, for which its owner has made room.
        """

    def use(self, chain: Chain, priority: int = 0) -> None:
        """Count what is held of a chain as used now, and raise its priority to at least `priority`."""

    @property
    def is_writable(self) -> bool:
        """Whether storing makes sense now."""
        return True

    def knows(self, digest: bytes) -> bool:
        """Whether something may be held that begins with a block of this hash."""
        return True

    def state_ends(self) -> Iterable[int]:
        """The numbers of tokens behind which a snapshot may be held."""
        return ()

    def why_missing(self, digest: bytes) -> Ended:
        """Why the block of this hash is not held."""
        return Ended.FIRST_USE

    def pin(self, pieces: Sequence[Piece]) -> bool:
        """Keep what was found until `unpin`; False, and nothing is pinned, when some of it is gone. Pins are counted."""
        return True

    def unpin(self, pieces: Sequence[Piece]) -> None:
        """Take back one `pin`."""
        return


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would be forgotten next, and why: tokens [start, end), unused for `age_s`, of a conversation of `num_turns`.

    `chance` is that of being gone on with in the next day; `saves_s` what that would save. Both are None where only the
    last use counts.
    """

    start: int
    end: int
    num_bytes: int
    age_s: float
    num_turns: int
    chance: float | None
    saves_s: float | None


class Policy(Protocol):
    """In which order a tier's runs go. A tier tells it what happens to them; it never changes one.

    A run says `num_bytes`, `num_blocks`, `start` (blocks before it), `is_state`, `priority`, `parent` (a run or None) and
    `num_children`, the runs that continue it, as they are when the policy is told. Whoever uses a run uses what it continues,
    of which nothing need be told: when it becomes a leaf it counts as used when its last child was, or later.
    """

    def asked(self, hashes: Sequence[Hashable], priority: int = 0) -> None:
        """A chain with blocks of these hashes is used now, held or not; which of its runs are, `used` and `added` tell next."""

    def added(self, run: Any) -> None:
        """A run is here now, and was used."""

    def used(self, run: Any) -> None:
        """A run was asked for, or got a higher priority."""

    def removed(self, run: Any) -> None:
        """A run is gone."""

    def victim(self, can_go: Callable[[Any], bool]) -> Any | None:
        """The run to evict next, of those that can go: a leaf that nobody uses. None when there is none."""

    def forecast(self, can_go: Callable[[Any], bool], block_size: int) -> Forecast | None:
        """What the next victim is, and why."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How a cache is run. Budgets in bytes; `disk_root` None means no disk tier, `ram_bytes` 0 no RAM tier.

    `codec` is `packed`, `raw` or `int8`. `further` are slower tiers, behind the disk. `policy` says what goes first: `kvchat` or `lru`.
    `wait_s` bounds how long one commit may wait for the background writer, `lock_timeout_s` how long the writer may
    wait for another process, `retry_s` how soon it tries again what the system refused. `stats` is counted on; None is
    a new counter.
    """

    mode: str = "rw"
    ram_bytes: int = 0
    disk_bytes: int = 0
    disk_root: Path | None = None
    block_size: int = 16
    codec: str = "packed"
    further: tuple[Tier, ...] = ()
    policy: str = "kvchat"
    wait_s: float = 2.0
    lock_timeout_s: float = 10.0
    retry_s: float = RETRY_S
    stats: StatsCounter | None = None
    hash_function: HashFunction = xxh3_128
    open_new: Callable[[Path], BinaryIO] = open_new

    @property
    def encoding(self) -> str:
        """How KV is encoded wherever it is kept: `raw`, which is exact, or `int8`. It may lie packed on the disk."""
        return "int8" if self.codec == "int8" else "raw"

    @property
    def is_exact(self) -> bool:
        """Whether what comes back is what was stored, to the bit."""
        return self.encoding == "raw"

    @classmethod
    def from_config(cls, config: CacheConfig, root: Path | None) -> CacheSettings:
        """The settings that the user chose, with the budgets worked out for this machine where none was given.

        `root` None keeps everything off the disk.
        """
        ram_bytes = default_ram_bytes() if config.ram is None else config.ram
        disk_bytes = 0
        if root is not None:
            disk_bytes = default_disk_bytes(root) if config.disk is None else config.disk
        sizes = ram_bytes, disk_bytes, root, config.block_size
        return cls(config.mode, *sizes, config.codec, policy=config.policy)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) that one tier serves, in `load_s` seconds as far as is known; `pieces` are the tier's, from the root on.

    With `is_state` it is a snapshot: the state at `end`, and the KV of the tokens behind the last full block.
    """

    tier: str
    start: int
    end: int
    load_s: float
    pieces: Sequence[Piece] = field(default=(), repr=False)
    is_state: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix of some tokens, as spans without a gap from the root on; a snapshot is the last of them."""

    chain: Chain
    spans: tuple[Span, ...]
    ended: Ended

    @property
    def num_tokens(self) -> int:
        """Tokens whose state is stored."""
        return self.spans[-1].end if self.spans else 0

    @property
    def state(self) -> Span | None:
        """The snapshot that has to be taken up; None where blocks are enough."""
        return self.spans[-1] if self.spans and self.spans[-1].is_state else None

    @property
    def tokens(self) -> dict[str, int]:
        """How many tokens each tier serves."""
        counts: dict[str, int] = {}
        for span in self.spans:
            counts[span.tier] = counts.get(span.tier, 0) + span.end - span.start
        return counts

    def load_s(self, start: int = 0, end: int | None = None) -> float:
        """Seconds that loading the tokens [start, end) takes, and the snapshot where there is one."""
        end = self.num_tokens if end is None else end
        seconds = 0.0
        for span in self.spans:
            size = span.end - span.start
            part = max(0, min(end, span.end) - max(start, span.start))
            seconds += span.load_s if span.is_state else span.load_s * part / size
        return seconds


@dataclass(frozen=True, slots=True)
class Filled:
    """What `load` did: the arena is filled up to token `end`; `tokens` came from each tier."""

    end: int
    tokens: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Committed:
    """What `commit` copied, for the first tier or for the others alone; these follow in the background.

    Blocks that were loaded from a slower tier and are now in the first one too are among them. `is_whole` says whether all that
    was given is held, or on its way.
    """

    num_blocks: int
    num_bytes: int
    seconds: float
    is_whole: bool


def default_ram_bytes() -> int:
    """A tenth of the machine's memory, or of the control group's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return total // 10
