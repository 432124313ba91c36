"""Turns -> the messages of a template. What a conversation begins with as the one before it did was read then."""

from __future__ import annotations

from collections.abc import Sequence

from kvchat.backends.base import Role, Turn
from kvchat.cache.block import common_prefix
from kvchat.models.text.template import ChatTemplate, Message


class Messages:
    """One model's conversations as its template takes them; the last one is remembered. From any thread."""

    def __init__(self) -> None:
        self._last: tuple[tuple[Turn, ...], tuple[Message, ...]] = (), ()

    def num_known(self, turns: tuple[Turn, ...]) -> int:
        """How many of the first turns were read before."""
        return common_prefix(self._last[0], turns)

    def of(self, turns: tuple[Turn, ...], template: ChatTemplate, vocab_size: int) -> tuple[Message, ...]:
        """The messages that turns are; ids that a model of `vocab_size` does not have count for none."""
        known, messages = self._last
        same = common_prefix(known, turns)
        new = tuple(message_of(turn, template, vocab_size) for turn in turns[same:])
        found = messages[:same] + new
        if new:  # a beginning of what is known, as the turns before the last are, adds nothing
            self._last = turns, found
        return found


def message_of(turn: Turn, template: ChatTemplate, vocab_size: int) -> Message:
    """A turn with its ids; an answer that has none of this tokenizer gets those of its text.

    One with reasoning stays text: where the reasoning's marks belong, its template says.
    """
    is_known = turn.tokenizer == template.tokenizer.id and max(turn.tokens or (0,)) < vocab_size
    tokens: Sequence[int] | None = turn.tokens if is_known else None
    if tokens is None and turn.role is Role.ASSISTANT and turn.text and not (turn.reasoning or turn.extra):
        tokens = template.answer_ids(turn.text)
    return Message(turn.role.value, turn.text, turn.reasoning, tokens, turn.extra)
