"""What the next prompt begins with, computed while the user reads or types. Knows no question that waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from kvchat.backends.answering import conversation
from kvchat.backends.base import Options, Turn
from kvchat.backends.loading import Loaded
from kvchat.engine.request import Progress
from kvchat.models.kv_state import common_prefix
from kvchat.models.template_kind import TemplateKind

CHUNK_S = 0.1
"""About how long one forward may take: a message that is sent meanwhile waits for its end."""
MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 32, 256
"""Shorter ones cost more work for the same tokens, longer ones are no faster."""


def prepare(
    loaded: Loaded, turns: Sequence[Turn], options: Options, is_cancelled: Callable[[], bool]
) -> Iterator[Progress]:
    """Bring the live KV to what every next prompt begins with, where the template changes what was said.

    What it had held before is in the cache by then. Nothing is done for an append-safe template (all is held), for a
    model that can't be continued, and for a conversation that has gone on.
    """
    engine, info = loaded.engine, loaded.info
    if info.template == TemplateKind.APPEND_SAFE or info.reuse == "none" or _has_gone_on(loaded, turns):
        return
    template, messages = conversation(loaded, turns)
    ids = template.next_prefix(messages, think=options.think)
    held = common_prefix(engine.state.tokens, ids)
    if held == len(ids) or len(ids) >= engine.loaded.context:
        return
    started, done = time.perf_counter(), 0
    try:
        for progress in engine.warm(ids, is_cancelled, priority=0, chunk_tokens=_chunk_tokens(loaded)):
            done = progress.done
            yield progress
    finally:
        loaded.idle = loaded.idle.plus(done, time.perf_counter() - started)


def _has_gone_on(loaded: Loaded, turns: Sequence[Turn]) -> bool:
    """Whether what was answered last follows these turns: they were sent before it and come too late."""
    last = loaded.last.turns if loaded.last else ()
    return len(last) > len(turns) and last[: len(turns)] == tuple(turns)


def _chunk_tokens(loaded: Loaded) -> int:
    speed_s = loaded.engine.prefill_s_per_token
    fitting = int(CHUNK_S / speed_s) if speed_s > 0 else MAX_CHUNK_TOKENS
    return min(max(fitting, MIN_CHUNK_TOKENS), MAX_CHUNK_TOKENS)
