"""What a run is worth that is held: the seconds that it may still save for its bytes; the run of the least goes first.

Knows neither torch nor files: only runs, as `base.Policy` says, which chains were used, and a clock.

By worth: a run's chance to be asked for again, a second that it is held (see `rates`), times the seconds that computing
it takes, less those that loading it takes, by byte. The runs that count as the same kind stand in one queue, the one used
longest ago first, for the chance falls with age; so only the heads of some hundred queues are compared, however many runs
there are. A run that others continue is in no queue.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.cache.base import Forecast, Policy
from kvchat.cache.rates import Rates, Tip, TipKind, Use

FACTORS = (1.0, 4.0, 16.0)
"""So many times as much is a run worth by its priority: 0, shared by many conversations, pinned. All age alike."""
SHARED = 1
PASSING_FACTOR = 1e-9
"""Of what has a priority below 0: it goes before all else, whatever it is worth."""

_LEAST_SAVED = 0.02  # of computing: so that among what hardly pays the order is still that of computing
_BINS_A_DOUBLING = 4
_RANKS_LAST_S = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing tokens takes, as far as the policy needs it: in seconds a token at the root; and what loading them takes.

    Attention makes later ones dearer: behind `doubling_tokens` one takes twice as long. Bytes are loaded at `bytes_per_s`.
    """

    token_s: float = 1e-3
    doubling_tokens: float = 16_384.0
    bytes_per_s: float = math.inf

    def of(self, start: int, end: int) -> float:
        """Seconds for the tokens [start, end)."""
        return (end - start) * self.token_s * (1 + (start + end) / 2 / self.doubling_tokens)

    def saved(self, start: int, end: int, num_bytes: int) -> float:
        """Seconds that holding the tokens [start, end) in so many bytes saves: of computing, less loading. Never nothing."""
        computed_s = self.of(start, end)
        return max(_LEAST_SAVED * computed_s, computed_s - num_bytes / self.bytes_per_s)


USUAL_COST = Cost()


_Key = tuple[TipKind, bool, int, int]


Clock = Callable[[], float]
Told = Callable[[Any], tuple[int, Tip]]
"""When a run was used last, as a number that grows, and by which tip: for runs that are used where nobody looks."""


class _Held:
    """What is known of a run: who used it last, and in which order."""

    __slots__ = ("key", "run", "stamp", "tip", "value")

    tip: Tip
    stamp: int

    def __init__(self, run: Any, value: int) -> None:
        self.run = run
        self.value = value  # of its seconds a byte, the logarithm, rounded
        self.key: _Key | None = None

    def current_key(self) -> _Key:
        """The queue that it belongs in now."""
        return self.tip.kind, self.tip.is_left, self.run.priority, self.value


class Worth(Policy):
    """The run of the least expected seconds saved a byte first. Not safe for threads."""

    def __init__(
        self,
        *,
        cost_of: Callable[[Any], float],
        rates: Rates | None = None,
        clock: Clock = time.time,
        told: Told | None = None,
    ) -> None:
        """`cost_of` are the seconds that holding a run saves; `rates` is what was learned before.

        With `told` it is asked who used a run last; without, it was the chain that was `asked` for.
        """
        self.rates = rates or Rates()
        self._cost_of = cost_of
        self._clock = clock
        self._told = told or self._latest
        self._tip: Tip | None = None
        self._held: dict[Any, _Held] = {}
        self._queues: dict[_Key, list[tuple[int, int, _Held]]] = {}
        self._heads: list[tuple[float, int, _Key]] = []
        self._tails: dict[Tip, Any] = {}
        self._num_queued = self._num_pushed = 0
        self._stamp = 0
        self._ranked = (-math.inf, 0)

    def asked(self, hashes: Sequence[Any], priority: int = 0) -> None:
        if hashes:  # of less than a block nothing is held, and nothing is to be learned
            self.heard(self.rates.seen(hashes, self._clock(), is_shared=priority == SHARED))

    def heard(self, use: Use) -> None:
        """A chain was used, here or elsewhere."""
        self._tip = self.rates.take(use)
        left = self.rates.left
        tail = self._held.get(self._tails.pop(left, None)) if left else None
        if tail:
            self._queue(tail)

    def added(self, run: Any) -> None:
        held = self._held[run] = _Held(run, self._value(run))
        self.used(run)
        self._tails[held.tip] = run

    def used(self, run: Any) -> None:
        held = self._held.get(run)
        if held is None:  # it is told of once nothing continues it
            return
        held.stamp, held.tip = self._told(run)
        held.key = None
        self._queue(held)

    def removed(self, run: Any) -> None:
        held = self._held.pop(run, None)
        if held is None:
            return
        if self._tails.get(held.tip) is run:
            del self._tails[held.tip]
        if run.parent is None:
            return
        if run.parent not in self._held:
            self.added(run.parent)
        parent = self._held[run.parent]
        # Whoever used a run used what it continues, be it told or not.
        parent.tip, parent.stamp = max(parent.tip, held.tip, key=_used_s), max(parent.stamp, held.stamp)
        parent.key = None
        self._tails.setdefault(parent.tip, run.parent)
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
        age_s = abs(self._clock() - tip.used_s)
        chance = self.rates.chance(self.rates.level(tip), age_s, 86_400.0)
        start, end = run.start * block_size, (run.start + run.num_blocks) * block_size
        return Forecast(start, end, run.num_bytes, age_s, tip.num_turns + 1, chance, self._cost_of(run))

    def _latest(self, run: Any) -> tuple[int, Tip]:
        self._stamp += 1
        self._tip = self._tip or self.rates.use((), self._clock())
        return self._stamp, self._tip

    def _value(self, run: Any) -> int:
        """Of the seconds that a run saves by byte, the logarithm, rounded."""
        return round(_BINS_A_DOUBLING * math.log2(self._cost_of(run) / max(1, run.num_bytes)))

    def _queue(self, held: _Held) -> None:
        """Put a run into its queue, unless others continue it or it stands there."""
        key = held.current_key()
        if held.run.num_children or held.key == key:
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
            if is_here and not held.run.num_children and held.current_key() == key:
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
        # What was used at a time that is still to come was so when the clock was wrong, and is no younger for that.
        age_s = abs(self._ranked[0] - held.tip.used_s) if self._ranked[0] > -math.inf else 0.0
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


def _used_s(tip: Tip) -> float:
    return tip.used_s
