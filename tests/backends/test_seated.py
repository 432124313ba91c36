"""An engine of one's own that has seats: conversations that one process asks are answered at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvchat.backends.base import Done, Options, Role, Text, Turn
from kvchat.backends.child import EngineChild
from kvchat.backends.process import ProcessBackend
from kvchat.backends.seated import SeatedBackend
from kvchat.config import Config

ENDLESS = Options(max_tokens=20_000, temperature=0.0, repeat_stop=False)
SHORT = Options(max_tokens=6, temperature=0.0)


def user(text: str) -> list[Turn]:
    return [Turn(Role.USER, text)]


@pytest.fixture
def whole(make_config: Callable[..., Config], long_path: Path) -> Iterator[ProcessBackend]:
    config = make_config(model__name=str(long_path), chat__save=False)
    backend = ProcessBackend(config, partial(EngineChild, has_seats=True))
    yield backend
    backend.close()


def test_seats_answer_at_once_hold_their_own_conversation_and_are_cancelled_alone(
    whole: ProcessBackend,
) -> None:
    assert whole.info().num_at_once > 1
    first, second = SeatedBackend(whole, 1), SeatedBackend(whole, 2)
    endless = first.answer(user("hello"), ENDLESS)
    assert any(isinstance(event, Text) for event in (next(endless) for _ in range(5)))
    for cached in (0, 1):
        *_, last = second.answer(user("and you, what do you say?"), SHORT)
        assert isinstance(last, Done) and len(last.answer.completion) == 6
        assert last.answer.cache.live == cached * (last.answer.usage.prompt_tokens - 1)
    second.cancel()
    assert isinstance(next(endless), Text)
    first.cancel()
    *_, done = endless
    assert isinstance(done, Done) and done.answer.finish_reason.value == "cancelled"
    *_, last = second.answer(user("still here?"), SHORT)
    assert isinstance(last, Done) and last.answer.finish_reason.value == "length"
    assert whole.prompt(user("hello"))
