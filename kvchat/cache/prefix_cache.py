"""PrefixCache: match -> lease -> load -> commit over a RAM and a disk tier; knows no model, no text, no terminal.

Coverage is always a prefix: blocks in RAM from the root on, then blocks on disk. The arena, which is exact to the
token, belongs to the caller: it is handed in as planes [heads, capacity, dim], one a K and one a V of each layer.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from kvchat.cache.block import Chain, KVLayout, RecentDigests, hash_chain, xxh3_128
from kvchat.cache.codec import allocate, make_codec
from kvchat.cache.disk import DiskSettings, DiskTier
from kvchat.cache.entry import FORMAT_VERSION, FolderMeta
from kvchat.cache.folder import scan_folder
from kvchat.cache.loader import Loader
from kvchat.cache.match import CacheSettings, Committed, Coverage, Ended, Lease, Loaded, Match
from kvchat.cache.pool import Block, Pool, Run, spans
from kvchat.cache.stats import CacheStats, StatsCounter
from kvchat.cache.writer import Segment, WriteJob, Writer

if TYPE_CHECKING:
    import torch

RUN_BYTES = 16 * 2**20

Warn = Callable[[str], None]


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
        self.stats = StatsCounter()
        self._settings = settings
        self._codec = make_codec(settings.codec, layout, settings.block_size)
        self._root = chain_root(layout, fingerprint, settings)
        self._lock = threading.RLock()
        self._disk = self._open_disk(layout, meta or {}, warn)
        self._loader = Loader(self._codec, settings.block_size, self._disk)
        self._writer: Writer | None = None
        if self._disk and settings.mode == "rw":
            self._disk.sweep()
            self._writer = Writer(self._disk, self._codec.block_bytes)
        limit = min(RUN_BYTES, settings.ram_bytes // 8) if settings.ram_bytes else RUN_BYTES
        self._run_blocks = max(1, limit // self._codec.block_bytes)
        # What doesn't fit into RAM passes through one run's worth of memory on its way to the disk.
        staging_bytes = self._run_blocks * self._codec.block_bytes if self._writer else 0
        self._pool = Pool(max(0, settings.ram_bytes - staging_bytes), self._remember_evicted)
        self._staging: torch.Tensor | None = None
        self._finished: deque[Block | None] = deque()
        self._evicted = RecentDigests()

    @property
    def block_size(self) -> int:
        """Tokens of one block."""
        return self._settings.block_size

    @property
    def root(self) -> bytes:
        """The root of all chains: fingerprint, layout, block size, encoding and format version in one digest."""
        return self._root

    @property
    def codec(self) -> str:
        """The encoding at rest that is in use."""
        return self._codec.name

    @property
    def mode(self) -> str:
        """`rw`, `ro` or `off`."""
        return self._settings.mode

    @property
    def disk_budget_bytes(self) -> int:
        """The disk budget of all models together; 0 without a disk tier."""
        return self._settings.disk_bytes if self._disk else 0

    @property
    def disk_used_bytes(self) -> int:
        """Bytes that all models' files take on disk now; counts them anew each time."""
        root = self._settings.disk_root
        return scan_folder(root).num_bytes if self._disk and root else 0

    @property
    def ram_used_bytes(self) -> int:
        """Bytes of the runs in RAM."""
        return self._pool.used_bytes

    @property
    def ram_budget_bytes(self) -> int:
        """The RAM budget, never passed."""
        return self._settings.ram_bytes

    def match(self, tokens: Sequence[int]) -> Match:
        """The longest stored prefix of `tokens`; changes nothing."""
        if self._settings.mode == "off":
            return Match(Chain(self.block_size, b"", ()), 0, 0, Ended.OFF)
        return self._match(self._chain(tokens))

    def contains(self, tokens: Sequence[int]) -> Coverage:
        """What each tier holds of `tokens`, each counted from the root; changes nothing."""
        if self._settings.mode == "off":
            return Coverage(0, 0)
        chain = self._chain(tokens)
        with self._lock:
            tail = self._pool.match(chain)
        num_on_disk = self._disk.num_covered(chain) if self._disk else 0
        return Coverage((tail.depth if tail else 0) * self.block_size, num_on_disk * self.block_size)

    def num_kept(self, tokens: Sequence[int], priority: int) -> int:
        """How many of `tokens` RAM holds, from the root on, at no less than a priority."""
        with self._lock:
            held = [(run, count) for run, count in spans(self._pool.match(self._chain(tokens)))]
        return sum(count for run, count in held if run.priority >= priority) * self.block_size

    def tip(self, tokens: Sequence[int]) -> str:
        """The hash of the last full block of `tokens`, as hex; empty when there is none."""
        chain = self._chain(tokens)
        return chain.hashes[-1].hex() if len(chain) else ""

    def estimate_load_s(self, match: Match, start: int = 0, end: int | None = None) -> float:
        """Seconds that loading the tokens [start, end) of a match will take, from the rates measured so far."""
        return self._loader.estimate_s(match, start, match.num_tokens if end is None else end)

    @contextmanager
    def lease(self, match: Match) -> Iterator[Lease]:
        """Pin what a match found in RAM, and count it as used now; matches anew if it was evicted meanwhile."""
        with ExitStack() as stack:
            with self._lock:
                self._settle()
                if match.tail and match.tail.run not in self._pool:
                    match = self._match(match.chain)
                stack.enter_context(self._pinned(match.tail))
            yield Lease(match)

    def load(self, lease: Lease, planes: Sequence[torch.Tensor], start: int, end: int) -> Loaded:
        """Fill the arena's tokens [start, end), token-exact, from what is leased.

        `end` may come back smaller, down to `start`, where a file turned out to be gone or corrupt; what is before it
        is right.
        """
        loaded = self._loader.load(lease.match, planes, start, end)
        self.stats.add(CacheStats(load_s=loaded.seconds))
        return loaded

    def commit(
        self, tokens: Sequence[int], planes: Sequence[torch.Tensor], length: int, *, priority: int = 0
    ) -> Committed:
        """Store the full blocks of `tokens[:length]`, whose KV lies in the arena from token 0 on.

        What RAM can't hold, from the root on, goes to the disk alone. Writing to disk goes on in the background.
        """
        if self._settings.mode != "rw":
            return Committed(0, 0, 0.0)
        began = time.perf_counter()
        chain = self._chain(tokens[:length])
        deadline = began + self._settings.wait_s
        with self._lock:
            tail, num_stored = self._commit_ram(chain, planes, priority, deadline)
            num_in_ram = tail.depth if tail else 0
            self._queue_ram(chain, tail, priority)
            num_stored += self._commit_disk(chain, planes, num_in_ram, priority, deadline)
        num_bytes = num_stored * self._codec.block_bytes
        seconds = time.perf_counter() - began
        self.stats.add(CacheStats(stored_blocks=num_stored, stored_bytes=num_bytes, store_s=seconds))
        return Committed(num_stored, num_bytes, seconds)

    def drain(self, timeout_s: float) -> bool:
        """Wait until the disk has everything that was committed. False when the time was not enough."""
        is_done = self._writer.drain(timeout_s) if self._writer else True
        with self._lock:
            self._settle()
        return is_done

    def close(self, timeout_s: float = 5.0) -> bool:
        """Drain and end the writer, within the bound. False when something was left unwritten."""
        is_done = self._writer.close(timeout_s) if self._writer else True
        with self._lock:
            self._settle()
        return is_done

    def clear_ram(self) -> None:
        """Evict everything from RAM that nobody uses."""
        with self._lock:
            self._settle()
            self._pool.clear()

    def check_integrity(self) -> None:
        """Assert what always holds of the RAM tier."""
        with self._lock:
            self._settle()
            self._pool.check_integrity()

    def _open_disk(self, layout: KVLayout, meta: Mapping[str, str], warn: Warn) -> DiskTier | None:
        settings = self._settings
        if settings.mode == "off" or settings.disk_root is None or settings.disk_bytes <= 0:
            return None
        block_bytes = self._codec.block_bytes
        shared = FolderMeta(layout, settings.codec, settings.block_size, block_bytes, dict(meta))
        where = DiskSettings(
            settings.disk_root,
            settings.disk_bytes,
            settings.mode == "rw",
            settings.lock_timeout_s,
            settings.open_new,
        )
        return DiskTier(where, self._root, shared, stats=self.stats, warn=warn)

    def _chain(self, tokens: Sequence[int]) -> Chain:
        return hash_chain(tokens, self.block_size, self._root, self._settings.hash_function)

    def _match(self, chain: Chain) -> Match:
        with self._lock:
            tail = self._pool.match(chain)
        num_in_ram = tail.depth if tail else 0
        pieces = self._disk.match(chain, num_in_ram) if self._disk else ()
        num_found = pieces[-1].end if pieces else num_in_ram
        on_disk = (num_found - num_in_ram) * self.block_size
        return Match(
            chain, num_in_ram * self.block_size, on_disk, self._why_ended(chain, num_found), tail, pieces
        )

    def _why_ended(self, chain: Chain, num_found: int) -> Ended:
        if num_found == len(chain):
            return Ended.COMPLETE
        digest = chain.hashes[num_found]
        if self._disk and self._disk.is_known_corrupt(digest):
            return Ended.CORRUPT
        if digest in self._evicted or (self._disk and self._disk.is_known_gone(digest)):
            return Ended.EVICTED
        is_empty = (
            self._pool.num_blocks == 0 and not self._evicted and (not self._disk or self._disk.is_empty)
        )
        return Ended.FIRST_USE if is_empty else Ended.NEW_TEXT

    def _commit_ram(
        self, chain: Chain, planes: Sequence[torch.Tensor], priority: int, deadline: float
    ) -> tuple[Block | None, int]:
        """Store in RAM what fits, from the root on. The chain's last block in RAM, and how many are new."""
        self._settle()
        tail = self._pool.match(chain)
        num_before = tail.depth if tail else 0
        if tail:
            self._pool.touch(tail, priority)
        while (tail.depth if tail else 0) < len(chain):
            run = self._store_run(chain, tail, planes, priority, deadline)
            if run is None:
                break
            tail = run.blocks[-1]
        return tail, (tail.depth if tail else 0) - num_before

    def _store_run(
        self, chain: Chain, tail: Block | None, planes: Sequence[torch.Tensor], priority: int, deadline: float
    ) -> Run | None:
        """Store the next run after `tail`, as long as there is room for; None when there is none for a block."""
        start = tail.depth if tail else 0
        num_blocks = self._make_room(tail, min(self._run_blocks, len(chain) - start), deadline)
        if num_blocks == 0:
            return None
        buffer = allocate(num_blocks * self._codec.block_bytes)
        self._codec.encode(planes, start * self.block_size, buffer)
        return self._pool.insert(tail, chain.prefix(start + num_blocks), buffer, priority)

    def _make_room(self, tail: Block | None, num_blocks: int, deadline: float) -> int:
        """Evict for at most `num_blocks` after `tail`, which stays; returns for how many there is room now."""
        with self._pinned(tail):
            # The writer pins what it has still to write: wait for it rather than store less.
            while num_blocks and not self._pool.reserve(num_blocks * self._codec.block_bytes):
                if self._writer and self._writer.is_busy and time.perf_counter() < deadline:
                    self._writer.drain(deadline - time.perf_counter())
                    self._settle()
                else:
                    num_blocks //= 2
        return num_blocks

    @contextmanager
    def _pinned(self, tail: Block | None) -> Iterator[None]:
        if tail:
            self._pool.pin(tail)
        try:
            yield
        finally:
            if tail:
                with self._lock:
                    self._pool.unpin(tail)

    def _queue_ram(self, chain: Chain, tail: Block | None, priority: int) -> None:
        """Have what RAM holds of a chain written, and all of the chain marked on disk as used now."""
        if self._writer is None:
            return
        segments = tuple(Segment(run.start, count, run.buffer) for run, count in spans(tail))
        if tail:
            self._pool.pin(tail)
        is_queued = self._writer.submit(
            WriteJob(chain, segments, priority, lambda: self._finished.append(tail))
        )
        if not is_queued:
            self._finished.append(tail)

    def _commit_disk(
        self, chain: Chain, planes: Sequence[torch.Tensor], start: int, priority: int, deadline: float
    ) -> int:
        """Pass the blocks from `start` on, for which RAM had no room, to the disk alone; returns how many."""
        if start == len(chain):
            return 0
        self._evicted.add(chain.hashes[start])
        if (
            self._writer is None
            or self._disk is None
            or not self._writer.drain(deadline - time.perf_counter())
        ):
            return 0
        first = start = max(start, self._disk.num_covered(chain))
        while start < len(chain) and self._disk.num_covered(chain) >= start and self._disk.is_writable:
            end = min(start + self._run_blocks, len(chain))
            if self._staging is None:
                self._staging = allocate(self._run_blocks * self._codec.block_bytes)
            buffer = self._staging[: (end - start) * self._codec.block_bytes]
            self._codec.encode(planes, start * self.block_size, buffer)
            segment = Segment(start, end - start, buffer)
            if not self._writer.submit(WriteJob(chain.prefix(end), (segment,), priority, lambda: None)):
                break
            start = end
            if not self._writer.drain(deadline - time.perf_counter()):
                break
        return start - first

    def _settle(self) -> None:
        """Unpin what the writer has finished with."""
        while self._finished:
            tail = self._finished.popleft()
            if tail:
                self._pool.unpin(tail)

    def _remember_evicted(self, run: Run) -> None:
        self._evicted.add(run.blocks[0].digest)
        self.stats.add(CacheStats(evicted_blocks=len(run.blocks)))


def chain_root(layout: KVLayout, fingerprint: bytes, settings: CacheSettings) -> bytes:
    """The root of a model's chains, and the name of its folder: 16 bytes."""
    regime = [FORMAT_VERSION, settings.block_size, settings.codec, layout.to_json()]
    return xxh3_128(fingerprint + json.dumps(regime, sort_keys=True).encode())
