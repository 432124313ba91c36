"""What to forget first: by the seconds that a run may still save for its bytes, or the least recently used.

Knows neither torch nor files: only runs, as `base.Policy` says, which chains were used, and a clock.

By worth: a run's chance to be asked for again, a second that it is held (see `rates`), times the seconds that computing
it takes, by byte. The runs that count as the same kind stand in one queue, the one used longest ago first, for the
chance falls with age; so only the heads of some hundred queues are compared, however many runs there are. A run that
others continue is in no queue.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.cache.base import Forecast, Policy
from kvchat.cache.rates import Rates, Tip, TipKind

FACTORS = (1.0, 4.0, 16.0)
"""So many times as much is a run worth by its priority: 0, shared by many conversations, pinned. All age alike."""
SHARED = 1
PASSING_FACTOR = 1e-9
"""Of what has a priority below 0: it goes before all else, whatever it is worth."""

_BINS_A_DOUBLING = 4
_RANKS_LAST_S = 1.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing tokens takes, as far as the policy needs it: in seconds a token at the root.

    Attention makes later ones dearer: behind `doubling_tokens` one takes twice as long.
    """

    token_s: float = 1e-3
    doubling_tokens: float = 16_384.0

    def of(self, start: int, end: int) -> float:
        """Seconds for the tokens [start, end)."""
        return (end - start) * self.token_s * (1 + (start + end) / 2 / self.doubling_tokens)


USUAL_COST = Cost()


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


_Key = tuple[TipKind, bool, int, int]


class _Held:
    """What is known of a run: who used it last, in which order, and how many runs continue it."""

    __slots__ = ("key", "num_children", "run", "stamp", "tip", "value")

    def __init__(self, run: Any, tip: Tip, stamp: int, value: int) -> None:
        self.run = run
        self.tip = tip
        self.stamp = stamp
        self.value = value  # of its seconds a byte, the logarithm, rounded
        self.num_children = 0
        self.key: _Key | None = None

    def current_key(self) -> _Key:
        """The queue that it belongs in now."""
        return self.tip.kind, self.tip.is_left, self.run.priority, self.value


