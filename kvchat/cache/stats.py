"""What the cache was asked for, and what it hit, stored, evicted and saved; counts only, knows no blocks."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Totals over some span of time: a turn, a process, or all time.

    `live_tokens`, `ram_tokens` and `disk_tokens` are the asked tokens that were found there. `saved_s` is the time
    that computing those would have taken; `net_saved_s` takes off what loading and storing took.
    """

    asked_tokens: int = 0
    live_tokens: int = 0
    ram_tokens: int = 0
    disk_tokens: int = 0
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
        return self.live_tokens + self.ram_tokens + self.disk_tokens

    @property
    def hit_rate(self) -> float:
        """Of the asked tokens, the part that did not have to be computed; 0 when nothing was asked."""
        return self.hit_tokens / self.asked_tokens if self.asked_tokens else 0.0

    @property
    def net_saved_s(self) -> float:
        """Seconds saved, less what loading and storing took."""
        return self.saved_s - self.load_s - self.store_s

    def __add__(self, other: CacheStats) -> CacheStats:
        return CacheStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: CacheStats) -> CacheStats:
        return CacheStats(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CacheStats:
        """The totals that `to_json` wrote; what it does not know stays zero."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: number for key, number in value.items() if key in known})


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
