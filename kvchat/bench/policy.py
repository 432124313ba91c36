"""What is forgotten, replayed: a trace through the code that evicts, and through one that knows the future; no model.

Runs are cut as the RAM tier cuts them, and the very policies of the cache say which goes. The optimum is Belady's, leaf
first: the leaf goes that is asked for latest. It knows the trace, nobody can do better by tokens but by rare ties.
Seconds are those of `cache.policy.Cost`: only what they are in relation to one another matters.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvchat.bench.traces import Request, Trace, read
from kvchat.cache.base import Forecast, Policy
from kvchat.cache.policy import USUAL_COST, Cost, LeastRecentlyUsed, Worth

BUDGETS = (0.01, 0.03, 0.1)
"""Parts of a trace's unique blocks that there is room for."""
RUN_TOKENS = 512


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

    def lineage(self) -> Iterator[SimulatedRun]:
        """The run, its parent, and so on to the root."""
        run: SimulatedRun | None = self
        while run:
            yield run
            run = run.parent


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
        path = list(tail.lineage()) if tail else []
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
        for run in tail.lineage() if tail else ():
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
        self._policy.removed(run)
        for block in run.blocks:
            del self._by_block[block]
        self._num_free += len(run.blocks)
        if run.parent:
            run.parent.num_children -= 1


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
        """A run is here now."""
        self._num_children[run] = 0
        if run.parent:
            self._num_children[run.parent] += 1
        self.used(run)

    def used(self, run: Any) -> None:
        """A run was asked for: when next?"""
        times = self._times[run.blocks[0]]
        while times and times[-1] <= self._now:
            times.pop()
        self._next[run] = times[-1] if times else math.inf
        self._push(run)

    def removed(self, run: Any) -> None:
        """A run is gone."""
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


@dataclass(frozen=True, slots=True)
class Hits:
    """Of what was asked the part that was held: of the tokens, and of the seconds that computing all would take."""

    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One budget: what each policy hits, and which part of the gap between `lru` and `optimum` ours closes."""

    trace: str
    budget: float
    num_blocks: int
    lru: Hits
    kvchat: Hits
    optimum: Hits

    @property
    def closed(self) -> Hits:
        """Parts of the gap; 0 where there is none."""
        return Hits(
            *(_part(*three) for three in zip(*map(_pair, (self.lru, self.kvchat, self.optimum)), strict=True))
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {"bench": "policy", **asdict(self), "closed": asdict(self.closed)}

    def cells(self) -> dict[str, str]:
        """What a table shows."""
        found = {"lru": self.lru, "kvchat": self.kvchat, "optimum": self.optimum}
        tokens = {f"{name} tokens": f"{hits.tokens:.4f}" for name, hits in found.items()}
        seconds = {f"{name} s": f"{hits.seconds:.4f}" for name, hits in found.items()}
        gap = {"gap closed": f"{self.closed.tokens:.0%} of tokens, {self.closed.seconds:.0%} of seconds"}
        return {"room": f"{self.budget:.1%} ({self.num_blocks} blocks)", **tokens, **seconds, **gap}


def measure(
    path: Path, *, budgets: Sequence[float] = BUDGETS, cost: Cost = USUAL_COST
) -> Iterator[PolicyRow]:
    """A row a budget, as it is replayed. Raises UsageError for what is no trace."""
    trace = read(path)
    num_unique = trace.num_unique
    for budget in budgets:
        room = max(1, int(budget * num_unique))
        yield PolicyRow(path.name, budget, room, *compare(trace, room, cost))


def compare(trace: Trace, num_blocks: int, cost: Cost) -> tuple[Hits, Hits, Hits]:
    """What LRU, ours and the optimum hit with room for so many blocks."""
    clock = Clock()
    ours = Worth(trace.block_size, cost=cost, clock=clock)
    policies: tuple[Policy, ...] = (LeastRecentlyUsed(clock), ours, Optimum(trace))
    geometry = Geometry(num_blocks, max(1, min(RUN_TOKENS // trace.block_size, num_blocks // 8)))
    lru, kvchat, optimum = (hits(trace, replay(trace, geometry, policy, clock), cost) for policy in policies)
    return lru, kvchat, optimum


class Clock:
    """The time in a trace, in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def replay(trace: Trace, geometry: Geometry, policy: Policy, clock: Clock) -> Iterator[int]:
    """For each request how many of its blocks were held when it came."""
    pool = Pool(geometry, policy)
    for request in trace.requests:
        clock.now_s = request.time_s
        yield pool.num_held(request.blocks[: request.num_asked])
        pool.lease(request.blocks[: request.num_asked])
        pool.store(request.blocks)


def hits(trace: Trace, held: Iterator[int], cost: Cost) -> Hits:
    """What a replay hit, of all that was asked."""
    asked_tokens = hit_tokens = 0
    asked_s = hit_s = 0.0
    for request, num_held in zip(trace.requests, held, strict=True):
        asked, hit = _asked_tokens(request, trace), num_held * trace.block_size
        asked_tokens += asked
        hit_tokens += hit
        asked_s += cost.of(0, asked)
        hit_s += cost.of(0, hit)
    return Hits(hit_tokens / max(1, asked_tokens), hit_s / asked_s if asked_s else 0.0)


def _asked_tokens(request: Request, trace: Trace) -> int:
    return request.num_asked * trace.block_size


def _can_go(run: SimulatedRun) -> bool:
    return not run.num_children and not run.num_pins


def _pair(found: Hits) -> tuple[float, float]:
    return found.tokens, found.seconds


def _part(low: float, ours: float, high: float) -> float:
    return (ours - low) / (high - low) if high > low else 0.0
