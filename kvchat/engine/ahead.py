"""Computing for a message that is still being typed: in small steps, that leave no trace but in the live state.

Knows no text: which tokens are worth it, and when they are given up, the caller says.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from kvchat.engine.engine import Engine
from kvchat.engine.holding import EXCESS_TOKENS, PENDING_BYTES
from kvchat.engine.request import Progress
from kvchat.engine.sequence import LiveSequence
from kvchat.models.kv_state import KVState
from kvchat.models.reuse import Continuation, ReusePolicy

STEP_S = 0.03
"""About how long a key that makes a step useless may have to wait for its end, which comes between two layers if it can."""
LEAST_STEP, MOST_STEP = 8, 64
"""Tokens of one step: fewer cost as much, see `ROWS_MULTIPLE`, and those of a large model hardly more; beyond, little is gained."""
SLOW, SLOWER_S = 2.0, 0.02
"""Steps that take so many times what they usually do, and so many seconds more, say that others need the machine."""
REST_S = 10.0
"""How long nothing is computed ahead after that."""

_SLOW_IN_A_ROW = 3
_NUM_KNOWN = 24  # steps of one size that are remembered
_LEAST_KNOWN = 6


def can_go_ahead(engine: Engine) -> bool:
    """Whether what is computed for a message can be kept while it changes: not of models that go on token by token."""
    rule = engine.loaded.rule
    return rule.policy is not ReusePolicy.NONE and rule.continuation is Continuation.CHUNK


def step_tokens(engine: Engine, state: KVState) -> int:
    """How many tokens one step computes behind `state`."""
    num_parts = 1 if engine.loaded.may_lose(state) else max(1, engine.loaded.network.num_layers)
    return max(LEAST_STEP, min(MOST_STEP, engine.pace.fitting(STEP_S * num_parts, MOST_STEP)))


def compute_ahead(
    engine: Engine, sequence: LiveSequence, tokens: Sequence[int], is_cancelled: Callable[[], bool]
) -> Iterator[Progress]:
    """Bring the live state to `tokens`, step by step; nothing of it is stored, and no memory that a way back needs is
    given up: where that would have to be, it ends early."""
    size = step_tokens(engine, sequence.state)

    def is_to_end() -> bool:
        return is_cancelled() or not has_room(sequence.state, size)

    yield from engine.hold(sequence, tokens, is_to_end, chunk_tokens=size)


def has_room(state: KVState, num_tokens: int) -> bool:
    """Whether so many tokens more can be held without anything being stored or given back for them."""
    pending_bytes = sum(one.nbytes for states in state.taken.values() for one in states)
    return state.excess + num_tokens < EXCESS_TOKENS and pending_bytes <= PENDING_BYTES


def keep_ways_back(state: KVState, floor: int, *lengths: int) -> None:
    """Forget the snapshots behind the first `floor` tokens but for those at `lengths`: each step took one."""
    for length in [length for length in state.taken if length > floor and length not in lengths]:
        state.drop(length)


class Pulse:
    """Notices by the pace of its own steps that the machine is busy with something else, and rests for a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[int, deque[float]] = {}
        self._slow_in_a_row = 0
        self._rests_until = 0.0

    @property
    def is_resting(self) -> bool:
        """Whether nothing should be computed ahead now."""
        return self._clock() < self._rests_until

    def beat(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long; those between two powers of two are compared with one another, and one
        generated token only with its like."""
        size = (num_tokens - 1).bit_length()
        known = self._known.setdefault(size, deque(maxlen=_NUM_KNOWN))
        usual_s = sorted(known)[len(known) // 4] if len(known) >= _LEAST_KNOWN else seconds
        is_slow = seconds > max(SLOW * usual_s, usual_s + SLOWER_S)
        known.append(seconds)
        self._slow_in_a_row = self._slow_in_a_row + 1 if is_slow else 0
        if self._slow_in_a_row >= _SLOW_IN_A_ROW:
            self._slow_in_a_row = 0
            self._rests_until = self._clock() + REST_S
