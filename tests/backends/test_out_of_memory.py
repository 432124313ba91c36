from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch

from kvchat.backends.base import Answer, Done, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from kvchat.errors import OutOfMemoryError

HISTORY = [Turn(Role.USER, "tell me of the lazy dog, and of the fox")]


def answer(backend: LocalBackend) -> Answer:
    events = list(backend.answer(HISTORY, Options(max_tokens=8, temperature=0.0)))
    assert isinstance(events[-1], Done)
    return events[-1].answer


@contextmanager
def shortage(backend: LocalBackend, at: int, times: int) -> Iterator[None]:
    """Memory runs out at the `at`-th forward from now on, and at the `times` - 1 that follow."""
    state: Any = backend._worker.wait().engine.state
    reserve, numbers = state.reserve, iter(range(1, 1000))

    def scarce(num_tokens: int) -> None:
        if at <= next(numbers) < at + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        reserve(num_tokens)

    state.reserve = scarce
    yield
    del state.reserve


@pytest.mark.parametrize("at", [1, 2, 4])
def test_out_of_memory_costs_an_answer_at_most_and_never_the_conversation(
    make_config: Callable[..., Config], at: int
) -> None:
    with closing(LocalBackend(make_config(cache__mode="off"))) as backend:
        expected = answer(backend).completion
        with shortage(backend, at, times=1):
            assert answer(backend).completion == expected
        with (
            shortage(backend, at, times=2),
            pytest.raises(OutOfMemoryError, match=r"ran out of memory while .* was answering") as caught,
        ):
            answer(backend)
        assert caught.value.exit_code == 5
        assert answer(backend).completion == expected
