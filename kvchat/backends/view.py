"""A conversation as the cache sees it: one row a message, and what its next prompt would cost. Changes nothing."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvchat.backends.asking import conversation
from kvchat.backends.base import Keeping, Options, Role, Turn
from kvchat.backends.inspection import CacheRow, CacheView
from kvchat.backends.loading import Talk
from kvchat.cache.base import Forecast
from kvchat.cache.block import common_prefix
from kvchat.cache.stats import CacheStats
from kvchat.engine.engine import PINNED_PRIORITY, Engine
from kvchat.errors import ModelUnavailableError
from kvchat.models.kinds import ids_of
from kvchat.models.text.template import ChatTemplate, Message


def cache_view(
    talk: Talk,
    turns: Sequence[Turn],
    options: Options,
    keeping: Keeping,
    *,
    has_rows: bool = True,
) -> CacheView:
    """The cache seen from a conversation; an empty one has no rows, and none are made unless `has_rows`."""
    engine, state, think = talk.model.engine, talk.sequence.state, options.think
    template, messages = conversation(talk.model, turns)
    tokens = template.tokens(messages, think=think) if _is_question(messages) else []
    ends = message_ends(template, messages, ids_of(tokens), think=think) if has_rows else []
    ids = engine.told(tokens)
    cache = engine.cache
    live = state.keepable(common_prefix(state.tokens, ids))
    held = cache.contains(ids) if cache else {}
    pinned = max(cache.contains(ids, priority=PINNED_PRIORITY).values(), default=0) if cache else 0
    rows = _rows(engine, messages, ends, (live, held, pinned))
    match = cache.match(ids) if cache else None
    cached = max(live, match.num_tokens if match else 0)
    loading_s = match.load_s(live) if match else 0.0
    return CacheView(
        mode="off" if cache is None else keeping.mode,
        codec=cache.settings.codec if cache else "raw",
        block_size=cache.settings.block_size if cache else 0,
        tiers=cache.usage() if cache else (),
        arena_used=len(state.tokens) * engine.kv_bytes_per_token,
        rows=rows,
        prompt_tokens=len(ids),
        cached_tokens=cached,
        compute_s=(len(ids) - cached) * engine.pace.prefill_s_per_token + loading_s,
        turn=cache.stats.turn if cache else CacheStats(),
        process=cache.stats.process if cache else CacheStats(),
        weights_bytes=engine.loaded.num_bytes,
        process_bytes=_resident_bytes(),
        next_out=_next_out(cache.forecast()) if cache else "",
    )


def _next_out(forecast: Forecast | None) -> str:
    """What would be forgotten next, and why, in a line."""
    if forecast is None:
        return ""
    what = f"tokens {forecast.start}-{forecast.end}, unused for {forecast.age_s / 60:.0f} min"
    if forecast.chance is None:
        return f"{what}: unused for longest"
    turns = f"{forecast.num_turns} turn{'' if forecast.num_turns == 1 else 's'}"
    return f"{what}, after {turns}: {forecast.chance:.0%} likely to be gone on with in a day"


def message_ends(
    template: ChatTemplate, messages: Sequence[Message], ids: Sequence[int], *, think: bool | None = None
) -> list[int]:
    """Where each message ends in the `ids` of their prompt, found by its text; what stands between two is the second's.

    One that the template leaves out, or moves behind later ones, has no tokens.
    """
    text, starts = _decoded(template, ids)
    frames = _frames(template)
    ends: list[int] = []
    at = 0  # in the text, behind the message before
    for message in messages:
        said = message.text.strip()
        found = max(text.find(said, at + frames.get(message.role, 0)), text.find(said, at)) if said else -1
        if message.role == "system":
            ends.append(template.shared_tokens(messages, think=think))
            at = starts[ends[-1]] if ends[-1] < len(starts) else at
        elif found < 0:
            ends.append(ends[-1] if ends else 0)
        else:
            at = found + len(said)
            ends.append(max(bisect_left(starts, at), ends[-1] if ends else 0))
    return [*ends[:-1], len(ids)] if _is_question(messages) else ends


def _is_question(messages: Sequence[Message]) -> bool:
    """Whether there is something to answer, or to go on with: a system prompt alone has no prompt."""
    return any(message.role != "system" for message in messages)


def _decoded(template: ChatTemplate, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of ids, and where in it each of them begins."""
    stream = template.tokenizer.stream()
    pieces: list[str] = []
    starts: list[int] = []
    length = 0
    for token in ids:
        starts.append(length)
        pieces.append(stream.push(token))
        length += len(pieces[-1])
    return "".join(pieces), starts


def _frames(template: ChatTemplate) -> dict[str, int]:
    """How many characters the template writes in front of a message, by its role; none where that can't be told."""
    first, second, third = "zqx", "zqy", "zqz"
    said = [Message("user", first), Message("assistant", second), Message("user", third)]
    try:
        text = template.tokenizer.decode(template.prompt(said))
    except ModelUnavailableError:
        return {}
    at = [text.find(each) for each in (first, second, third)]
    if min(at) < 0:
        return {}
    return {"assistant": max(0, at[1] - at[0] - len(first)), "user": max(0, at[2] - at[1] - len(second))}


def _rows(
    engine: Engine, messages: Sequence[Message], ends: Sequence[int], held: tuple[int, Mapping[str, int], int]
) -> tuple[CacheRow, ...]:
    rows: list[CacheRow] = []
    for message, start, end in zip(messages, [0, *ends], ends, strict=False):
        live, pinned = (min(max(tokens - start, 0), end - start) for tokens in (held[0], held[2]))
        tiers = {name: min(max(tokens - start, 0), end - start) for name, tokens in held[1].items()}
        row = CacheRow(
            role=Role(message.role),
            text=message.text[:80],
            tokens=end - start,
            live=live,
            tiers=tiers,
            num_bytes=(end - start) * engine.kv_bytes_per_token,
            saves_s=max(live, *tiers.values()) * engine.pace.prefill_s_per_token,
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
