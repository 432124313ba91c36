"""How long it is what the model is told, and how much of it may stay when room is made. Knows no summary's making."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from kvchat.backends.base import Turn
from kvchat.chat.shortening import Shortening
from kvchat.chat.telling import first_word_for_word
from kvchat.chat.tree import Exchange
from kvchat.errors import ContextOverflowError

RECENT = 0.25
"""The last messages stay word for word up to this share of the context."""
LEAST_ANSWER = 0.125
"""So much of the context is left for an answer at least."""

_REQUEST_TOKENS = 64
_FRAME_BYTES = 16
"""More than a template writes around a message, in tokens; and no token is less than a byte of text."""
_BYTES_A_TOKEN = 3


class Measuring(Shortening):
    """A conversation that is measured in the tokens of its model."""

    def length(self, history: Sequence[Turn]) -> int:
        """Tokens of a prompt; about, where a server does not say. Waits for the model and for a running answer."""
        if not history:
            return 0
        try:
            known = self.backend.cache(history, self.chosen, has_rows=False).prompt_tokens
        except ContextOverflowError:  # a message that is longer than the context
            known = 0
        return known or num_bytes(history) // _BYTES_A_TOKEN

    def is_longer(self, history: Sequence[Turn], limit: int) -> bool:
        """Whether a prompt has more tokens; counted only where its bytes leave that open."""
        return num_bytes(history) > limit and self.length(history) > limit

    def _num_recent(self, path: Sequence[Exchange], asked: Sequence[Turn], *, is_told: bool) -> int | None:
        """How many exchanges at the end of a path stay word for word when room is made for the turns `asked`.

        As many as fit into their share, and into what the others leave; one, if it fits at all. If a summary `is_told`, it
        takes its room, and so many stay that there is room to ask for it. None where what has to stay leaves no room.
        """
        context, summary = self.backend.info().context, self._in_force(path)
        history = self.history_of(path)
        length, made = self.length(history), self._made_tokens(path) if is_told else 0
        room, most, least = length // 2, length // 2, 0
        if context:
            pinned = self._headed([exchange for exchange in path if exchange.is_pinned])
            room = context - self.length((*pinned, *asked)) - made - int(LEAST_ANSWER * context)
            most, least = min(room, int(RECENT * context)), length + made - context if is_told else 0
        if room < 0:
            return None
        a_byte = length / max(1, num_bytes(history))
        recent = path[first_word_for_word(path, summary) :]
        sizes = [a_byte * num_bytes(exchange.turns) for exchange in reversed(recent)]
        ends = [sum(sizes[: count + 1]) for count in range(len(sizes))]
        num_fitting = len(list(takewhile(lambda end: end <= max(most, least), ends)))
        return num_fitting or int(bool(sizes) and sizes[0] <= room)

    def _made_tokens(self, path: Sequence[Exchange]) -> int:
        """Tokens that a summary of most of a path takes, with what it stands behind."""
        noted = len(self._noted(path).encode()) // _BYTES_A_TOKEN
        return self._summary_tokens() + _REQUEST_TOKENS + noted


def num_bytes(history: Sequence[Turn]) -> int:
    """Bytes of texts, and what is about them."""
    return sum(len(turn.text.encode()) + len(turn.reasoning.encode()) + _FRAME_BYTES for turn in history)
