"""What a token is: given, because somebody wrote it, or generated, because the model did. Knows numbers alone.

A decoded token is computed alone, a prompt's tokens are computed together, and the two round differently. So that KV
never depends on how it came about, each token is always computed as what it is; its kind travels with its id, in the
sequences that the engine and the cache compare, and equal KV belongs to equal ids of equal kinds.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvchat.cache.block import common_prefix

GENERATED = 1 << 30
"""Added to the id of a generated token; vocabularies are smaller."""
LONG = 1 << 29
"""Added to the first token of a conversation whose keys are all others than a shorter one's (LongRoPE): the root of its
chain, so that the two are never taken for one another. Vocabularies are smaller still."""


_ID = LONG - 1


def as_generated(ids: Sequence[int]) -> list[int]:
    """Tokens that the model generated, from their ids."""
    return [token | GENERATED for token in ids]


def ids_of(tokens: Sequence[int]) -> list[int]:
    """The ids of tokens of either kind."""
    return [token & _ID for token in tokens]


class GrowingIds:
    """The ids of token lists that grow at their end: what one begins with as the last one did is not read again."""

    def __init__(self) -> None:
        self.num_read = 0
        """Tokens whose ids were read."""
        self._last: tuple[list[int], list[int]] = [], []

    def of(self, tokens: list[int]) -> list[int]:
        """Their ids, in a new list. `tokens` may not be changed afterwards."""
        before, ids = self._last
        same = common_prefix(before, tokens)
        ids = ids[:same] + ids_of(tokens[same:])
        self.num_read += len(tokens) - same
        self._last = tokens, ids
        return list(ids)


def is_generated(token: int) -> bool:
    """Whether the model said it."""
    return token >= GENERATED


def is_long(token: int) -> bool:
    """Whether it is the first token of a long conversation."""
    return bool(token & LONG)
