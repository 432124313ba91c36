"""A conversation as the cache sees it: one row a message, and what its next prompt would cost. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvchat.backends.base import Role
from kvchat.backends.inspection import CacheRow, CacheView
from kvchat.cache.match import Coverage
from kvchat.cache.stats import CacheStats
from kvchat.engine.engine import PINNED_PRIORITY, Engine
from kvchat.models.kv_state import common_prefix
from kvchat.models.template import ChatTemplate, Message


def cache_view(
    engine: Engine, template: ChatTemplate, messages: Sequence[Message], *, think: bool | None = None
) -> CacheView:
    """The cache seen from a conversation; an empty one has no rows."""
    tokens, ends = prompt_and_ends(template, messages, think=think)
    ids = engine.told(tokens)
    cache = engine.cache
    live = engine.state.keepable(common_prefix(engine.state.tokens, ids))
    coverage = cache.contains(ids) if cache else Coverage(0, 0)
    pinned = cache.num_kept(ids, PINNED_PRIORITY) if cache else 0
    rows = _rows(engine, messages, ends, (live, coverage.ram, coverage.disk, pinned))
    match = cache.match(ids) if cache else None
    cached = max(live, match.num_tokens if match else 0)
    loading_s = cache.estimate_load_s(match, live) if cache and match else 0.0
    return CacheView(
        mode="off" if cache is None else cache.mode,
        codec=cache.codec if cache else "raw",
        block_size=cache.block_size if cache else 0,
        ram_used=cache.ram_used_bytes if cache else 0,
        ram_budget=cache.ram_budget_bytes if cache else 0,
        disk_budget=cache.disk_budget_bytes if cache else 0,
        arena_used=len(engine.state.tokens) * engine.kv_bytes_per_token,
        rows=rows,
        prompt_tokens=len(ids),
        cached_tokens=cached,
        compute_s=(len(ids) - cached) * engine.prefill_s_per_token + loading_s,
        turn=cache.stats.turn if cache else CacheStats(),
        process=cache.stats.process if cache else CacheStats(),
        disk_used=cache.disk_used_bytes if cache else 0,
        weights_bytes=engine.loaded.num_bytes,
        process_bytes=_resident_bytes(),
    )


def prompt_and_ends(
    template: ChatTemplate, messages: Sequence[Message], *, think: bool | None = None
) -> tuple[list[int], list[int]]:
    """The ids of a conversation, and where in them each message ends."""
    ids: list[int] = []
    ends: list[int] = []
    for count, message in enumerate(messages, 1):
        if message.role == "system":
            ends.append(template.shared_tokens(messages[:count], think=think))
            continue
        ids = template.tokens(messages[:count], think=think)
        is_past = message.role == "assistant" and count < len(messages)
        # the past may lose its reasoning
        kept = template.next_prefix(messages[:count], think=think) if is_past else ids
        ends.append(min(len(ids), len(kept)))
    for index in reversed(range(len(ends) - 1)):  # and the template may move a message behind later ones
        ends[index] = min(ends[index : index + 2])
    return ids, ends


def _rows(
    engine: Engine, messages: Sequence[Message], ends: Sequence[int], held: tuple[int, int, int, int]
) -> tuple[CacheRow, ...]:
    rows: list[CacheRow] = []
    for message, start, end in zip(messages, [0, *ends], ends, strict=False):
        live, ram, disk, pinned = (min(max(tokens - start, 0), end - start) for tokens in held)
        row = CacheRow(
            role=Role(message.role),
            text=message.text[:80],
            tokens=end - start,
            live=live,
            ram=ram,
            disk=disk,
            num_bytes=(end - start) * engine.kv_bytes_per_token,
            saves_s=max(live, ram, disk) * engine.prefill_s_per_token,
            pinned=pinned,
        )
        rows.append(row)
    return tuple(rows)


def _resident_bytes() -> int:
    """What this process has in memory; 0 where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
