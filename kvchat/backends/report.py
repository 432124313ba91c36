"""Why a prompt was reused as far as it was: from the real common prefix with what was computed before, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvchat.backends.base import CacheReport, Role, Turn
from kvchat.cache.base import Ended
from kvchat.cache.block import common_prefix
from kvchat.engine.request import Reuse
from kvchat.models.reuse import ReusePolicy

CONTEXT_TOKENS = 8
"""How many tokens before and after the diverging one are shown."""

_ENDED = {
    Ended.OFF: "reuse is off",
    Ended.FIRST_USE: "first use",
    Ended.NEW_TEXT: "new text",
    Ended.COMPLETE: "new text",
    Ended.EVICTED: "evicted",
    Ended.CORRUPT: "corrupt entry",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was computed last: the turns as they were sent, and all ids, the answer's included."""

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]


def cache_report(
    reuse: Reuse, asked: Asked, last: Asked | None, *, decode: Callable[[Iterable[int]], str], saved_s: float
) -> CacheReport:
    """The report for the prompt `asked.ids`; `last` is what this process answered before, None at first."""
    at = reuse.num_tokens
    was = _around(last.ids, at, decode) if last else ""
    return CacheReport(
        reuse.live,
        reuse.tiers,
        at,
        _reason(reuse, asked, last),
        was,
        _around(asked.ids, at, decode),
        saved_s,
    )


def _reason(reuse: Reuse, asked: Asked, last: Asked | None) -> str:
    at = reuse.num_tokens
    if reuse.policy is ReusePolicy.NONE:
        return "what this model computes can't be taken up again"
    if at == 0 and reuse.ended is Ended.OFF:
        return _ENDED[Ended.OFF]
    if reuse.is_renewed:
        return f"computing all in one go is faster than going on from {reuse.skipped} tokens one by one"
    if reuse.skipped:
        return f"computing {reuse.skipped} stored tokens is faster than loading them"
    if reuse.ended in (Ended.EVICTED, Ended.CORRUPT):
        return _ENDED[reuse.ended]
    if at == len(asked.ids) - 1:
        return "all of it was held; the last token is always computed"
    if last is None:
        return _ENDED[reuse.ended]
    shared = common_prefix(last.ids, asked.ids)
    if at < shared and reuse.policy is ReusePolicy.SNAPSHOTS:
        return f"{shared} tokens are as before; this model's state was kept at token {at}, not at the last of them"
    if at == 0:
        return _changed(asked, last) or _ENDED[reuse.ended]
    if at > shared or shared >= len(last.ids):
        return "new text"
    return _changed(asked, last) or "new text"


def _changed(asked: Asked, last: Asked) -> str:
    """What changed in the conversation before its new message, if anything did."""
    systems = [
        turns[0].text if turns and turns[0].role is Role.SYSTEM else "" for turns in (asked.turns, last.turns)
    ]
    if systems[0] != systems[1]:
        return "edited system prompt"
    if asked.turns[: len(last.turns)] == last.turns and len(asked.turns) > len(last.turns):
        return "template rewrote history"
    return ""


def _around(ids: Sequence[int], at: int, decode: Callable[[Iterable[int]], str]) -> str:
    """The text around position `at`, with a bar in front of its token."""
    before, after = ids[max(0, at - CONTEXT_TOKENS) : at], ids[at : at + CONTEXT_TOKENS]
    return f"{decode(before)}|{decode(after)}" if after else ""
