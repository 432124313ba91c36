from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvchat.engine.pace import Pace
from kvchat.engine.stride import (
    FEW_TOKENS,
    LEAST_STRIDE,
    LONG_STRIDE_S,
    MOST_STRIDE,
    STRIDE_S,
    Stride,
)


def stride_at(token_s: float) -> Stride:
    pace = Pace()
    pace.measure(64, 64 * token_s)
    return Stride(pace)


@given(st.floats(1e-5, 0.05), st.floats(1e-5, 0.05))
def test_it_soon_takes_as_long_as_it_may_whatever_was_thought_before(before: float, now: float) -> None:
    stride = stride_at(before)
    for _ in range(8):
        stride.took(stride.num_tokens, stride.num_tokens * now)
    seconds, most = stride.num_tokens * now, STRIDE_S if stride.num_tokens > FEW_TOKENS else LONG_STRIDE_S
    assert seconds <= most * 1.01 or stride.num_tokens == LEAST_STRIDE
    assert seconds >= STRIDE_S / 2.1 or stride.num_tokens == MOST_STRIDE
    assert stride.num_tokens % 8 == 0


def test_one_large_forward_says_how_small_the_next_has_to_be() -> None:
    stride = stride_at(1e-5)
    stride.took(256, 20.0)
    assert stride.num_tokens == LEAST_STRIDE


def test_a_small_rest_that_took_a_moment_says_nothing() -> None:
    stride = stride_at(STRIDE_S / FEW_TOKENS)
    assert stride.num_tokens == FEW_TOKENS
    stride.took(3, STRIDE_S / 2)
    assert stride.num_tokens == FEW_TOKENS
