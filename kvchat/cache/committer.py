"""Storing what was computed: blocks and snapshots into RAM, what has no room there for the disk alone; finds nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvchat.cache.block import Chain, Point, point_at
from kvchat.cache.codec import allocate
from kvchat.cache.pool import Block, Run, spans
from kvchat.cache.tiers import Tiers
from kvchat.cache.writer import Segment, SnapshotJob, WriteJob

if TYPE_CHECKING:
    import torch


class Committer:
    """Copies KV out of an arena. For one thread at a time, which holds the tiers' lock. `deadline`s are of perf_counter."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._staging: torch.Tensor | None = None
        self.first = 0
        """The arena holds nothing from before this token: what is not stored of that stays so."""

    def commit(
        self, tokens: Sequence[int], planes: Sequence[torch.Tensor], *, priority: int, deadline: float
    ) -> int:
        """Store the full blocks of `tokens`; returns how many were copied."""
        chain = self._tiers.chain(tokens)
        tail, num_stored = self._to_ram(chain, planes, priority, deadline)
        self._queue(chain, tail, priority)
        return num_stored + self._to_disk(chain, planes, tail.depth if tail else 0, priority, deadline)

    def commit_snapshot(
        self,
        tokens: Sequence[int],
        planes: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        *,
        priority: int,
        deadline: float,
    ) -> bool:
        """Store the snapshot behind all of `tokens`, whose blocks were committed; False when there is no room for it."""
        tiers = self._tiers
        tiers.settle()
        block_size = tiers.settings.block_size
        point = point_at(tokens, block_size, tiers.root, tiers.settings.hash_function)
        above = tiers.pool.match(point.chain) if planes else None
        rest = range(len(point.chain) * block_size, len(tokens))
        if rest.start < self.first:
            return False
        is_hung = not planes or (above.depth if above else 0) == len(point.chain)
        with tiers.pinned(above):
            if is_hung and tiers.reserve(tiers.snapshot_codec.num_bytes, deadline):
                self._snapshot_to_ram(point, above, (states, planes, rest), priority)
                return True
        return self._snapshot_to_disk(point, (states, planes, rest), priority, deadline)

    def _snapshot_to_ram(
        self,
        point: Point,
        above: Block | None,
        held: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], range],
        priority: int,
    ) -> None:
        tiers = self._tiers
        chain = point.linked() if tiers.layout.planes else point.alone()
        block = tiers.pool.find(above, point.digest, chain.block_tokens(len(chain) - 1))
        if block is None:
            buffer = allocate(tiers.snapshot_codec.num_bytes)
            tiers.snapshot_codec.encode(*held, buffer)
            block = tiers.pool.insert(above, chain, buffer, priority).blocks[0]
            tiers.snapshot_starts.add(len(point.chain))
        tiers.pool.touch(block, priority)
        buffer = block.run.buffer
        tiers.queue(lambda done: SnapshotJob(point, buffer, priority, done), block)

    def _snapshot_to_disk(
        self,
        point: Point,
        held: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor], range],
        priority: int,
        deadline: float,
    ) -> bool:
        """Pass a snapshot to the disk alone, one at a time."""
        tiers = self._tiers
        tiers.evicted.add(point.digest)
        if tiers.disk is None or not tiers.disk.is_writable or not self._drained(deadline):
            return False
        buffer = allocate(tiers.snapshot_codec.num_bytes)
        tiers.snapshot_codec.encode(*held, buffer)
        assert tiers.writer is not None
        return tiers.writer.submit(SnapshotJob(point, buffer, priority))

    def _to_ram(
        self, chain: Chain, planes: Sequence[torch.Tensor], priority: int, deadline: float
    ) -> tuple[Block | None, int]:
        """Store in RAM what fits, from the root on. The chain's last block in RAM, and how many are new."""
        pool = self._tiers.pool
        self._tiers.settle()
        tail = pool.match(chain)
        num_before = tail.depth if tail else 0
        if tail:
            pool.touch(tail, priority)
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
        tiers = self._tiers
        start = tail.depth if tail else 0
        if start * chain.block_size < self.first:
            return None
        num_blocks = self._make_room(tail, min(tiers.run_blocks, len(chain) - start), deadline)
        if num_blocks == 0:
            return None
        buffer = allocate(num_blocks * tiers.codec.block_bytes)
        tiers.codec.encode(planes, start * chain.block_size, buffer)
        return tiers.pool.insert(tail, chain.prefix(start + num_blocks), buffer, priority)

    def _make_room(self, tail: Block | None, num_blocks: int, deadline: float) -> int:
        """Evict for at most `num_blocks` after `tail`, which stays; returns for how many there is room now."""
        with self._tiers.pinned(tail):
            while num_blocks and not self._tiers.reserve(
                num_blocks * self._tiers.codec.block_bytes, deadline
            ):
                num_blocks //= 2
        return num_blocks

    def _queue(self, chain: Chain, tail: Block | None, priority: int) -> None:
        """Have what RAM holds of a chain written, and all of the chain marked on disk as used now."""
        size = self._tiers.codec.block_bytes
        segments = tuple(Segment(run.start, count, run.buffer[: count * size]) for run, count in spans(tail))
        self._tiers.queue(lambda done: WriteJob(chain, segments, priority, done), tail)

    def _to_disk(
        self, chain: Chain, planes: Sequence[torch.Tensor], start: int, priority: int, deadline: float
    ) -> int:
        """Pass the blocks from `start` on, for which RAM had no room, to the disk alone; returns how many."""
        if start == len(chain):
            return 0
        tiers, size = self._tiers, self._tiers.codec.block_bytes
        tiers.evicted.add(chain.hashes[start])
        if tiers.writer is None or tiers.disk is None or not self._drained(deadline):
            return 0
        first = start = max(start, tiers.disk.num_covered(chain))
        if start * chain.block_size < self.first:
            return 0
        while start < len(chain) and tiers.disk.num_covered(chain) >= start and tiers.disk.is_writable:
            end = min(start + tiers.run_blocks, len(chain))
            if self._staging is None:
                self._staging = allocate(tiers.run_blocks * size)
            buffer = self._staging[: (end - start) * size]
            tiers.codec.encode(planes, start * chain.block_size, buffer)
            segment = Segment(start, end - start, buffer)
            if not tiers.writer.submit(WriteJob(chain.prefix(end), (segment,), priority, lambda: None)):
                break
            start = end
            if not self._drained(deadline):
                break
        return start - first

    def _drained(self, deadline: float) -> bool:
        """Whether the writer has written everything, waiting for it until the deadline."""
        writer = self._tiers.writer
        return writer is not None and writer.drain(max(0.0, deadline - time.perf_counter()))
