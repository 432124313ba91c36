"""The tree of a conversation as lines of text: what branches share stands once. Knows no session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvchat.chat.tree import Branch, Exchange

KEY_LENGTH = 6
"""Characters of a tip's id that `/switch` is given."""


def branch_tree(branches: Sequence[Branch], columns: int) -> str:
    """One line for every stretch of messages, those that follow it indented below; `*` marks where one is."""
    return "\n".join(line[: max(20, columns - 1)] for line in _lines(branches, 0, ""))


def branch_label(branch: Branch) -> str:
    """`1a2b3c · 4 messages, 2 shared · the last message`, with the sessions that stand there."""
    names = f" ({', '.join(branch.sessions)})" if branch.sessions else ""
    count = f"{_messages(branch.num_exchanges)}, {branch.shared} shared"
    return f"{branch.tip[:KEY_LENGTH]} · {count} · {_short(branch.text)}{names}"


def _lines(branches: Sequence[Branch], depth: int, indent: str) -> Iterator[str]:
    """The branches that are equal up to `depth`, by what follows."""
    groups: dict[str, list[Branch]] = {}
    for branch in branches:
        if branch.num_exchanges > depth:
            groups.setdefault(branch.path[depth].id, []).append(branch)
    for number, group in enumerate(groups.values(), 1):
        is_last = number == len(groups)
        end = _end_of_shared(group, depth)
        is_alone = depth == 0 and len(groups) == 1
        mark, below = ("", "") if is_alone else ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield indent + mark + _stretch(group, group[0].path[depth:end], end)
        yield from _lines(group, end, indent + below)


def _end_of_shared(group: Sequence[Branch], depth: int) -> int:
    """Where the branches of a group part, or the first of them ends."""
    end = depth + 1
    shortest = min(branch.num_exchanges for branch in group)
    while end < shortest and len({branch.path[end].id for branch in group}) == 1:
        end += 1
    return end


def _stretch(group: Sequence[Branch], exchanges: Sequence[Exchange], end: int) -> str:
    """What is said in messages that follow each other without a fork."""
    first, last = _short(exchanges[0].user.text), _short(exchanges[-1].user.text)
    text = first if len(exchanges) == 1 else f"{first} … {last}"
    count = _messages(len(exchanges))
    tip = next((branch for branch in group if branch.num_exchanges == end), None)
    if tip is None:
        return f"{count} shared by {len(group)}: {text}"
    names = f" ({', '.join(tip.sessions)})" if tip.sessions else ""
    return f"{'* ' if tip.is_current else ''}{tip.tip[:KEY_LENGTH]}  {count}: {text}{names}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 30 else line[:29].rstrip() + "…"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
