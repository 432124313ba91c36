"""The messages of a path of exchanges; those of what it begins with as the one before did are the very same. Knows no store."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

from kvchat.backends.base import Role, Turn
from kvchat.chat.tree import Exchange


class Messages:
    """The messages of the path that was asked for last. From any thread: what is remembered is replaced as a whole.

    Who is told a conversation again and again need not look into messages that are the same objects.
    """

    def __init__(self) -> None:
        self.num_made = 0
        """Exchanges whose messages were made."""
        self._last: tuple[str, tuple[Exchange, ...], tuple[int, ...], tuple[Turn, ...]] = "", (), (), ()

    def of(self, path: Sequence[Exchange], tokenizer: str) -> tuple[Turn, ...]:
        """The messages, with the answers' ids of this tokenizer where they are known.

        A message that another one follows unanswered has an empty answer: roles alternate.
        """
        before, known, ends, turns = self._last
        same = _num_same(known, path) if before == tokenizer else 0
        said, new_ends = list(turns[: ends[same - 1] if same else 0]), list(ends[:same])
        for exchange in path[same:]:
            if said and said[-1].role is Role.USER:
                said.append(Turn(Role.ASSISTANT, ""))
            said += exchange.turns_for(tokenizer)
            new_ends.append(len(said))
        self.num_made += len(path) - same
        self._last = tokenizer, tuple(path), tuple(new_ends), tuple(said)
        return self._last[-1]


def _num_same(left: Sequence[Exchange], right: Sequence[Exchange]) -> int:
    """With how many of the same objects both begin."""
    return next((at for at, same in enumerate(map(is_, left, right)) if not same), min(len(left), len(right)))
