"""The tiers of one model together: RAM, disk, the writer between them and the lock over them; finds and copies nothing."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kvchat.cache.block import Chain, KVLayout, RecentDigests, hash_chain, xxh3_128
from kvchat.cache.codec import SnapshotCodec, make_codec
from kvchat.cache.disk import DiskSettings, DiskTier
from kvchat.cache.entry import FORMAT_VERSION, FolderMeta
from kvchat.cache.match import CacheSettings
from kvchat.cache.pool import Block, Pool, Run
from kvchat.cache.stats import CacheStats, StatsCounter
from kvchat.cache.writer import Job, Writer

RUN_BYTES = 16 * 2**20

Warn = Callable[[str], None]


class Tiers:
    """What finding, loading and committing share. Whoever changes the pool holds `lock`."""

    def __init__(
        self,
        layout: KVLayout,
        fingerprint: bytes,
        settings: CacheSettings,
        meta: Mapping[str, str],
        warn: Warn,
    ) -> None:
        self.stats = settings.stats or StatsCounter()
        self.settings = settings
        self.layout = layout
        self.codec = make_codec(settings.codec, layout, settings.block_size)
        self.snapshot_codec = SnapshotCodec(layout, settings.block_size)
        self.root = chain_root(layout, fingerprint, settings)
        self.lock = threading.RLock()
        self.disk = self._open_disk(meta, warn)
        self.writer: Writer | None = None
        if self.disk and settings.mode == "rw":
            self.disk.sweep()
            self.writer = Writer(self.disk)
        limit = min(RUN_BYTES, settings.ram_bytes // 8) if settings.ram_bytes else RUN_BYTES
        self.run_blocks = max(1, limit // max(1, self.codec.block_bytes))
        # What doesn't fit into RAM passes through one run's worth of memory on its way to the disk.
        staging_bytes = self.run_blocks * self.codec.block_bytes if self.writer else 0
        self.pool = Pool(max(0, settings.ram_bytes - staging_bytes), self._remember_evicted)
        self.evicted = RecentDigests()
        self.snapshot_starts: set[int] = set()
        """How many full blocks there are before each snapshot that ever was in RAM."""
        self._finished: deque[Block | None] = deque()

    def chain(self, tokens: Sequence[int]) -> Chain:
        """The full blocks of some tokens."""
        return hash_chain(tokens, self.settings.block_size, self.root, self.settings.hash_function)

    @contextmanager
    def pinned(self, tail: Block | None) -> Iterator[None]:
        """Keep a chain in RAM meanwhile."""
        if tail:
            self.pool.pin(tail)
        try:
            yield
        finally:
            if tail:
                with self.lock:
                    self.pool.unpin(tail)

    def reserve(self, num_bytes: int, deadline: float) -> bool:
        """Evict until `num_bytes` fit into RAM. What the writer still pins is waited for, rather than store less."""
        while not self.pool.reserve(num_bytes):
            if not (self.writer and self.writer.is_busy and time.perf_counter() < deadline):
                return False
            self.writer.drain(deadline - time.perf_counter())
            self.settle()
        return True

    def queue(self, job: Callable[[Callable[[], None]], Job], tail: Block | None) -> None:
        """Have something written that lies in RAM as the chain `tail`; `job` is given what it has to call at its end."""
        if self.writer is None:
            return
        if tail:
            self.pool.pin(tail)
        if not self.writer.submit(job(lambda: self._finished.append(tail))):
            self._finished.append(tail)

    def settle(self) -> None:
        """Unpin what the writer has finished with."""
        while self._finished:
            tail = self._finished.popleft()
            if tail:
                self.pool.unpin(tail)

    def _open_disk(self, meta: Mapping[str, str], warn: Warn) -> DiskTier | None:
        settings = self.settings
        if settings.mode == "off" or settings.disk_root is None or settings.disk_bytes <= 0:
            return None
        sizes = settings.block_size, self.codec.block_bytes, self.snapshot_codec.num_bytes
        shared = FolderMeta(self.layout, settings.codec, *sizes, dict(meta))
        where = DiskSettings(
            settings.disk_root,
            settings.disk_bytes,
            settings.mode == "rw",
            settings.lock_timeout_s,
            settings.retry_s,
            settings.open_new,
        )
        return DiskTier(where, self.root, shared, stats=self.stats, warn=warn)

    def _remember_evicted(self, run: Run) -> None:
        self.evicted.add(run.blocks[0].digest)
        self.stats.add(CacheStats(evicted_blocks=len(run.blocks)))


def chain_root(layout: KVLayout, fingerprint: bytes, settings: CacheSettings) -> bytes:
    """The root of a model's chains, and the name of its folder: 16 bytes."""
    regime = [FORMAT_VERSION, settings.block_size, settings.codec, layout.to_json()]
    return xxh3_128(fingerprint + json.dumps(regime, sort_keys=True).encode())
