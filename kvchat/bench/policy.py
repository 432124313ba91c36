"""What is forgotten, replayed: a trace through the code that evicts, and through one that knows the future; no model.

The very policies of the cache say which run goes. The optimum knows the trace: nobody can do better by tokens but by rare ties.
Seconds are those of `cache.worth.Cost`: only what they are in relation to one another matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvchat.bench.simulation import Geometry, Optimum, Pool
from kvchat.bench.traces import Request, Trace, read
from kvchat.cache.base import Policy
from kvchat.cache.policy import LeastRecentlyUsed, make_policy
from kvchat.cache.worth import USUAL_COST, Cost

BUDGETS = (0.01, 0.03, 0.1)
"""Parts of a trace's unique blocks that there is room for."""
RUN_TOKENS = 512


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
    clock = TraceClock()
    ours = make_policy("kvchat", trace.block_size, cost=cost, clock=clock)
    policies: tuple[Policy, ...] = (LeastRecentlyUsed(clock), ours, Optimum(trace))
    geometry = Geometry(num_blocks, max(1, min(RUN_TOKENS // trace.block_size, num_blocks // 8)))
    lru, kvchat, optimum = (hits(trace, replay(trace, geometry, policy, clock), cost) for policy in policies)
    return lru, kvchat, optimum


class TraceClock:
    """The time in a trace, in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def replay(trace: Trace, geometry: Geometry, policy: Policy, clock: TraceClock) -> Iterator[int]:
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


def _pair(found: Hits) -> tuple[float, float]:
    return found.tokens, found.seconds


def _part(low: float, ours: float, high: float) -> float:
    return (ours - low) / (high - low) if high > low else 0.0
