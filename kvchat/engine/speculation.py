"""Guessing ahead: a drafter's guesses, as long as foresight lets them be. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvchat.engine.drafting import Drafter
from kvchat.engine.foresight import Foresight
from kvchat.models.kinds import GrowingIds


@dataclass(frozen=True, slots=True)
class Guessed:
    """Guessed tokens that were computed, and how many of them came true."""

    drafted: int = 0
    accepted: int = 0

    def since(self, before: Guessed) -> Guessed:
        """What was added to `before`."""
        return Guessed(self.drafted - before.drafted, self.accepted - before.accepted)


class Speculation:
    """What guesses one conversation's next tokens, and what says how many guesses pay. Both learn from answer to answer."""

    def __init__(self, drafter: Drafter, foresight: Foresight) -> None:
        self._drafter = drafter
        self._foresight = foresight
        self._ids = GrowingIds()
        self.drafts = Guessed()

    def begin(self, prompt: Sequence[int], said: Sequence[int]) -> None:
        """The conversation is now `prompt`, tokens of either kind, and the ids `said`."""
        self._drafter.begin(self._ids.of(list(prompt)) + list(said))

    def extend(self, tokens: Sequence[int]) -> None:
        """The conversation went on by `tokens`."""
        self._drafter.extend(tokens)

    def guesses(self, room: int, stop_ids: frozenset[int]) -> list[int]:
        """At most `room` tokens that may come next, up to one that would end the answer."""
        evidence = self._drafter.evidence
        length = self._foresight.length(evidence, room) if evidence else 0
        guesses = self._drafter.draft(length)
        end = next((at for at, token in enumerate(guesses) if token in stop_ids), len(guesses))
        return guesses[:end]

    def learn(self, guesses: Sequence[int], chosen: Sequence[int], seconds: float | None) -> None:
        """Behind the forward over one token and `guesses` the tokens `chosen` were. It took so long; None where others'
        tokens were in it, too."""
        evidence, accepted = self._drafter.evidence, len(chosen) - 1
        self.drafts = Guessed(self.drafts.drafted + len(guesses), self.drafts.accepted + accepted)
        if seconds is not None:
            self._foresight.measure(1 + len(guesses), len(chosen), seconds)
        if guesses:
            self._foresight.judge(evidence, len(guesses), accepted)
        elif evidence:
            self._foresight.judge(evidence, 1, int(self._drafter.draft(1)[0] == chosen[0]))
