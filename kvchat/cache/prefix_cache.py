"""PrefixCache: match -> lease -> load -> commit over a RAM and a disk tier; knows no model, no text, no terminal.

Coverage is always a prefix: blocks in RAM from the root on, then blocks on disk. The arena, which is exact to the
token, belongs to the caller: it is handed in as planes [heads, capacity, dim], one a K and one a V of each layer. What
recurrent layers hold is handed in beside it, and stored as snapshots behind the blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from kvchat.cache.block import Chain, KVLayout, point_at
from kvchat.cache.committer import Committer
from kvchat.cache.folder import scan_folder
from kvchat.cache.loader import Loader
from kvchat.cache.match import CacheSettings, Committed, Coverage, Ended, Lease, Loaded, Match
from kvchat.cache.matcher import Matcher
from kvchat.cache.pool import spans
from kvchat.cache.stats import CacheStats
from kvchat.cache.tiers import Tiers, Warn
from kvchat.cache.writer import NoteJob, SnapshotJob

if TYPE_CHECKING:
    import torch


class PrefixCache:
    """The KV of every prefix that was computed, by its tokens.

    `load` and `commit` are for the thread that owns the arena; all else may be called from any thread.
    """

    def __init__(
        self,
        layout: KVLayout,
        fingerprint: bytes,
        settings: CacheSettings,
        *,
        meta: Mapping[str, str] | None = None,
        warn: Warn = lambda message: None,
    ) -> None:
        """A cache for one model. `meta` describes it to whoever lists the folder; `warn` takes one line at a time."""
        self._settings = settings
        self._tiers = Tiers(layout, fingerprint, settings, meta or {}, warn)
        self._matcher = Matcher(self._tiers)
        self._loader = Loader(self._tiers)
        self._committer = Committer(self._tiers)
        self.stats = self._tiers.stats

    @property
    def block_size(self) -> int:
        """Tokens of one block."""
        return self._settings.block_size

    @property
    def root(self) -> bytes:
        """The root of all chains: fingerprint, layout, block size, encoding and format version in one digest."""
        return self._tiers.root

    @property
    def codec(self) -> str:
        """The encoding at rest that is in use."""
        return self._tiers.codec.name

    @property
    def mode(self) -> str:
        """`rw`, `ro` or `off`."""
        return self._settings.mode

    @property
    def disk_budget_bytes(self) -> int:
        """The disk budget of all models together; 0 without a disk tier."""
        return self._settings.disk_bytes if self._tiers.disk else 0

    @property
    def disk_used_bytes(self) -> int:
        """Bytes that all models' files take on disk now; counts them anew each time."""
        root = self._settings.disk_root
        return scan_folder(root).num_bytes if self._tiers.disk and root else 0

    @property
    def ram_used_bytes(self) -> int:
        """Bytes of the runs and snapshots in RAM."""
        return self._tiers.pool.used_bytes

    @property
    def ram_budget_bytes(self) -> int:
        """The RAM budget, never passed."""
        return self._settings.ram_bytes

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest stored prefix of `tokens`; changes nothing."""
        if self._settings.mode == "off":
            return Match(Chain(self.block_size, b"", ()), 0, 0, Ended.OFF)
        return self._matcher.match(tokens)

    def contains(self, tokens: Sequence[int]) -> Coverage:
        """What each tier holds of `tokens`, each counted from the root; changes nothing.

        Where a snapshot is needed to take anything up again, the tier that holds the deepest one counts.
        """
        if self._settings.mode == "off":
            return Coverage(0, 0)
        tiers = self._tiers
        if tiers.layout.states:
            found = self._matcher.match(tokens).snapshot
            return Coverage(
                found.num_tokens if found and found.block else 0,
                found.num_tokens if found and found.piece else 0,
            )
        chain = tiers.chain(tokens)
        with tiers.lock:
            tail = tiers.pool.match(chain)
        num_on_disk = tiers.disk.num_covered(chain) if tiers.disk else 0
        return Coverage((tail.depth if tail else 0) * self.block_size, num_on_disk * self.block_size)

    def num_kept(self, tokens: Sequence[int], priority: int) -> int:
        """How many of `tokens` RAM holds, from the root on, at no less than a priority."""
        match = self.match(tokens)
        tail = match.snapshot.block if match.snapshot else match.tail
        with self._tiers.lock:
            held = [(run, count) for run, count in spans(tail) if run.priority >= priority]
        if match.snapshot:
            return match.num_tokens if held and tail and held[-1][0] is tail.run else 0
        return sum(count for _, count in held) * self.block_size

    def tip(self, tokens: Sequence[int]) -> str:
        """The hash of what would be stored last of `tokens`, as hex: a snapshot's or a full block's; empty for none."""
        if self._tiers.layout.states:
            point = point_at(tokens, self.block_size, self.root, self._settings.hash_function)
            return point.digest.hex() if tokens else ""
        chain = self._tiers.chain(tokens)
        return chain.hashes[-1].hex() if len(chain) else ""

    def estimate_load_s(self, match: Match, start: int = 0, end: int | None = None) -> float:
        """Seconds that loading the tokens [start, end) of a match will take, from the rates measured so far."""
        return self._loader.estimate_s(match, start, match.num_tokens if end is None else end)

    @contextmanager
    def lease(self, match: Match) -> Iterator[Lease]:
        """Pin what a match found in RAM, and count it as used now; matches anew if it was evicted meanwhile."""
        tiers = self._tiers
        with ExitStack() as stack:
            with tiers.lock:
                tiers.settle()
                held = [match.tail, match.snapshot.block if match.snapshot else None]
                if any(block and block.run not in tiers.pool for block in held):
                    tokens = match.snapshot.point.tokens if match.snapshot else match.chain.tokens
                    match = self._matcher.match(np.frombuffer(tokens, "<i4").tolist())
                stack.enter_context(tiers.pinned(match.tail))
                if match.snapshot:
                    stack.enter_context(tiers.pinned(match.snapshot.block))
            yield Lease(match)

    def load(
        self,
        lease: Lease,
        planes: Sequence[torch.Tensor],
        start: int,
        end: int,
        *,
        states: Sequence[torch.Tensor] = (),
    ) -> Loaded:
        """Fill the arena's tokens [start, end), token-exact, from what is leased.

        `end` may come back smaller, down to `start`, where a file turned out to be gone or corrupt; what is before it
        is right. With a snapshot it is all, `states` too, or nothing: then `end` comes back as 0 and `states` unchanged.
        """
        loaded = self._loader.load(lease.match, planes, start, end)
        if lease.match.snapshot:
            loaded = self._loader.load_snapshot(lease.match, planes, states, loaded)
            if loaded.end and self._tiers.writer:
                self._tiers.writer.submit(SnapshotJob(lease.match.snapshot.point, None, 0))
        self.stats.add(CacheStats(load_s=loaded.seconds))
        return loaded

    def commit(
        self,
        tokens: Sequence[int],
        planes: Sequence[torch.Tensor],
        length: int,
        *,
        priority: int = 0,
        first: int = 0,
    ) -> Committed:
        """Store the full blocks of `tokens[:length]`, whose KV lies in the arena from token `first` on.

        What RAM can't hold, from the root on, goes to the disk alone. Writing to disk goes on in the background.
        """
        if self._settings.mode != "rw" or not planes:
            return Committed(0, 0, 0.0)
        began = time.perf_counter()
        deadline = began + self._settings.wait_s
        with self._tiers.lock:
            self._committer.first = first
            num_stored = self._committer.commit(tokens[:length], planes, priority=priority, deadline=deadline)
        return self._committed(num_stored, num_stored * self._tiers.codec.block_bytes, began)

    def commit_snapshot(
        self,
        tokens: Sequence[int],
        planes: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        *,
        priority: int = 0,
        first: int = 0,
    ) -> bool:
        """Store the `states` of recurrent layers behind all of `tokens`, as `commit` stores KV and after it.

        False when it could not be stored and should be kept elsewhere.
        """
        if self._settings.mode != "rw":
            return False
        began = time.perf_counter()
        deadline = began + self._settings.wait_s
        with self._tiers.lock:
            self._committer.first = first
            is_stored = self._committer.commit_snapshot(
                tokens, planes, states, priority=priority, deadline=deadline
            )
        self._committed(int(is_stored), is_stored * self._tiers.snapshot_codec.num_bytes, began)
        return is_stored

    def note(self) -> bytes:
        """What was kept by `keep_note` last, by this process or another; empty for nothing."""
        return self._tiers.disk.note() if self._tiers.disk else b""

    def keep_note(self, content: bytes) -> None:
        """Keep a short note beside this model's files, in the background; it goes when they are cleared."""
        if self._tiers.writer:
            self._tiers.writer.submit(NoteJob(content))

    def drain(self, timeout_s: float) -> bool:
        """Wait until the disk has everything that was committed. False when the time was not enough."""
        is_done = self._tiers.writer.drain(timeout_s) if self._tiers.writer else True
        with self._tiers.lock:
            self._tiers.settle()
        return is_done

    def close(self, timeout_s: float = 5.0) -> bool:
        """Drain and end the writer, within the bound. False when something was left unwritten."""
        is_done = self._tiers.writer.close(timeout_s) if self._tiers.writer else True
        with self._tiers.lock:
            self._tiers.settle()
        return is_done

    def clear_ram(self) -> None:
        """Evict everything from RAM that nobody uses."""
        with self._tiers.lock:
            self._tiers.settle()
            self._tiers.pool.clear()

    def check_integrity(self) -> None:
        """Assert what always holds of the RAM tier."""
        with self._tiers.lock:
            self._tiers.settle()
            self._tiers.pool.check_integrity()

    def _committed(self, num_stored: int, num_bytes: int, began: float) -> Committed:
        seconds = time.perf_counter() - began
        self.stats.add(CacheStats(stored_blocks=num_stored, stored_bytes=num_bytes, store_s=seconds))
        return Committed(num_stored, num_bytes, seconds)
