"""How soon conversations are gone on with, learned from when they were: ages and counts alone; knows no run, no tier, no text.

Each use of a chain is a tip. A tip is continued when a later chain goes on from it. From the tips of before comes the
chance that one of a certain age is continued in the next stretch of time (ages are told apart by half octaves), and how
many times greater that chance is for its kind: how many turns came before, how quickly the last one did, whether many
share it. From these the index of Gittins, as Beckmann's LHD uses it for caches (NSDI'18): the best chance per second held.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NUM_AGES = 56  # half octaves from one second on: six years
SAME_USE_S = 2.0
"""What follows so soon is the same request going on."""

_NUM_LEVELS, _LEVELS_A_DOUBLING, _EVEN_LEVEL = 49, 4, 32
_LEFT_BEHIND = 20  # levels down: what branched off is seldom taken up again
_EVERY = 64
_MOST_TIPS = 8192
_PRIOR_CHANCE, _PRIOR_TIPS, _PRIOR_RATIO = 0.04, 4.0, 5.0
_MOST_CHANCE = 0.95
_EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(NUM_AGES) / 2)])

Floats = npt.NDArray[np.float64]


class TipKind(NamedTuple):
    """What tips have in common: each field a small number whose effect on the chance is learned.

    `turns` before it, at most 6; `pace`: how long the last turn was in coming, 0 for the first turn; `shared`: 1 if
    many conversations begin with it.
    """

    turns: int
    pace: int
    shared: int


class Use(NamedTuple):
    """That a chain was used: what it is found by later, its last block's hash first, and by what it was found to go on from.

    `before` is empty for a chain that goes on from nothing that is known; `is_shared` if many conversations begin with all of it.
    """

    names: tuple[Any, ...]
    before: Any
    time_s: float
    is_shared: bool


_NUMBERLESS = -1


class Tip:
    """One use of a chain, at `used_s`; `is_left` once another one went on from it, `heir` the one that has all of it."""

    __slots__ = ("heir", "is_left", "kind", "last", "num_turns", "number", "used_s")

    def __init__(self, number: int, kind: TipKind, num_turns: int, used_s: float) -> None:
        self.number = number
        self.kind = kind
        self.num_turns = num_turns
        self.used_s = used_s
        self.is_left = False
        self.last: Hashable = None
        self.heir: Tip | None = None

    def again(self, used_s: float) -> Tip:
        """The same, used later than anybody has told."""
        return Tip(_NUMBERLESS, self.kind, self.num_turns, used_s)


def unlogged_tip(used_s: float, *, is_later: bool, is_shared: bool) -> Tip:
    """What is assumed of a chain of which nothing is known but when it was used, and whether something stands before it."""
    turns = 2 if is_later else 0
    return Tip(_NUMBERLESS, TipKind(turns, 0, int(is_shared)), turns, used_s)


class Rates:
    """Learns from every use. Not safe for threads. The same uses at the same times give the same rates."""

    def __init__(self) -> None:
        self._by_digest: dict[Any, Tip] = {}
        self._digests: deque[tuple[Any, Tip]] = deque()
        self._rows: deque[list[float]] = deque(maxlen=_MOST_TIPS)  # [used_s, gap_s or NaN, *kind]
        self._num_uses = 0
        self._fitted = _NUMBERLESS
        self.left: Tip | None = None
        """The tip that was left by the last use, which went on from it."""
        self._version = 0
        self._due_s: float | None = None  # the time as of which all that was learned is to be fitted
        self._fit(0.0)

    @property
    def version(self) -> int:
        """Changes with the rates."""
        self._settle()
        return self._version

    def use(self, hashes: Sequence[Hashable], now_s: float, *, is_shared: bool = False) -> Tip:
        """A chain, by its blocks' hashes, was used; `is_shared` if many conversations begin with all of it."""
        return self.take(self.seen(hashes, now_s, is_shared=is_shared))

    def seen(self, hashes: Sequence[Hashable], now_s: float, *, is_shared: bool = False) -> Use:
        """What a use of a chain is to those who know what is known here; changes nothing."""
        known = self._by_digest
        before = next((digest for digest in reversed(hashes) if digest in known), b"")
        return Use(_names(hashes), before, now_s, is_shared)

    def take(self, use: Use) -> Tip:
        """Learn from a use."""
        self._settle()
        tip = self._taken(use)
        if self._num_uses % _EVERY == 0 and tip.number == self._num_uses - 1 != self._fitted:
            self._fit(use.time_s)
        return tip

    def take_all(self, uses: Sequence[Use], now_s: float) -> None:
        """Learn from many uses of before, in their order; fitted once somebody asks, which may be long after."""
        for use in uses:
            self._taken(use)
        if uses:
            self._due_s = now_s

    def tip_of(self, digest: Hashable) -> Tip | None:
        """The last use of a chain that has the block of this hash, if the hash stands at the end of one; None if nobody knows."""
        tip = self._by_digest.get(digest)
        while tip and tip.heir:
            tip = tip.heir
        return tip

    def level(self, tip: Tip) -> int:
        """How good the chances of tips of this kind are, as a row of the table of worths."""
        self._settle()
        kind = tip.kind
        level = self._levels.get(kind)
        if level is None:
            ratio = math.prod(
                ratios.get(value, 1.0) for ratios, value in zip(self._ratios, kind, strict=True)
            )
            level = self._levels[kind] = round(_LEVELS_A_DOUBLING * math.log2(ratio)) + _EVEN_LEVEL
        return min(_NUM_LEVELS - 1, max(0, level - _LEFT_BEHIND * tip.is_left))

    def worth(self, level: int, age_s: float) -> float:
        """Continuations a second of holding, at best, that may be hoped for at an age; never greater later on."""
        self._settle()
        worth: float = self._worths[level][age_bin(age_s)]
        return worth

    def chance(self, level: int, age_s: float, within_s: float) -> float:
        """The chance of being continued within a time."""
        self._settle()
        hazards = self._hazards(level)
        first, last = age_bin(age_s), age_bin(age_s + within_s)
        widths = np.diff(_EDGES)
        parts = np.ones(last - first + 1)
        parts[-1] = min(1.0, (age_s + within_s - max(age_s, _EDGES[last])) / widths[last])
        return float(1.0 - np.prod((1.0 - hazards[first : last + 1]) ** parts))

    def _taken(self, use: Use) -> Tip:
        before, self.left = self._by_digest.get(use.before), None
        gap_s = use.time_s - before.used_s if before else math.inf
        if before and gap_s < SAME_USE_S and before.kind.shared == use.is_shared:
            before.used_s = max(before.used_s, use.time_s)
            return self._name(use, before)
        tip = self._name(use, self._new(before, use))
        if before and before.last == use.before:
            before.heir = tip
        self._num_uses += 1
        return tip

    def _new(self, before: Tip | None, use: Use) -> Tip:
        num_turns, pace = 0, 0
        if before and not before.kind.shared:
            gap_s = max(0.0, use.time_s - before.used_s)
            num_turns, pace = before.num_turns + 1, 1 + min(5, max(0, int(math.log2(max(gap_s, 1)) / 2) - 1))
        if before and not before.is_left:
            before.is_left = True
            self.left = before
            self._continued(before, use.time_s)
        turns = num_turns if num_turns < 4 else 4 if num_turns < 7 else 5 if num_turns < 15 else 6
        tip = Tip(self._num_uses, TipKind(turns, pace, int(use.is_shared)), num_turns, use.time_s)
        self._rows.append([use.time_s, math.nan, *tip.kind])
        return tip

    def _continued(self, tip: Tip, now_s: float) -> None:
        at = tip.number - self._num_uses + len(self._rows)
        if 0 <= at < len(self._rows):
            self._rows[at][1] = max(0.0, now_s - tip.used_s)
            self._rows[at][0] = tip.used_s

    def _name(self, use: Use, tip: Tip) -> Tip:
        for digest in use.names:
            self._by_digest[digest] = tip
            self._digests.append((digest, tip))
        tip.last = use.names[0] if use.names else tip.last
        while len(self._digests) > 6 * _MOST_TIPS:
            digest, old = self._digests.popleft()
            if self._by_digest.get(digest) is old:
                del self._by_digest[digest]
        return tip

    def _settle(self) -> None:
        if self._due_s is not None:
            self._fit(self._due_s)

    def _fit(self, now_s: float) -> None:
        self._due_s = None
        self._version += 1
        self._fitted = self._num_uses - 1
        rows = np.array(self._rows) if self._rows else np.empty((0, 2 + len(TipKind._fields)))
        is_continued = ~np.isnan(rows[:, 1])
        ages = np.where(is_continued, rows[:, 1], np.maximum(0.0, now_s - rows[:, 0]))
        bins = np.array([age_bin(age) for age in ages], dtype=int)
        self._base = _chances(bins, is_continued)
        self._ratios: list[dict[int, float]] = [{} for _ in TipKind._fields]
        if len(rows):
            reached = np.concatenate([[0.0], self._base.cumsum()])[bins]
            expected = reached + np.where(is_continued, 1.0, 0.5) * self._base[bins]
            self._ratios = _ratios(rows[:, 2:].astype(int), is_continued, expected)
        self._levels: dict[TipKind, int] = {}
        self._worths = _worths(np.stack([self._hazards(level) for level in range(_NUM_LEVELS)])).tolist()

    def _hazards(self, level: int) -> Floats:
        """For each age the chance to be continued before the next one, of a level's tips."""
        ratio = 2.0 ** ((level - _EVEN_LEVEL) / _LEVELS_A_DOUBLING)
        found: Floats = np.minimum(self._base * ratio, _MOST_CHANCE)
        return found


