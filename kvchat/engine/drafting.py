"""Guesses at what comes next, from the conversation's own token ids (prompt lookup). Knows no model and no cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

GRAMS = (5, 2)
"""How many of the last tokens are looked up at once, the longest first."""
MOST_EVIDENCE = 32
"""More equal tokens than this say nothing more."""


class Drafter(Protocol):
    """Follows one conversation and guesses how it goes on."""

    evidence: int
    """How many tokens speak for the guess; 0 means that there is none."""

    def begin(self, tokens: Sequence[int]) -> None:
        """The conversation is `tokens` now; cheap where it only became longer."""

    def extend(self, tokens: Sequence[int]) -> None:
        """The conversation went on by `tokens`."""

    def draft(self, length: int) -> list[int]:
        """At most `length` tokens that may come next; empty without a guess."""


class PromptLookup:
    """Finds the last tokens somewhere before and guesses what followed them there (prompt lookup, Saxena 2023).

    A dictionary for each gram size says where the text went on after the gram's latest occurrence; it is kept up to
    date token by token. The keys are hashes, so that grams are not held; a find counts only as far as the tokens are
    equal, and `evidence` is how far that is. The source of a guess that came true is followed on, even if its grams occurred again since.
    """

    def __init__(self) -> None:
        self.evidence = 0
        self._tokens: list[int] = []
        self._next: dict[int, dict[int, int]] = {size: {} for size in GRAMS}
        self._source = 0  # where the text that is being repeated goes on; 0 is nowhere

    def begin(self, tokens: Sequence[int]) -> None:
        held = len(self._tokens)
        if held > len(tokens) or self._tokens != list(tokens[:held]):
            self._tokens.clear()
            for places in self._next.values():
                places.clear()
            held = 0
        self._source = 0
        self.extend(tokens[held:])

    def extend(self, tokens: Sequence[int]) -> None:
        start = len(self._tokens)
        self._tokens.extend(tokens)
        end = len(self._tokens)
        for size, places in self._next.items():
            window = self._tokens[max(0, start - size) :]
            grams = zip(*(window[offset:] for offset in range(size)), strict=False)
            places.update(zip(map(hash, grams), range(max(start, size), end), strict=False))
        self.evidence, self._source = max((self._evidence(at), at) for at in self._sources(len(tokens)))

    def draft(self, length: int) -> list[int]:
        if not self.evidence or length < 1:
            return []
        copied = self._tokens[self._source : self._source + length]
        period = len(self._tokens) - self._source
        while len(copied) < length:  # behind the end the copy goes on in itself, as a repetition does
            copied.append(copied[-period])
        return copied

    def _sources(self, num_new: int) -> tuple[int, int]:
        """Where the text may go on as it did: behind the source that was followed, and behind the latest occurrence."""
        return (self._source + num_new if self._source else 0), self._latest()

    def _latest(self) -> int:
        """Where the text went on after the latest occurrence of its last tokens; 0 if they are new."""
        for size, places in self._next.items():
            if place := places.get(hash(tuple(self._tokens[-size:])), 0):
                return place
        return 0

    def _evidence(self, place: int) -> int:
        """How many tokens before `place` equal those at the end."""
        tokens, count = self._tokens, 0
        while count < min(place, MOST_EVIDENCE) and tokens[place - 1 - count] == tokens[-1 - count]:
            count += 1
        return count
