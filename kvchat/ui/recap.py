"""The last turns of a conversation in a few lines, for who comes back to it. Knows no screen."""

from __future__ import annotations

from kvchat.chat.session import Session
from kvchat.chat.tree import Exchange, is_unfinished

_EXCHANGES = 3
_LINES = 6
_COLUMNS = 300


def recap(session: Session) -> str:
    """The end of the conversation, its longer texts cut; empty when nothing was said."""
    path = session.path
    if not path:
        return ""
    before = len(path) - _EXCHANGES
    lines = [f"({before} earlier {'message' if before == 1 else 'messages'})"] if before > 0 else []
    for exchange in path[-_EXCHANGES:]:
        lines.extend(_lines(exchange))
    return "\n".join([*lines, *_ending(path[-1])])


def _lines(exchange: Exchange) -> list[str]:
    said = _cut(exchange.user.text)
    question = [f"> {said[0]}", *(f"  {line}" for line in said[1:_LINES])]
    if len(said) > _LINES:
        question.append(f"  ({len(said) - _LINES} more lines)")
    answer = _cut(exchange.answer.text) if exchange.answer else []
    if len(answer) > _LINES:
        answer = [f"({len(answer) - _LINES} lines before)", *answer[-_LINES:]]
    return question + answer


def _cut(text: str) -> list[str]:
    """The lines of a text, the long ones cut."""
    lines = text.strip().split("\n")
    return [line if len(line) <= _COLUMNS else f"{line[:_COLUMNS]}…" for line in lines]


def _ending(exchange: Exchange) -> list[str]:
    if exchange.answer is None:
        return ["(not answered; /retry asks again)"]
    return ["(it stopped here; /continue goes on)"] if is_unfinished(exchange.answer) else []
