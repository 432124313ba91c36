"""The RAM tier: runs of blocks under a byte budget; knows no files and no torch.

A run lies in one buffer. A parent goes only after its children, so that of a chain it is enough to count its last run as
used, and to pin that: what it continues stays, and counts as used then too. A parent's priority is never below a child's.
In which order leaves go is the policy's to say.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from kvchat.cache.base import Ended, Forecast, Piece, Policy, Stored, Tier
from kvchat.cache.block import Chain
from kvchat.cache.policy import LeastRecentlyUsed
from kvchat.cache.stats import CacheStats, StatsCounter
from kvchat.cache.tree import RecentDigests, Tree, lineage, lineages


@dataclass(slots=True, eq=False)
class RamRun:
    """Consecutive blocks with their encoded KV, immutable: `data` is uint8 [num_blocks * block_bytes]."""

    parent: RamRun | None
    start: int
    num_blocks: int
    first: bytes
    tokens: bytes
    is_state: bool
    data: Any
    num_bytes: int
    priority: int
    num_pins: int = 0
    num_children: int = 0

    @classmethod
    def of(cls, parent: RamRun | None, chain: Chain, start: int, data: Any, priority: int) -> RamRun:
        """A chain's blocks from `start` to its end, behind `parent`."""
        num_blocks, ids = len(chain) - start, chain.ids(start, len(chain))
        is_state = chain.is_state and num_blocks == 1
        return cls(parent, start, num_blocks, chain.hashes[start], ids, is_state, data, data.nbytes, priority)

    @property
    def id(self) -> Hashable:
        """The run itself: a child hangs from this very object."""
        return self

    @property
    def above(self) -> Hashable:
        return self.parent

    def ids(self) -> bytes:
        return self.tokens


