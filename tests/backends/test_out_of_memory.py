from __future__ import annotations

import errno
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch

from kvchat.backends.base import Answer, Done, Event, Notice, Options, Role, Turn
from kvchat.backends.local import LocalBackend
from kvchat.config import Config
from kvchat.engine.sequence import LiveSequence
from kvchat.errors import OutOfMemoryError

HISTORY = [Turn(Role.USER, "tell me of the lazy dog, and of the fox")]


def answer(backend: LocalBackend) -> Answer:
    events = list(backend.answer(HISTORY, Options(max_tokens=8, temperature=0.0)))
    assert isinstance(events[-1], Done)
    return events[-1].answer


@contextmanager
def shortage(backend: LocalBackend, at: int, times: int) -> Iterator[None]:
    """Memory runs out at the `at`-th forward from now on, and at the `times` - 1 that follow."""
    state: Any = backend._worker.wait().sequence.state
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


def test_no_memory_for_what_is_to_be_stored_costs_no_answer(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with closing(LocalBackend(make_config())) as backend:
        expected = answer(backend).completion
        monkeypatch.setattr("kvchat.cache.codec.MAPPED_BYTES", 0)
        monkeypatch.setattr("mmap.mmap", exhausted)
        told: list[Event] = list(backend.answer([Turn(Role.USER, "another " * 40)], Options(max_tokens=2)))
        assert isinstance(told[-1], Done)
        monkeypatch.undo()
        assert answer(backend).completion == expected


def test_what_fails_behind_an_answer_is_told_with_the_next(make_config: Callable[..., Config]) -> None:
    with closing(LocalBackend(make_config())) as backend:
        engine: Any = backend._worker.wait().model.engine
        store = engine.store

        def fail_at_the_end(sequence: LiveSequence, num_tokens: int | None = None, **options: Any) -> None:
            if num_tokens is None:
                raise ZeroDivisionError("x")
            store(sequence, num_tokens, **options)

        engine.store = fail_at_the_end
        expected = answer(backend).completion
        del engine.store
        first, *rest = backend.answer(HISTORY, Options(max_tokens=8, temperature=0.0))
        assert isinstance(first, Notice)
        assert re.search("not kept: ZeroDivisionError", first.message)
        assert isinstance(rest[-1], Done)
        assert rest[-1].answer.completion == expected
