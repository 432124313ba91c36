"""How far to draft, from what forwards cost here and how many drafted tokens came true. The one place that decides."""

from __future__ import annotations

from bisect import bisect
from typing import Protocol

from kvchat.engine.costs import Costs

LENGTHS = (1, 3, 7, 11)
"""Lengths of a draft in tokens that are considered; with the token before it, what small kernels take at once."""
MARGIN = 1.05
"""A draft has to promise this much more speed than none."""
CREDIT = 0.01
"""The share of the decoding time that may be lost by drafts that come true but seem to cost too much."""
FIRST_CREDIT = 3.0
"""What may be lost by the very first of them, in forwards of one token."""
LIKELY = 0.5
"""Guesses that come true less often are not worth a second look at their cost."""
STALE = 64
"""So many drafts in a row, and a forward of one token is measured anew."""

_EVIDENCE_STEPS = (3, 5, 9, 17)
_FIRST_RATES = (0.1, 0.2, 0.4, 0.6, 0.8)
_FIRST_WEIGHT = 3.0
_DECAY = 0.93  # of what was seen, a guess


class Foresight(Protocol):
    """Says how far to draft, and learns from what came of it."""

    def length(self, evidence: int, room: int) -> int:
        """How many tokens to draft, at most `room`, with so much evidence; 0 for none."""

    def judge(self, evidence: int, guessed: int, right: int) -> None:
        """Of a guess at `guessed` tokens, drafted or not, the first `right` came true."""

    def measure(self, num_tokens: int, gained: int, seconds: float) -> None:
        """A forward over `num_tokens` took so long, and gave `gained` tokens of the answer."""


class Fixed:
    """The same length always; for comparisons."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def length(self, evidence: int, room: int) -> int:
        return min(self._tokens, room)

    def judge(self, evidence: int, guessed: int, right: int) -> None:
        pass

    def measure(self, num_tokens: int, gained: int, seconds: float) -> None:
        pass


class Measured:
    """The length that promises the most tokens a second; none where that gains nothing.

    A draft of k tokens, each right with the rate a, gives 1 + a + ... + a^k tokens for a forward of 1 + k (Leviathan
    et al. 2023). The rates are learnt without drafting too. Where likely guesses cost too much to pay, they are tried
    again now and then, as far as CREDIT covers what they may lose: costs change with the context and the machine.
    """

    def __init__(self, costs: Costs | None = None) -> None:
        self._costs = costs or Costs()
        self._rates = HitRates()
        self._is_first = True
        self._credit_s = 0.0
        self._drafts_in_a_row = 0

    def length(self, evidence: int, room: int) -> int:
        one = self._costs.of(1)
        if not one or room < 1 or self._drafts_in_a_row >= STALE:
            return 0
        rate = self._rates.of(evidence)
        lengths = [length for length in LENGTHS if length <= room]
        gain, best = max(
            (_tokens(rate, length) * one / self._costs.of(1 + length), length) for length in lengths
        )
        if gain > MARGIN:
            return best
        loss_s = self._costs.of(1 + best) - one * _tokens(rate, best)
        return best if rate > LIKELY and self._credit_s > loss_s else 0

    def judge(self, evidence: int, guessed: int, right: int) -> None:
        self._rates.add(evidence, guessed, right)

    def measure(self, num_tokens: int, gained: int, seconds: float) -> None:
        self._costs.add(num_tokens, seconds)
        self._drafts_in_a_row = self._drafts_in_a_row + 1 if num_tokens > 1 else 0
        one = self._costs.of(1)
        if one:
            bound = FIRST_CREDIT * one
            gained_s = one * gained - seconds if num_tokens > 1 else CREDIT * one
            before = bound if self._is_first else self._credit_s + gained_s
            self._is_first, self._credit_s = False, max(-bound, min(bound, before))


def foresight_of(draft: int | None, costs: Costs) -> Foresight | None:
    """What drafts `draft` tokens at a time, or with None as many as pay; None, where that is 0, drafts none."""
    if draft == 0:
        return None
    return Measured(costs) if draft is None else Fixed(draft)


class HitRates:
    """How often a drafted token comes true whose predecessors did, by the draft's evidence; old drafts fade."""

    def __init__(self) -> None:
        self._right = [rate * _FIRST_WEIGHT for rate in _FIRST_RATES]
        self._judged = [_FIRST_WEIGHT for _ in _FIRST_RATES]

    def of(self, evidence: int) -> float:
        """The share of tokens that come true."""
        step = bisect(_EVIDENCE_STEPS, evidence)
        return self._right[step] / self._judged[step]

    def add(self, evidence: int, drafted: int, accepted: int) -> None:
        """Of a draft, the first `accepted` tokens came true, and the next, if there is one, did not."""
        step = bisect(_EVIDENCE_STEPS, evidence)
        self._right[step] = self._right[step] * _DECAY + accepted
        self._judged[step] = self._judged[step] * _DECAY + accepted + (accepted < drafted)


def _tokens(rate: float, length: int) -> float:
    """Tokens that one forward with a draft gives, on average."""
    return sum(rate**count for count in range(length + 1))
