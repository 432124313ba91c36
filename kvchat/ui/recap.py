"""The last turns of a conversation, for whoever comes back to it: the earlier ones short, the last answer whole."""

from __future__ import annotations

from dataclasses import dataclass

from kvchat.chat.session import Session
from kvchat.chat.tree import Exchange, is_unfinished
from kvchat.ui.answer import wrapped
from kvchat.ui.clean import sanitize
from kvchat.ui.render import dim
from kvchat.ui.tables import Look, Styled, joined

_EXCHANGES = 2
_LINES = 6
_COLUMNS = 300


@dataclass(frozen=True, slots=True)
class Recap:
    """Lines about what was said before the last message; then that message, its whole answer as Markdown, and how it
    ended. All are empty where there is nothing to say."""

    before: str = ""
    message: str = ""
    answer: str = ""
    ending: str = ""

    def __str__(self) -> str:
        """All of it as plain text."""
        message = f"> {self.message}" if self.message else ""
        return "\n".join(part for part in (self.before, message, self.answer, self.ending) if part)


def recap(session: Session) -> Recap:
    """The end of the conversation."""
    path = session.path
    if not path:
        return Recap()
    num_before = max(0, len(path) - 1 - _EXCHANGES)
    lines = [f"({num_before} earlier {'message' if num_before == 1 else 'messages'})"] if num_before else []
    for exchange in path[num_before:-1]:
        lines.extend(_lines(exchange))
    last = path[-1]
    answer = last.answer.text.strip() if last.answer else ""
    return Recap("\n".join(lines), "\n".join(_cut(last.user.text, "  ")), answer, _ending(last))


def shown(recap: Recap, look: Look) -> Styled:
    """A recap for a terminal: what came before steps back, the last answer is rendered."""
    if look.plain:
        return joined([str(recap)])
    from kvchat.ui.markdown import MarkdownBlocks  # slow to import, and no first key waits for it

    blocks = MarkdownBlocks(color=look.color)
    blocks.take(sanitize(recap.answer))
    message = f"\x1b[1m> \x1b[22m{sanitize(recap.message)}" if recap.message else ""
    answer = blocks.finished(look.columns, whole=True)
    early = (
        row for line in sanitize(recap.before).split("\n") for row in wrapped(line, max(2, look.columns))
    )
    before, ending = (dim(text) if text else "" for text in ("\n".join(early), sanitize(recap.ending)))
    return Styled("\n".join(part for part in (before, message, answer, ending) if part))


def _lines(exchange: Exchange) -> list[str]:
    said = _cut(exchange.user.text, "  ")
    answer = _cut(exchange.answer.text) if exchange.answer else []
    return [f"> {said[0]}", *said[1:], *answer]


def _cut(text: str, indent: str = "") -> list[str]:
    """The first lines of a text, the long ones cut; the further ones indented."""
    lines = text.strip().split("\n")
    shown = [line if len(line) <= _COLUMNS else f"{line[:_COLUMNS]}…" for line in lines[:_LINES]]
    more = len(lines) - _LINES
    shown += [f"({more} more lines)"] if more > 0 else []
    return [shown[0], *(indent + line for line in shown[1:])]


def _ending(exchange: Exchange) -> str:
    if exchange.answer is None:
        return "(not answered; /retry asks again)"
    return "(it stopped here; /continue goes on)" if is_unfinished(exchange.answer) else ""