def age_bin(age_s: float) -> int:
    """The number of the half octave that an age lies in."""
    return 0 if age_s < 1 else min(NUM_AGES - 1, int(2 * math.log2(age_s)) + 1)


def _names(hashes: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """Some of a chain's last blocks: a template may rewrite the end of what was said."""
    count = len(hashes)
    backs = (2**power for power in range(count.bit_length()))
    # Not the very first block, which many conversations begin with, unless there is no other.
    return tuple(
        hashes[-back] for back in backs if count - back >= count // 2 and (back == 1 or back < count)
    )


def _chances(bins: npt.NDArray[Any], is_continued: npt.NDArray[Any]) -> Floats:
    """For each age: of those that reached it, the part that was continued at it; smoothed, from a prior on."""
    at = np.bincount(bins[is_continued], minlength=NUM_AGES).astype(float)
    reached = np.bincount(bins, minlength=NUM_AGES)[::-1].cumsum()[::-1].astype(float)
    reached -= 0.5 * np.bincount(bins[~is_continued], minlength=NUM_AGES)
    kernel = np.array([0.25, 0.5, 0.25])
    at, reached = np.convolve(at, kernel, "same"), np.convolve(reached, kernel, "same")
    chances: Floats = (at + _PRIOR_TIPS * _PRIOR_CHANCE) / (reached + _PRIOR_TIPS)
    return np.minimum(chances, _MOST_CHANCE)


def _ratios(
    kinds: npt.NDArray[Any], is_continued: npt.NDArray[Any], expected: Floats
) -> list[dict[int, float]]:
    """For each field of a kind and each value: how many times more often such tips were continued than expected."""
    found: list[dict[int, float]] = [{} for _ in range(kinds.shape[1])]
    factors = np.ones(kinds.shape)
    for _ in range(2):
        for field in range(kinds.shape[1]):
            values = kinds[:, field]
            others = np.delete(factors, field, axis=1).prod(axis=1)
            seen = np.bincount(values, is_continued)
            hoped = np.bincount(values, expected * others)
            ratios = (seen + _PRIOR_RATIO) / (hoped + _PRIOR_RATIO)
            found[field] = {value: float(ratios[value]) for value in np.unique(values)}
            factors[:, field] = ratios[values]
    return found


def _worths(hazards: Floats) -> Floats:
    """[levels, ages]: of all times to hold on, the best number of continuations a second, made never to rise with age."""
    widths = np.diff(_EDGES)
    worths = np.zeros(hazards.shape)
    for age in range(NUM_AGES):
        chance = hazards[:, age:]
        left = np.cumprod(1 - chance, axis=1)
        before = np.concatenate([np.ones((len(left), 1)), left[:, :-1]], axis=1)
        continued = np.cumsum(before * chance, axis=1)
        held_s = np.cumsum(before * widths[age:] * (1 - chance / 2), axis=1)
        worths[:, age] = (continued / held_s).max(axis=1)
    rising: Floats = np.maximum.accumulate(worths[:, ::-1], axis=1)[:, ::-1]
    return rising
