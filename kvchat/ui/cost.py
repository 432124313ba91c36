"""What a move through a conversation would cost, and what typing ahead did: tokens that stay cached or are computed, seconds."""

from __future__ import annotations

from collections.abc import Sequence

from kvchat.backends.base import Backend, Phase, Role, Turn
from kvchat.backends.inspection import CacheView
from kvchat.chat.session import Session, WhenFull
from kvchat.chat.tree import Totals
from kvchat.errors import ContextOverflowError
from kvchat.ui.desk import Choice
from kvchat.ui.figures import percent_text, seconds_text

FULL = 0.85
"""The share of the context from which on room is offered."""

_KEEP = 2
_FOR_GOOD = tuple(
    Choice(f"/set when_full {value} --save · {about}", f"/set when_full {value} --save")
    for value, about in (
        ("auto", "from now on the oldest messages are summarised before it is full"),
        ("drop", "from now on the oldest messages are left out"),
        ("off", "never say this again"),
    )
)
_SUMMARY_TOKENS = 200
_NEVER_TOO_LONG = 1 << 16
"""A message of so few characters is left to the tokenizer."""
_CHARACTERS_A_TOKEN = 256
"""More than the longest token of any published vocabulary; the longest are runs of spaces."""


def cost_line(session: Session, history: Sequence[Turn] | None = None) -> str:
    """What the next answer finds in the cache, for the session's or another history. Waits for a running answer.

    Empty while there is no model to ask.
    """
    if session.backend.status().phase is not Phase.READY:
        return ""
    turns = session.history if history is None else history
    if not turns or turns[-1].role is Role.SYSTEM:
        turns = (*turns, Turn(Role.USER, ""))
    return cost_text(session.backend.cache(turns, session.chosen, has_rows=False))


def cost_text(view: CacheView, more_tokens: int = 0) -> str:
    """`1200 of 1230 tokens stay cached, 30 are computed in about 0.04 s`; `more_tokens` have to be computed too."""
    total, missing = view.prompt_tokens + more_tokens, view.prompt_tokens - view.cached_tokens
    speed = view.compute_s / missing if missing else 0.0
    time = seconds_text(view.compute_s + more_tokens * speed)
    return f"{view.cached_tokens} of {total} tokens stay cached, {missing + more_tokens} are computed in about {time}"


def compaction_cost(session: Session, keep: int) -> str:
    """What summarising costs, and what the conversation costs behind the summary."""
    if session.backend.status().phase is not Phase.READY:
        return ""
    asking, after = session.compaction(keep)
    before_text = cost_text(session.backend.cache(asking, session.chosen, has_rows=False))
    after_text = cost_text(session.backend.cache(after, session.chosen, has_rows=False), _SUMMARY_TOKENS)
    return f"for the summary {before_text}; after it about {after_text}"


def check_length(backend: Backend, text: str) -> None:
    """Raises ContextOverflowError for a message that can't fit, before it is saved, sent or encoded."""
    if len(text) <= _NEVER_TOO_LONG:
        return
    info = backend.info()
    if info.context and len(text) > _CHARACTERS_A_TOKEN * info.context:
        raise ContextOverflowError(
            f"the message has {len(text)} characters, the context of {info.name} {info.context} tokens",
            "shorten the message",
        )


def offers_room(session: Session, context: int) -> bool:
    """Whether the user, who wants to choose, is to be told now how to make room: the context has just become nearly full."""
    is_asked = session.when_full is WhenFull.ASK
    return is_asked and _is_full(session, context) and not _is_full(session, context, back=2)


def _is_full(session: Session, context: int, *, back: int = 1) -> bool:
    """Whether the last answer (or the one before, for `back` 2) filled most of the context."""
    path = session.path
    answer = path[-back].answer if len(path) >= back else None
    return bool(context and answer and answer.usage.total_tokens > FULL * context)


def fullness(session: Session, context: int) -> str:
    """`the context is 91% full`."""
    used = session.last.usage.total_tokens if session.last else 0
    return (
        f"the context is {percent_text(min(1.0, used / context))} full" if context else "the context is full"
    )


def ways_to_room(session: Session) -> list[Choice]:
    """The commands that make room in the context, each with its cost; none where nothing can be left out."""
    count, choices = len(session.word_for_word), []
    if count > _KEEP:
        about = f"summarise all but the last {_KEEP} messages: {compaction_cost(session, _KEEP)}"
        choices.append(Choice(f"/compact · {about}", "/compact"))
    if count > 1:
        dropped = _half(session)
        line = cost_line(session, session.without_oldest(dropped))
        choices.append(Choice(f"/drop {dropped} · leave out the oldest: {line}", f"/drop {dropped}"))
    return [*choices, *_FOR_GOOD] if choices else []


def room_text(session: Session, context: int) -> str:
    """How full the context is, and the commands that make room, a line each."""
    lines = [choice.label for choice in ways_to_room(session)]
    return "\n".join([f"{fullness(session, context)}{'; to make room:' if lines else ''}", *lines])


def _half(session: Session) -> int:
    """How many exchanges from the oldest on hold half of what is told word for word; one at least stays."""
    lengths = [sum(len(turn.text) for turn in exchange.turns) for exchange in session.word_for_word]
    count, left = 1, sum(lengths) - lengths[0]
    while count < len(lengths) - 1 and left > sum(lengths) / 2:
        left -= lengths[count]
        count += 1
    return count


def typed_text(totals: Totals) -> str:
    """`computed while you typed 120 tokens in 0.80 s: 97 used, 23 wasted, 1.20 s less to wait`; empty for nothing."""
    if not totals.ahead_tokens:
        return ""
    wasted = max(0, totals.ahead_tokens - totals.ahead_used_tokens)
    return (
        f"computed while you typed {totals.ahead_tokens} tokens in {seconds_text(totals.ahead_s)}: "
        f"{totals.ahead_used_tokens} used, {wasted} wasted, {seconds_text(totals.ahead_saved_s)} less to wait"
    )
