"""Storing what was computed: into RAM as far as it fits, the rest past it to the slower tiers; finds nothing, loads nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kvchat.cache.base import CacheSettings, Committed, Piece, Stored
from kvchat.cache.block import Chain
from kvchat.cache.codec import allocate
from kvchat.cache.encoding import Arena, Encoding
from kvchat.cache.policy import make_policy
from kvchat.cache.ram import RamTier
from kvchat.cache.rates import Rates
from kvchat.cache.stats import StatsCounter
from kvchat.cache.writer import Writer

RUN_BYTES = 16 * 2**20
"""A run is at most so long: what is evicted goes by whole runs."""


@dataclass(frozen=True, slots=True)
class Given:
    """What is to be stored; the arena holds nothing from before token `first`, and nobody waits past `deadline`, of perf_counter."""

    chain: Chain
    arena: Arena
    priority: int
    first: int
    deadline: float


class Filling:
    """Copies KV out of an arena. For one thread at a time."""

    def __init__(
        self,
        settings: CacheSettings,
        encoding: Encoding,
        writer: Writer,
        stats: StatsCounter,
        learned: Rates | None = None,
    ) -> None:
        """What is evicted from RAM is counted in `stats`; `learned` is what is known of when chains are gone on with."""
        self._encoding = encoding
        self._writer = writer
        limit = min(RUN_BYTES, settings.ram_bytes // 8) if settings.ram_bytes else RUN_BYTES
        self._run_blocks = max(1, limit // max(1, encoding.block_bytes))
        # What doesn't fit into RAM passes through one run's worth of memory on its way to the others.
        staging_bytes = self._run_blocks * encoding.block_bytes if writer.is_open else 0
        self._staging: np.ndarray[Any, Any] | None = None
        policy = make_policy(settings.policy, settings.block_size, rates=learned)
        self.ram = RamTier(max(0, settings.ram_bytes - staging_bytes), policy=policy, stats=stats)

    def commit(self, given: Given) -> Committed:
        """Store a chain, which is given from the root on; what is held already is counted as used now."""
        began = time.perf_counter()
        chain = given.chain
        num_before, num_in_ram = self._to_ram(given)
        self.queue_refused()
        self._queue(chain, given.priority)
        start = end = num_in_ram
        if end < len(chain):
            self.ram.gone.add(chain.hashes[end])
            start, end = self._past_ram(given, end)
        num_bytes = self._encoding.num_bytes(chain, num_before, num_in_ram)
        num_bytes += self._encoding.num_bytes(chain, start, end)
        num_blocks = num_in_ram - num_before + end - start
        seconds = time.perf_counter() - began
        return Committed(num_blocks, num_bytes, seconds, is_whole=end == len(chain))

    def queue_refused(self) -> None:
        """Have written what the system refused to write a while ago, as far as RAM still holds it."""
        for chain, priority in self._writer.take_refused():
            self._queue(chain, priority)

    def _to_ram(self, given: Given) -> tuple[int, int]:
        """Store in RAM what fits, from the root on; how many blocks were there before, and are now."""
        chain = given.chain
        self.ram.use(chain, given.priority)
        pieces = self.ram.match(chain)
        num_before = at = pieces[-1].end if pieces else 0
        while at < len(chain) and chain.num_tokens(at) >= given.first:
            end = self._make_room(given, at)
            if end == at:
                break
            data = allocate(self._encoding.num_bytes(chain, at, end)).numpy()
            self._encoding.encode(given.arena, chain, at, data)
            self.ram.store(chain.prefix(end), at, data, priority=given.priority)
            at = end
        return num_before, at

    def _make_room(self, given: Given, start: int) -> int:
        """Evict for the next run from block `start` on, behind what stays; returns where the run may end now."""
        above = self.ram.match(given.chain.prefix(start))
        end = self._run_end(given.chain, start)
        while end > start:
            if self._reserve(self._encoding.num_bytes(given.chain, start, end), above, given.deadline):
                break
            end = start + (end - start) // 2
        return end

    def _reserve(self, num_bytes: int, above: Sequence[Piece], deadline: float) -> bool:
        """Evict until `num_bytes` fit into RAM. What the writer still pins is waited for, rather than store less."""
        while not self.ram.reserve(num_bytes, above):
            left = deadline - time.perf_counter()
            if not self._writer.is_busy or left <= 0:
                return False
            self._writer.drain(left)
        return True

    def _queue(self, chain: Chain, priority: int) -> None:
        """Have what RAM holds of a chain written, and all of the chain marked as used now."""
        pieces = self.ram.match(chain)
        if self.ram.pin(pieces):
            held = partial(self.ram.read, pieces, end=len(chain))
            if not self._writer.store(chain, held, priority, partial(self.ram.unpin, pieces)):
                self.ram.unpin(pieces)

    def _past_ram(self, given: Given, start: int) -> tuple[int, int]:
        """Pass the blocks from `start` on, for which RAM had no room, to the other tiers; from where, and up to where."""
        chain, writer = given.chain, self._writer
        if not self._is_drained(given):
            return start, start
        begin = at = max(start, writer.num_held(chain))
        while (
            at < len(chain)
            and chain.num_tokens(at) >= given.first
            and writer.num_held(chain) >= at
            and writer.is_open
            and self._is_drained(given)  # or the memory that it passes through is still in use
        ):
            end = self._run_end(chain, at)
            data = self._staged(self._encoding.num_bytes(chain, at, end))
            self._encoding.encode(given.arena, chain, at, data)
            staged = (Stored(at, end, data),)
            if not writer.store(chain.prefix(end), partial(_given, staged), given.priority):
                break
            at = end
            if at < len(chain) and not self._is_drained(given):
                break
        return begin, at

    def _is_drained(self, given: Given) -> bool:
        """Whether the writer has written everything, waiting for it until the deadline."""
        return self._writer.drain(given.deadline - time.perf_counter())

    def _run_end(self, chain: Chain, start: int) -> int:
        """Where a run from block `start` on ends; a snapshot is a run of its own."""
        return min(start + self._run_blocks, chain.num_full) if start < chain.num_full else len(chain)

    def _staged(self, num_bytes: int) -> np.ndarray[Any, Any]:
        """Memory for a run on its way past RAM."""
        if self._staging is None or self._staging.nbytes < num_bytes:
            size = max(num_bytes, self._run_blocks * self._encoding.block_bytes)
            self._staging = allocate(size).numpy()
        return self._staging[:num_bytes]


def _given(staged: tuple[Stored, ...], start: int) -> tuple[Stored, ...]:
    """What was staged, wherever it is to begin."""
    return staged