class RamTier(Tier):
    """Runs under a byte budget. See `base.Tier`."""

    name = "ram"

    def __init__(
        self, budget_bytes: int, *, policy: Policy | None = None, stats: StatsCounter | None = None
    ) -> None:
        """`policy` says what goes first; None is the least recently used. What is evicted is counted in `stats`."""
        self.gone = RecentDigests()
        """First blocks of what was evicted, or had no room."""
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._pins: dict[RamRun, None] = {}
        self._policy = LeastRecentlyUsed() if policy is None else policy
        self._stats = stats or StatsCounter()
        self._tree: Tree[RamRun] = Tree()
        self._runs: set[RamRun] = set()
        self._state_ends: set[int] = set()
        self._lock = threading.RLock()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def budget_bytes(self) -> int:
        return self._budget_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks of all runs."""
        with self._lock:
            return sum(run.num_blocks for run in self._runs)

    def match(self, chain: Chain) -> tuple[Piece, ...]:
        with self._lock:
            return self._tree.match(chain)

    def knows(self, digest: bytes) -> bool:
        return self._tree.knows(digest)

    def state_ends(self) -> set[int]:
        """The numbers of tokens behind which a snapshot ever was."""
        with self._lock:
            return set(self._state_ends)

    def why_missing(self, digest: bytes) -> Ended:
        """Evicted, if that is not long ago."""
        if digest in self.gone:
            return Ended.EVICTED
        return Ended.NEW_TEXT if self._runs or len(self.gone) else Ended.FIRST_USE

    def read(self, pieces: Sequence[Piece], start: int, end: int) -> Iterator[Stored]:
        """Blocks [start, end) of pinned pieces, as views."""
        for run, first, stop, _ in pieces[bisect_right(pieces, start, key=attrgetter("end")) :]:
            low, high = max(first, start), min(stop, end)
            if low < high:
                size = run.num_bytes // run.num_blocks
                yield Stored(low, high, run.data[(low - run.start) * size : (high - run.start) * size])

    def reserve(self, num_bytes: int, above: Sequence[Piece] = ()) -> bool:
        """Evict until `num_bytes` more fit, behind `above`, which stays. False, with nothing evicted, when pinned runs leave no room."""
        with self._lock:
            if num_bytes <= self._budget_bytes - self._used_bytes:
                return True
            with self._pinned(above):
                if num_bytes > self._budget_bytes - self._pinned_bytes():
                    return False
                while self._budget_bytes - self._used_bytes < num_bytes:
                    self._evict(self._victim())
                return True

    def store(self, chain: Chain, start: int, data: Any, *, priority: int = 0) -> bool:
        """Add a chain's blocks from `start` on, for which `reserve` has made room."""
        with self._lock:
            above = self._tree.match(chain.prefix(start))
            if (above[-1].end if above else 0) < start:
                return False
            run = RamRun.of(above[-1].run if above else None, chain, start, data, priority)
            assert run.num_bytes <= self._budget_bytes - self._used_bytes, "reserve before store"
            self._runs.add(run)
            self._tree.add(run)
            self._used_bytes += run.num_bytes
            if run.parent:
                run.parent.num_children += 1
            if run.is_state:
                self._state_ends.add(chain.num_tokens())
            self._policy.added(run)
            self._use(run.parent, priority)
            return True

    def use(self, chain: Chain, priority: int = 0) -> None:
        with self._lock:
            pieces = self._tree.match(chain)
            self._policy.asked(chain.hashes, priority)
            self._use(pieces[-1].run if pieces else None, priority)

    def pin(self, pieces: Sequence[Piece]) -> bool:
        """Keep what was found, and what it continues, until `unpin`. False when some of it was evicted."""
        with self._lock:
            tail = pieces[-1].run if pieces else None
            if tail is not None:
                if tail not in self._runs:
                    return False
                tail.num_pins += 1
                self._pins[tail] = None
            return True

    def unpin(self, pieces: Sequence[Piece]) -> None:
        with self._lock:
            tail = pieces[-1].run if pieces else None
            if tail is not None:
                tail.num_pins -= 1
                assert tail.num_pins >= 0, "unpinned more often than pinned"
                if not tail.num_pins:
                    del self._pins[tail]

    def evict(self) -> bool:
        """Evict one run. False when all are pinned."""
        with self._lock:
            run = self._policy.victim(_can_go)
            if run is not None:
                self._evict(run)
            return run is not None

    def forecast(self, block_size: int) -> Forecast | None:
        """What would be evicted next, and why; None when all is pinned."""
        with self._lock:
            return self._policy.forecast(_can_go, block_size)

    def clear(self) -> None:
        """Evict everything that is not pinned."""
        while self.evict():
            pass

    def check_integrity(self) -> None:
        """Assert what always holds: accounts, index, no orphan, nothing above its children's place."""
        with self._lock:
            assert self._used_bytes == sum(run.num_bytes for run in self._runs) <= self._budget_bytes
            assert set(self._pins) == {run for run in self._runs if run.num_pins}
            assert sorted(map(id, self._tree)) == sorted(map(id, self._runs))
            children = dict.fromkeys(self._runs, 0)
            for run in self._runs:
                if run.parent:
                    assert run.parent in self._runs, "an orphan in RAM"
                    assert run.parent.priority >= run.priority
                    children[run.parent] += 1
            assert all(run.num_children == count for run, count in children.items())
            is_full_of_pins = self._pinned_bytes() == self._used_bytes
            assert (self._policy.victim(_can_go) is None) == is_full_of_pins, "a free leaf is not offered"

    @contextmanager
    def _pinned(self, pieces: Sequence[Piece]) -> Iterator[None]:
        is_pinned = self.pin(pieces)
        assert is_pinned, "what is to be continued is here"
        try:
            yield
        finally:
            self.unpin(pieces)

    def _pinned_bytes(self) -> int:
        """Bytes of what is pinned and of what that continues."""
        return sum(run.num_bytes for run in lineages(self._pins))

    def _use(self, tail: RamRun | None, priority: int) -> None:
        if tail is None:
            return
        for run in lineage(tail):
            if run.priority >= priority:
                break
            run.priority = priority
            self._tree.forget()  # its pieces say which it has
            self._policy.used(run)
        self._policy.used(tail)

    def _victim(self) -> RamRun:
        run: RamRun | None = self._policy.victim(_can_go)
        assert run is not None, "what is not pinned can go"
        return run

    def _evict(self, run: RamRun) -> None:
        assert _can_go(run), "only a leaf that nobody uses is evicted"
        self._runs.remove(run)
        self._tree.remove(run)
        self._used_bytes -= run.num_bytes
        if run.parent:
            run.parent.num_children -= 1
        self._policy.removed(run)
        self.gone.add(run.first)
        self._stats.add(CacheStats(evicted_blocks=run.num_blocks))
        del run.data  # a match may still know the run: its memory goes now


def _can_go(run: RamRun) -> bool:
    return run.num_children == 0 and run.num_pins == 0
