"""Commands that make room in the context, and say what stays word for word: rows of the table of commands. Knows no screen."""

from __future__ import annotations

from kvchat.chat.session import Session
from kvchat.errors import UsageError
from kvchat.ui.cost import compaction_cost, cost_line
from kvchat.ui.desk import Asking, Choice, Desk, SlashCommand, number

_SHOWN = 40


def _compact(desk: Desk, argument: str) -> Asking:
    keep = number(argument, 2)
    events = desk.session.compact(keep)
    return Asking(events, compaction_cost(desk.session, keep))


def _drop(desk: Desk, argument: str) -> str:
    count = number(argument, 1)
    desk.session.drop_oldest(count)
    what = "the oldest message is" if count == 1 else f"the oldest {count} messages are"
    return _joined(f"{what} left out; /expand brings back what was left out last", cost_line(desk.session))


def _expand(desk: Desk, argument: str) -> str:
    before = desk.session.expand()
    what = "from the summary before on" if before else "again"
    return _joined(f"the model is told the whole conversation {what}", cost_line(desk.session))


def _pin(desk: Desk, argument: str) -> str:
    exchange = desk.session.pin(number(argument, -1))
    return f"pinned: {_short(exchange.user.text)}\n{_pinned_text(desk.session)}"


def _unpin(desk: Desk, argument: str) -> str:
    session = desk.session
    if argument:
        exchange = session.pin(number(argument, -1), is_pinned=False)
        return f"no longer pinned: {_short(exchange.user.text)}\n{_pinned_text(session)}"
    if not session.pinned:
        raise UsageError("no message is pinned", "/pin pins the last one, /pin N message N")
    choices = [
        Choice(f"{at} · {_short(session.path[at - 1].user.text)}", f"/unpin {at}") for at in session.pinned
    ]
    desk.offer("pinned messages: (Enter unpins one, Esc leaves)", choices, 0)
    return ""


def _pinned_text(session: Session) -> str:
    if not session.pinned:
        return "no message is pinned now"
    numbers = ", ".join(map(str, session.pinned))
    what = "message" if len(session.pinned) == 1 else "messages"
    return f"{what} {numbers} and what was answered stay word for word when the context gets full"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1].rstrip() + "…"


def _joined(*lines: str) -> str:
    return "\n".join(line for line in lines if line)


ROOM: tuple[SlashCommand, ...] = (
    SlashCommand("/compact", "[N]", "let a summary replace all but the last N messages (2)", _compact),
    SlashCommand("/drop", "[N]", "leave the oldest N messages out", _drop),
    SlashCommand("/expand", "", "tell the model again what the last summary replaced", _expand),
    SlashCommand("/pin", "[N]", "keep the last message, or message N, word for word for good", _pin),
    SlashCommand(
        "/unpin",
        "[N]",
        "show what is pinned; pin message N no longer",
        _unpin,
        choices=lambda desk: [str(at) for at in desk.session.pinned],
    ),
)
"""The rows of the table."""
