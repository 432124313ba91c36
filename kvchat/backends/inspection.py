"""What a backend tells of its cache to those who look into it, as values. Knows no torch, no terminal, no process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvchat.backends.turn import Role
from kvchat.cache.stats import CacheStats, TierUse

CacheTotals = CacheStats
"""What the cache was asked for and what it did, over a turn, a process or all time."""


@dataclass(frozen=True, slots=True)
class CacheRow:
    """One message of a conversation in the cache: of its `tokens`, how many are live, how many each tier holds, and how
    many are pinned.

    `num_bytes` is what they take in the arena, `saves_s` the time that computing those which are held would take.
    """

    role: Role
    text: str
    tokens: int
    live: int
    tiers: Mapping[str, int]
    num_bytes: int
    saves_s: float
    pinned: int = 0


@dataclass(frozen=True, slots=True)
class CacheView:
    """The cache as it is now, seen from one conversation. Sizes in bytes, times in seconds.

    Of the `prompt_tokens` of the conversation `cached_tokens` are held somewhere; `compute_s` is about what computing
    the others, and loading what is not live, would take. `weights_bytes` is what the model's weights take,
    `process_bytes` what the engine's whole process has resident, 0 where that can't be told.
    """

    mode: str
    codec: str
    block_size: int
    tiers: tuple[TierUse, ...]
    arena_used: int
    rows: tuple[CacheRow, ...]
    prompt_tokens: int
    cached_tokens: int
    compute_s: float
    turn: CacheTotals
    process: CacheTotals
    weights_bytes: int = 0
    process_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VerifiedRun:
    """One stored run against a cold computation of its tokens.

    `difference` is the largest between the next token's logits, `gap` the one between the cold top two; `noise` is
    what splitting the cold computation otherwise changes. `same_top` says whether the best token is the same.
    """

    path: str
    tokens: int
    difference: float
    gap: float
    noise: float
    same_top: bool
    is_right: bool


@dataclass(frozen=True, slots=True)
class VerifySample:
    """Stored runs of one model that were computed again. `skipped` could not be loaded or are too long.

    `bound` is the largest difference that is right; None where only the best token counts.
    """

    model: str
    dtype: str
    codec: str
    bound: float | None
    runs: tuple[VerifiedRun, ...]
    skipped: int = 0

    @property
    def wrong(self) -> tuple[VerifiedRun, ...]:
        """The runs whose KV is not that of their tokens."""
        return tuple(run for run in self.runs if not run.is_right)
