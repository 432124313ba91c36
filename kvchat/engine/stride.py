"""How much of a prompt is computed at once: as much as its own cancellation, and who comes meanwhile, can wait for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvchat.engine.pace import Pace

CHUNK_S, MIN_CHUNK_TOKENS = 8.0, 64
"""About how long one forward may take, for a cancellation keeps whole ones alone; and how short that may make it."""
DEAF_S, MIN_DEAF_TOKENS = 0.25, 16
"""The same where none can end between two layers, and a cancellation has to wait."""
STRIDE_S, LONG_STRIDE_S = 0.4, 1.5
"""About how long one may take while others are answered: so long somebody waits who asks meanwhile. And how long where
that is few tokens. The others go on in the midst of it, see `Batch.between_layers`."""
LEAST_STRIDE, FEW_TOKENS, MOST_STRIDE = 16, 128, 256
"""Tokens of one: fewer than the least take hardly less time; few cost several times as much each as many,
for integers are made floating numbers anew in every forward; more than the most gain nothing."""


def longest(pace: Pace, most: int, *, is_deaf: bool) -> int:
    """How many tokens one forward is to compute, at most `most`; `is_deaf` says that it can't end between two layers."""
    seconds, least = (DEAF_S, MIN_DEAF_TOKENS) if is_deaf else (CHUNK_S, MIN_CHUNK_TOKENS)
    return min(most, max(least, pace.fitting(seconds, most)))


class Stride:
    """Of one prefill: begins with what usually takes as long as it may, then goes by what its own forwards took, which
    take the longer the more stands before them and the busier the machine is."""

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.num_tokens = MOST_STRIDE
        """How many tokens the next forward is to compute at most."""
        if pace.prefill_s_per_token:
            self.took(MOST_STRIDE, MOST_STRIDE * pace.prefill_s_per_token)

    @contextmanager
    def measured(self, num_tokens: int) -> Iterator[None]:
        """A forward over so many tokens runs in here."""
        started = self._clock()
        yield
        self.took(num_tokens, self._clock() - started)

    def took(self, num_tokens: int, seconds: float) -> None:
        """A forward over so many tokens took so long; of one that was short and small nothing follows."""
        if seconds < STRIDE_S and 2 * num_tokens < self.num_tokens:
            return
        rate = num_tokens / max(seconds, 1e-6)
        fitting = max(STRIDE_S * rate, min(FEW_TOKENS, LONG_STRIDE_S * rate))
        fitting = max(LEAST_STRIDE, min(MOST_STRIDE, 2 * self.num_tokens, fitting))
        self.num_tokens = 2 ** int(math.log2(fitting))
