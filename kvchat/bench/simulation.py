"""A pool of blocks without their KV, which evicts as a policy says, and a policy that knows the future.

Runs are cut as the RAM tier cuts them. The optimum is Belady's, leaf first: the leaf goes that is asked for latest.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.bench.traces import Trace
from kvchat.cache.base import Forecast, Policy
from kvchat.cache.tree import lineage


class SimulatedRun:
    """Blocks of one chain that were stored together, without their KV."""

    __slots__ = ("blocks", "is_state", "num_bytes", "num_children", "num_pins", "parent", "priority", "start")

    def __init__(
        self, parent: SimulatedRun | None, start: int, blocks: Sequence[int], block_bytes: int
    ) -> None:
        """`blocks` are numbers, the first of them behind `start` others."""
        self.parent = parent
        self.start = start
        self.blocks = tuple(blocks)
        self.num_bytes = len(blocks) * block_bytes
        self.is_state = False
        self.priority = 0
        self.num_pins = 0
        self.num_children = 0

    @property
    def num_blocks(self) -> int:
        """Its blocks."""
        return len(self.blocks)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How much room there is, and how it is cut: blocks in all, and in one run at most."""

    num_blocks: int
    run_blocks: int
    block_bytes: int = 1


class Pool:
    """The RAM tier as far as its accounts: what it holds after each request, and nothing else."""

    def __init__(self, geometry: Geometry, policy: Policy) -> None:
        self._geometry = geometry
        self._policy = policy
        self._by_block: dict[int, SimulatedRun] = {}
        self._num_free = geometry.num_blocks

    def num_held(self, blocks: Sequence[int]) -> int:
        """How many of some blocks are held, from the first on."""
        held = self._by_block
        return next((at for at, block in enumerate(blocks) if block not in held), len(blocks))

    def lease(self, blocks: Sequence[int]) -> None:
        """Count what is held of a prompt as used."""
        self._policy.asked(blocks)
        at = self.num_held(blocks)
        self._use(self._by_block[blocks[at - 1]] if at else None)

    def store(self, blocks: Sequence[int]) -> None:
        """Count what is held of a chain as used, and store what is not, as far as there is room beside it."""
        self._policy.asked(blocks)
        at = self.num_held(blocks)
        tail = self._by_block[blocks[at - 1]] if at else None
        path = list(lineage(tail))
        self._use(tail)
        num_pinned = sum(run.num_blocks for run in path)
        for run in path:
            run.num_pins += 1
        while at < len(blocks) and (size := self._room_for(len(blocks) - at, num_pinned)):
            tail = self._add(tail, at, blocks[at : at + size])
            tail.num_pins += 1
            path.append(tail)
            num_pinned += size
            at += size
        for run in path:
            run.num_pins -= 1
        self._use(tail)

    def _use(self, tail: SimulatedRun | None) -> None:
        for run in lineage(tail):
            self._policy.used(run)

    def _room_for(self, num_blocks: int, num_pinned: int) -> int:
        """Evict for a run of so many blocks, or for half of them, and so on, beside what is pinned; returns for how many."""
        size = min(self._geometry.run_blocks, num_blocks)
        while size > self._geometry.num_blocks - num_pinned:
            size //= 2
        while self._num_free < size:
            self._evict()
        return size

    def _add(self, parent: SimulatedRun | None, start: int, blocks: Sequence[int]) -> SimulatedRun:
        run = SimulatedRun(parent, start, blocks, self._geometry.block_bytes)
        self._by_block.update(dict.fromkeys(blocks, run))
        self._num_free -= len(blocks)
        if parent:
            parent.num_children += 1
        self._policy.added(run)
        return run

    def _evict(self) -> None:
        run = self._policy.victim(_can_go)
        assert run is not None, "what is not pinned can go"
        for block in run.blocks:
            del self._by_block[block]
        self._num_free += len(run.blocks)
        if run.parent:
            run.parent.num_children -= 1
        self._policy.removed(run)


class Optimum(Policy):
    """The leaf first that is asked for latest: knows all requests, and is told of one after the other."""

    def __init__(self, trace: Trace) -> None:
        self._times: dict[int, list[int]] = defaultdict(list)  # by block, the latest first
        for number in range(len(trace.requests) - 1, -1, -1):
            request = trace.requests[number]
            for block in request.blocks[: request.num_asked]:
                self._times[block].append(number)
        self._now, self._calls = -1, -1
        self._next: dict[Any, float] = {}
        self._queue: list[tuple[float, int, int, Any]] = []
        self._num_children: dict[Any, int] = {}
        self._num_queued = 0

    def asked(self, hashes: Sequence[Any], priority: int = 0) -> None:
        """The next request is here, or its answer."""
        self._calls += 1
        self._now = self._calls // 2

    def added(self, run: Any) -> None:
        self._num_children[run] = 0
        if run.parent:
            self._num_children[run.parent] += 1
        self.used(run)

    def used(self, run: Any) -> None:
        times = self._times[run.blocks[0]]
        while times and times[-1] <= self._now:
            times.pop()
        self._next[run] = times[-1] if times else math.inf
        self._push(run)

    def removed(self, run: Any) -> None:
        del self._next[run], self._num_children[run]
        if run.parent:
            self._num_children[run.parent] -= 1
            self._push(run.parent)

    def victim(self, can_go: Callable[[Any], bool]) -> Any | None:
        """The leaf that is asked for latest, of those the deepest."""
        passed = []
        found = None
        while self._queue and found is None:
            latest, _, _, run = self._queue[0]
            is_here = self._next.get(run) == -latest and not self._num_children[run]
            if is_here and can_go(run):
                found = run
            else:
                heapq.heappop(self._queue)
                passed += [run] if is_here else []
        for run in passed:
            self._push(run)
        return found

    def forecast(self, can_go: Callable[[Any], bool], block_size: int) -> Forecast | None:
        """Nobody asks."""
        return None

    def _push(self, run: Any) -> None:
        if not self._num_children[run]:
            self._num_queued += 1
            heapq.heappush(self._queue, (-self._next[run], -run.start, self._num_queued, run))


def _can_go(run: SimulatedRun) -> bool:
    return not run.num_children and not run.num_pins
