"""What to forget first: what is worth least (see `worth`), or the least recently used; the one place that knows which there are."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any

from kvchat.cache.base import Forecast, Policy
from kvchat.cache.rates import Rates
from kvchat.cache.worth import USUAL_COST, Clock, Cost, Worth


class LeastRecentlyUsed(Policy):
    """Of the lowest priority there is the leaf that was used longest ago; whoever used a run used what it continues."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._used: dict[Any, tuple[int, float]] = {}  # when in order, and when by the clock
        self._leaves: list[tuple[int, int, int, Any]] = []
        self._num_uses = self._num_pushed = 0

    def asked(self, hashes: Sequence[Any], priority: int = 0) -> None:
        """Who asks makes no difference here."""

    def added(self, run: Any) -> None:
        self.used(run)

    def used(self, run: Any) -> None:
        self._num_uses += 1
        self._used[run] = self._num_uses, self._clock()
        self._push(run)

    def removed(self, run: Any) -> None:
        used = self._used.pop(run)
        if run.parent in self._used:
            self._used[run.parent] = max(self._used[run.parent], used)
            self._push(run.parent)

    def victim(self, can_go: Callable[[Any], bool]) -> Any | None:
        found, passed = None, []
        while self._leaves and found is None:
            priority, stamp, _, run = first = heapq.heappop(self._leaves)
            if self._is_leaf(run) and (priority, stamp) == (run.priority, self._used[run][0]):
                passed.append(first)
                found = run if can_go(run) else None
        for each in passed:
            heapq.heappush(self._leaves, each)
        return found

    def forecast(self, can_go: Callable[[Any], bool], block_size: int) -> Forecast | None:
        run = self.victim(can_go)
        if run is None:
            return None
        age_s = self._clock() - self._used[run][1]
        start, end = run.start * block_size, (run.start + run.num_blocks) * block_size
        return Forecast(start, end, run.num_bytes, max(0.0, age_s), 0, None, None)

    def _is_leaf(self, run: Any) -> bool:
        return run in self._used and not run.num_children

    def _push(self, run: Any) -> None:
        """Put a leaf where it belongs now; where it stood before it is passed over."""
        if len(self._leaves) > 4 * len(self._used) + 1024:
            leaves = (each for each in self._used if self._is_leaf(each))
            self._leaves = [(each.priority, self._used[each][0], 0, each) for each in leaves]
            heapq.heapify(self._leaves)
        if self._is_leaf(run):
            self._num_pushed += 1
            heapq.heappush(self._leaves, (run.priority, self._used[run][0], self._num_pushed, run))


def make_policy(
    name: str,
    block_size: int,
    *,
    cost: Cost = USUAL_COST,
    rates: Rates | None = None,
    clock: Clock = time.time,
) -> Policy:
    """The policy called `name`, `kvchat` or `lru`, of a tier that holds blocks of so many tokens."""

    def saved_s(run: Any) -> float:
        first = 0 if run.is_state else run.start  # a snapshot saves all that is before it
        tokens = first * block_size, (run.start + run.num_blocks) * block_size
        return cost.saved(*tokens, run.num_bytes)

    return Worth(cost_of=saved_s, rates=rates, clock=clock) if name == "kvchat" else LeastRecentlyUsed(clock)