class Worth(Policy):
    """The run of the least expected seconds saved a byte first. Not safe for threads."""

    def __init__(
        self,
        block_size: int,
        *,
        cost: Cost = USUAL_COST,
        rates: Rates | None = None,
        clock: Clock = time.time,
    ) -> None:
        """`rates` is what was learned before; several tiers may share them."""
        self.rates = rates or Rates()
        self._block_size = block_size
        self._cost = cost
        self._clock = clock
        self._tip: Tip | None = None
        self._held: dict[Any, _Held] = {}
        self._queues: dict[_Key, list[tuple[int, int, _Held]]] = {}
        self._heads: list[tuple[float, int, _Key]] = []
        self._tails: dict[Tip, Any] = {}
        self._num_queued = self._num_pushed = 0
        self._stamp = 0
        self._ranked = (-math.inf, 0)

    def asked(self, hashes: Sequence[Any], priority: int = 0) -> None:
        self._tip = self.rates.use(hashes, self._clock(), is_shared=priority == SHARED)
        left = self.rates.left
        tail = self._held.get(self._tails.pop(left, None)) if left else None
        if tail:
            self._queue(tail)

    def added(self, run: Any) -> None:
        tip = self._tip or self.rates.use((), self._clock())
        self._held[run] = _Held(run, tip, 0, self._value(run))
        self._tails[tip] = run
        if run.parent is not None:
            self._held[run.parent].num_children += 1
        self.used(run)

    def used(self, run: Any) -> None:
        held = self._held[run]
        self._stamp += 1
        held.stamp = self._stamp
        held.tip = self._tip or held.tip
        held.key = None
        self._queue(held)

    def removed(self, run: Any) -> None:
        held = self._held.pop(run)
        if self._tails.get(held.tip) is run:
            del self._tails[held.tip]
        if run.parent is not None:
            parent = self._held[run.parent]
            parent.num_children -= 1
            self._queue(parent)

    def victim(self, can_go: Callable[[Any], bool]) -> Any | None:
        self._rank_heads()
        passed: list[_Held] = []
        found = None
        while self._heads and found is None:
            first = _, stamp, key = heapq.heappop(self._heads)  # before `_head` offers another one
            held = self._head(key)
            if held is None:
                continue
            if held.stamp != stamp:
                self._offer(key, held)
                continue
            heapq.heappush(self._heads, first)
            if can_go(held.run):
                found = held.run
            else:
                heapq.heappop(self._queues[key])
                self._num_queued -= 1
                held.key = None
                passed.append(held)
        for held in passed:
            self._queue(held)
        return found

    def worth(self, run: Any) -> float:
        """Expected seconds saved a second of holding, by byte."""
        held = self._held[run]
        return self._rank(held.current_key(), held)

    def forecast(self, can_go: Callable[[Any], bool], block_size: int) -> Forecast | None:
        """The next victim, and what speaks for it."""
        run = self.victim(can_go)
        if run is None:
            return None
        tip = self._held[run].tip
        age_s = max(0.0, self._clock() - tip.used_s)
        chance = self.rates.chance(self.rates.level(tip), age_s, 86_400.0)
        start, end = run.start * block_size, (run.start + run.num_blocks) * block_size
        return Forecast(
            start, end, run.num_bytes, age_s, tip.num_turns + 1, chance, self._cost.of(start, end)
        )

    def _value(self, run: Any) -> int:
        """Of the seconds that a run saves by byte, the logarithm, rounded. A snapshot saves all that is before it."""
        first = 0 if run.is_state else run.start
        tokens = first * self._block_size, (run.start + run.num_blocks) * self._block_size
        return round(_BINS_A_DOUBLING * math.log2(self._cost.of(*tokens) / run.num_bytes))

    def _queue(self, held: _Held) -> None:
        """Put a run into its queue, unless others continue it or it stands there."""
        key = held.current_key()
        if held.num_children or held.key == key:
            return
        held.key = key
        queue = self._queues.setdefault(key, [])
        self._num_pushed += 1
        heapq.heappush(queue, (held.stamp, self._num_pushed, held))
        self._num_queued += 1
        if queue[0][2] is held:
            self._offer(key, held)
        if self._num_queued > 4 * len(self._held) + 1024:
            self._sweep()

    def _head(self, key: _Key) -> _Held | None:
        """The first of a queue that still belongs there; what does not is taken out."""
        queue = self._queues.get(key)
        while queue:
            stamp, _, held = queue[0]
            is_here = self._held.get(held.run) is held and held.stamp == stamp and held.key == key
            if is_here and not held.num_children and held.current_key() == key:
                return held
            heapq.heappop(queue)
            self._num_queued -= 1
            if is_here:
                held.key = None
                self._queue(held)
        self._queues.pop(key, None)
        return None

    def _rank_heads(self) -> None:
        """Rank the queues' heads anew where time has passed or something was learned."""
        now = self._clock()
        if self.rates.version == self._ranked[1] and 0 <= now - self._ranked[0] < _RANKS_LAST_S:
            return
        self._ranked = now, self.rates.version
        self._heads.clear()
        for key in list(self._queues):
            if held := self._head(key):
                self._offer(key, held)

    def _offer(self, key: _Key, held: _Held) -> None:
        heapq.heappush(self._heads, (self._rank(key, held), held.stamp, key))

    def _rank(self, key: _Key, held: _Held) -> float:
        age_s = self._ranked[0] - held.tip.used_s if self._ranked[0] > -math.inf else 0.0
        priority = min(held.run.priority, len(FACTORS) - 1)
        factor = FACTORS[priority] if priority >= 0 else PASSING_FACTOR
        worth = self.rates.worth(self.rates.level(held.tip), age_s)
        return float(factor * worth * 2.0 ** (key[3] / _BINS_A_DOUBLING))

    def _sweep(self) -> None:
        """Leave out what stands in a queue and no longer belongs there."""
        self._queues.clear()
        self._heads.clear()
        self._num_queued = 0
        for held in self._held.values():
            held.key = None
            self._queue(held)


def make_policy(
    name: str, block_size: int, *, rates: Rates | None = None, clock: Clock = time.time
) -> Policy:
    """The policy called `name`, `kvchat` or `lru`."""
    return Worth(block_size, rates=rates, clock=clock) if name == "kvchat" else LeastRecentlyUsed(clock)
