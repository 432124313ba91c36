"""Which exchanges the model is told of: a summary instead of those it stands for, and all that is pinned. Knows no session."""

from __future__ import annotations

from collections.abc import Sequence

from kvchat.chat.tree import Exchange, Tree


def in_force(tree: Tree, path: Sequence[Exchange], summary: str | None) -> Exchange | None:
    """The summary that counts on a path: this one, or of those before it the nearest that stands for a part of the path."""
    on_path, seen = {exchange.id for exchange in path}, set[str]()
    while summary and summary in tree and summary not in seen:
        found = tree[summary]
        if found.parent in on_path:
            return found
        seen.add(summary)  # a damaged file may have a circle
        summary = found.follows
    return None


def first_word_for_word(path: Sequence[Exchange], summary: Exchange | None) -> int:
    """How many exchanges at the beginning of a path a summary stands for."""
    if summary is None:
        return 0
    return 1 + next(at for at, exchange in enumerate(path) if exchange.id == summary.parent)


def told(path: Sequence[Exchange], summary: Exchange | None) -> tuple[Exchange, ...]:
    """The exchanges that a prompt tells: first what is pinned of those that the summary stands for, so that it keeps its
    place, and its KV, however often there is another summary; then the summary, and all that followed."""
    start = first_word_for_word(path, summary)
    pinned = [exchange for exchange in path[:start] if exchange.is_pinned]
    said = [summary] if summary is not None and summary.answer is not None else []
    return *pinned, *said, *path[start:]
