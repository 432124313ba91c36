"""What the next prompt begins with, computed while the user reads or types. Knows no question that waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from kvchat.backends.ahead import forget
from kvchat.backends.asking import conversation
from kvchat.backends.base import Keeping, Options, Role, Turn
from kvchat.backends.loading import Talk
from kvchat.cache.block import common_prefix
from kvchat.engine.engine import PINNED_PRIORITY, Engine
from kvchat.engine.request import Progress
from kvchat.errors import ContextOverflowError
from kvchat.models.text.template_kind import TemplateKind

CHUNK_S = 0.1
"""About how long one forward may take: a message that is sent meanwhile waits for its end."""
MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 32, 256
"""Shorter ones cost more work for the same tokens, longer ones are no faster."""


def prepare(
    talk: Talk,
    turns: Sequence[Turn],
    options: Options,
    keeping: Keeping,
    is_cancelled: Callable[[], bool],
) -> Iterator[Progress]:
    """Bring the live KV to what every next prompt begins with: of a conversation that one has just moved to, and of one
    just answered where the template changes what was said.

    What it had held before is in the cache by then. Nothing is done for a model that can't be continued, and where all
    that was said is held; so what comes too late, behind a later message, leaves that one's KV as it is.
    """
    model, engine, state = talk.model, talk.model.engine, talk.sequence.state
    try:
        template, messages = conversation(model, turns)
    except ContextOverflowError:  # told to whoever asks
        return
    if model.info.reuse == "none" or _is_as_said(talk, turns, options):
        return
    ids = engine.told(template.next_prefix(messages, think=options.think))
    held = common_prefix(state.tokens, ids)
    if held == len(ids) or len(ids) >= engine.loaded.context:
        return
    forget(talk)
    started, done = time.perf_counter(), 0
    try:
        chunk_tokens, stores = _chunk_tokens(engine), model.stores(keeping)
        for progress in engine.warm(
            talk.sequence, ids, is_cancelled, priority=0, chunk_tokens=chunk_tokens, store=stores
        ):
            done = progress.done
            yield progress
    finally:
        talk.idle = talk.idle.plus(done, time.perf_counter() - started)
        pin(talk, turns, options, keeping)


def pin(talk: Talk, turns: Sequence[Turn], options: Options, keeping: Keeping) -> None:
    """Keep what is live of a pinned system prompt longest."""
    if turns and turns[0].pinned and talk.model.stores(keeping):
        engine, live = talk.model.engine, talk.sequence.state.tokens
        template, messages = conversation(talk.model, turns[:1])
        begun = engine.told(template.next_prefix(messages, think=options.think), len(live))
        engine.store(talk.sequence, common_prefix(live, begun), priority=PINNED_PRIORITY)


def _is_as_said(talk: Talk, turns: Sequence[Turn], options: Options) -> bool:
    """Whether an append-safe template's whole conversation is live, up to its last answer's end: what closes that is so
    little that it is left to the next message."""
    model = talk.model
    if model.info.template != TemplateKind.APPEND_SAFE or not turns or turns[-1].role is not Role.ASSISTANT:
        return False
    template, messages = conversation(model, turns)
    said = model.engine.told(template.tokens(messages, think=options.think))
    return common_prefix(talk.sequence.state.tokens, said) >= len(said) - 1


def _chunk_tokens(engine: Engine) -> int:
    speed_s = engine.pace.prefill_s_per_token
    fitting = int(CHUNK_S / speed_s) if speed_s > 0 else MAX_CHUNK_TOKENS
    return min(max(fitting, MIN_CHUNK_TOKENS), MAX_CHUNK_TOKENS)
