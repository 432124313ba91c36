"""What forwards take here, in seconds by how many tokens they compute: the one table of that. Decides nothing."""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections import deque
from statistics import median
from typing import Any

SMALL_TOKENS = 32
"""Forwards up to this size are told apart by the token, larger ones by their power of two."""
PROMPT_TOKENS = 256
"""What a prefill is thought to compute at once."""

_NUM_SAMPLES = 7
_NUM_LARGE_SAMPLES = 64  # of a whole long prompt: they take longer the more stands before
_ASSUMED_COST = 0.08  # of another token in a forward, in forwards of one token, until it is measured
_MAX_TOKENS, _MAX_S = 2**20, 3600.0


class Costs:
    """The medians of the last forwards of each size.

    The first forward of a size sets things up and does not count, unless it is that of one token.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}

    def add(self, num_tokens: int, seconds: float) -> None:
        """A forward of `num_tokens` took so long."""
        size = _size(num_tokens)
        is_first = size not in self._samples
        samples = self._samples.setdefault(size, deque(maxlen=_most(size)))
        if not is_first or size == 1:
            samples.append(seconds * size / num_tokens)

    def of(self, num_tokens: int) -> float:
        """What a small forward of `num_tokens` probably takes; 0 as long as none of one token is known."""
        known = self._known(SMALL_TOKENS)
        if not known or known[0] != 1:
            return 0.0
        at = bisect(known, num_tokens)
        low = known[at - 1]
        cost = median(self._samples[low])
        if low == num_tokens:
            return cost
        return cost + (num_tokens - low) * self._slope(known, at)

    def prefill_s(self, num_tokens: int) -> float:
        """What a prefill of so many tokens takes at least, as far as forwards of its sizes are known; else 0.

        A forward is not thought to take more than the largest one that was measured and is no larger.
        """
        whole, rest = divmod(num_tokens, PROMPT_TOKENS)
        return whole * self._least(PROMPT_TOKENS) + (self._least(rest) if rest else 0.0)

    @property
    def rate(self) -> float:
        """Seconds a token of the largest forwards that are known; 0 as long as there are only small ones."""
        known = self._known(_MAX_TOKENS)
        return median(self._samples[known[-1]]) / known[-1] if known and known[-1] >= SMALL_TOKENS else 0.0

    @property
    def num_sizes(self) -> int:
        """Of how many sizes the cost is known."""
        return len(self._known(_MAX_TOKENS))

    def to_json(self) -> dict[str, float]:
        """A JSON-ready form; `take` reads it back."""
        return {str(size): median(self._samples[size]) for size in self._known(_MAX_TOKENS)}

    def take(self, value: dict[str, Any]) -> None:
        """Begin with what `to_json` wrote once; what is no cost is left out."""
        for text, seconds in value.items():
            is_size = text.isdecimal() and len(text) < 8 and 1 <= int(text) <= _MAX_TOKENS
            if is_size and isinstance(seconds, int | float) and 0 < seconds < _MAX_S:
                size = _size(int(text))
                self._samples.setdefault(size, deque(maxlen=_most(size))).appendleft(float(seconds))

    def _known(self, most: int) -> list[int]:
        return sorted(size for size, samples in self._samples.items() if samples and size <= most)

    def _least(self, num_tokens: int) -> float:
        """What a forward of `num_tokens` takes, or one that is no larger; one token alone says nothing of it."""
        known = [size for size in self._known(_MAX_TOKENS) if size > 1]
        at = bisect(known, num_tokens)
        if not at:
            return 0.0
        return median(self._samples[known[at - 1]])

    def _slope(self, known: list[int], at: int) -> float:
        """Seconds a token more, behind the size `known[at - 1]`; hopeful behind the largest, so that it is tried."""
        if at == len(known):
            return median(self._samples[1]) * _ASSUMED_COST
        low, high = known[at - 1], known[at]
        return (median(self._samples[high]) - median(self._samples[low])) / (high - low)


def packed(costs: Costs, machine: str) -> bytes:
    """A table as it is kept, with the machine that it is true of."""
    kept = {"machine": machine, "costs": costs.to_json()}
    token_s = {"token_s": costs.rate} if costs.rate else {}  # for the cache, which is to know what is dear
    return json.dumps(kept | token_s).encode()


def unpack(content: bytes, machine: str, costs: Costs) -> None:
    """Begin a table with what was kept of the same machine; whatever else stands there is left out."""
    try:
        value = json.loads(content)
        kept = value["costs"] if value["machine"] == machine else {}
    except (ValueError, LookupError, TypeError, RecursionError):
        return
    if isinstance(kept, dict):
        costs.take(kept)


def _size(num_tokens: int) -> int:
    return num_tokens if num_tokens <= SMALL_TOKENS else 2 ** int(math.log2(num_tokens))


def _most(size: int) -> int:
    return _NUM_SAMPLES if size <= SMALL_TOKENS else _NUM_LARGE_SAMPLES
