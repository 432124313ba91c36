"""What the cache was asked for, and what it hit, stored, evicted and saved; counts only, knows no blocks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_OF_TIER = "_tokens"


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Totals over some span of time: a turn, a process, or all time.

    `live_tokens` and, by the tier's name, `tier_tokens` are the asked tokens that were found there. `saved_s` is the
    time that computing those would have taken; `net_saved_s` takes off what loading and storing took.
    """

    asked_tokens: int = 0
    live_tokens: int = 0
    tier_tokens: Mapping[str, int] = field(default_factory=dict)
    stored_blocks: int = 0
    stored_bytes: int = 0
    written_bytes: int = 0
    evicted_blocks: int = 0
    evicted_files: int = 0
    corrupt_files: int = 0
    load_s: float = 0.0
    store_s: float = 0.0
    saved_s: float = 0.0

    @property
    def hit_tokens(self) -> int:
        """Tokens that did not have to be computed."""
        return self.live_tokens + sum(self.tier_tokens.values())

    @property
    def hit_rate(self) -> float:
        """Of the asked tokens, the part that did not have to be computed; 0 when nothing was asked."""
        return self.hit_tokens / self.asked_tokens if self.asked_tokens else 0.0

    @property
    def net_saved_s(self) -> float:
        """Seconds saved, less what loading and storing took."""
        return self.saved_s - self.load_s - self.store_s

    def __add__(self, other: CacheStats) -> CacheStats:
        return _combined(self, other, 1)

    def __sub__(self, other: CacheStats) -> CacheStats:
        return _combined(self, other, -1)

    def counts(self) -> dict[str, Any]:
        """All numbers by name; a tier's is called `ram_tokens` for the tier `ram`. `from_counts` reads them back."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tier_tokens"}
        return numbers | {f"{tier}{_OF_TIER}": count for tier, count in self.tier_tokens.items()}

    @classmethod
    def from_counts(cls, counts: Mapping[str, Any]) -> CacheStats:
        """The totals that `counts` gave; what is not known stays zero."""
        known = {f.name for f in fields(cls)} - {"tier_tokens"}
        tiers = {
            name.removesuffix(_OF_TIER): int(count)
            for name, count in counts.items()
            if name.endswith(_OF_TIER) and name not in known
        }
        return cls(**{name: count for name, count in counts.items() if name in known}, tier_tokens=tiers)


def _combined(one: CacheStats, other: CacheStats, sign: int) -> CacheStats:
    """The one and `sign` times the other, number by number."""
    a, b = one.counts(), other.counts()
    sums = {name: a.get(name, 0) + sign * b.get(name, 0) for name in a | b}
    return CacheStats.from_counts({name: number for name, number in sums.items() if number})


@dataclass(frozen=True, slots=True)
class TierUse:
    """How much of a tier's budget is used, in bytes. Of several models together, where these share it."""

    tier: str
    used_bytes: int
    budget_bytes: int


class StatsCounter:
    """Counts over the process and over the turn; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = CacheStats()
        self._at_turn_start = CacheStats()

    def add(self, change: CacheStats) -> None:
        """Count something that has happened."""
        with self._lock:
            self._process += change

    def begin_turn(self) -> None:
        """What is counted from here on belongs to a new turn."""
        with self._lock:
            self._at_turn_start = self._process

    @property
    def process(self) -> CacheStats:
        """Totals since the process began."""
        with self._lock:
            return self._process

    @property
    def turn(self) -> CacheStats:
        """Totals since `begin_turn`."""
        with self._lock:
            return self._process - self._at_turn_start


class Rate:
    """A smoothed rate in bytes a second, from what was measured; `guess` until then."""

    def __init__(self, guess: float) -> None:
        self.bytes_per_s = guess
        self._is_guess = True

    def measure(self, num_bytes: int, seconds: float) -> None:
        """Take in that so many bytes took so long."""
        if num_bytes == 0 or seconds <= 0:
            return
        now = num_bytes / seconds
        self.bytes_per_s = now if self._is_guess else 0.7 * self.bytes_per_s + 0.3 * now
        self._is_guess = False
