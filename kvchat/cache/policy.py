"""What to forget first: what is worth least (see `worth`), or the least recently used; the one place that knows which there are."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from kvchat.cache.base import Forecast, Policy
from kvchat.cache.rates import Rates
from kvchat.cache.worth import USUAL_COST, Clock, Cost, Worth


class LeastRecentlyUsed(Policy):
    """Runs of the lowest priority first, and of those the one that was not used for longest."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._by_priority: dict[int, OrderedDict[Any, float]] = {}
        self._priorities: dict[Any, int] = {}

    def asked(self, hashes: Sequence[Any], priority: int = 0) -> None:
        """Who asks makes no difference here."""

    def added(self, run: Any) -> None:
        self._by_priority.setdefault(run.priority, OrderedDict())[run] = self._clock()
        self._priorities[run] = run.priority

    def used(self, run: Any) -> None:
        self.removed(run)
        self.added(run)

    def removed(self, run: Any) -> None:
        del self._by_priority[self._priorities.pop(run)][run]

    def victim(self, can_go: Callable[[Any], bool]) -> Any | None:
        return next(
            (
                run
                for priority in sorted(self._by_priority)
                for run in self._by_priority[priority]
                if can_go(run)
            ),
            None,
        )

    def forecast(self, can_go: Callable[[Any], bool], block_size: int) -> Forecast | None:
        run = self.victim(can_go)
        if run is None:
            return None
        age_s = self._clock() - self._by_priority[self._priorities[run]][run]
        start, end = run.start * block_size, (run.start + run.num_blocks) * block_size
        return Forecast(start, end, run.num_bytes, max(0.0, age_s), 0, None, None)


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
