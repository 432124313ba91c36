"""Draws: each answer has its own, and the same conversation has the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kvchat.backends.base import Done, Options
from kvchat.backends.local import LocalBackend
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.chat.tree import derived_seed
from kvchat.config import Config
from tests.scripted import ScriptedBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvchat.db"


def opened(path: Path, **options: object) -> Session:
    return Session(ScriptedBackend(), Options(**options), store=Store(path))  # type: ignore[arg-type]


# Draws


def seeds(session: Session) -> list[int | None]:
    backend = session.backend
    assert isinstance(backend, ScriptedBackend)
    return [options.seed for options in backend.options]


def test_each_answer_has_draws_of_its_own_and_the_same_conversation_has_the_same(path: Path) -> None:
    def held() -> list[int | None]:
        session = opened(path, seed=42)
        session.ask("one")
        session.ask("two")
        list(session.retry())
        list(session.retry())
        list(session.edit(1, "uno"))
        session.ask("two")
        return seeds(session)

    first = held()
    assert held() == first
    assert len(set(first[:4])) == 4
    assert first[4:] == first[:2]  # another conversation, from its beginning on
    other = opened(path, seed=43)
    other.ask("one")
    assert seeds(other)[0] not in first


def test_another_answer_is_drawn_from_a_nucleus_unless_one_is_set(path: Path) -> None:
    session = opened(path, temperature=0.0)
    session.ask("one")
    list(session.retry(temperature=0.8))
    session.options = Options(temperature=0.0, top_p=0.5)
    list(session.retry(temperature=0.8))
    backend = session.backend
    assert isinstance(backend, ScriptedBackend)
    asked = [(options.temperature, options.top_p) for options in backend.options]
    assert asked == [(0.0, None), (0.8, 0.9), (0.8, 0.5)]
    assert session.chosen.temperature == 0.0


def test_without_a_seed_nothing_is_derived_and_the_settings_stay_what_they_are(path: Path) -> None:
    session = opened(path)
    session.ask("one")
    assert seeds(session) == [None]
    session.options = Options(seed=7)
    session.ask("two")
    assert seeds(session)[1] != 7
    assert session.options.seed == 7
    assert [exchange.options.seed for exchange in session.path] == [None, 7]


def test_the_rest_of_an_answer_does_not_repeat_the_draws_of_its_beginning(path: Path) -> None:
    session = opened(path, seed=1, max_tokens=2)
    session.ask("slow 6")
    list(session.continue_answer())
    list(session.continue_answer())
    assert len(set(seeds(session))) == 3


def test_a_resumed_session_draws_as_one_that_was_never_left(path: Path) -> None:
    whole = opened(path, seed=5)
    whole.ask("one")
    whole.ask("two")
    first = opened(path, seed=5)
    first.new("half")
    first.ask("one")
    second = opened(path, seed=5)
    second.resume("half")
    second.ask("two")
    assert seeds(first) + seeds(second) == seeds(whole)


def test_a_derived_seed_fits_every_generator() -> None:
    found = {
        derived_seed(seed, place, number)
        for seed in (0, 2**64 - 1)
        for place in range(50)
        for number in range(4)
    }
    assert len(found) == 400
    assert 0 <= min(found) <= max(found) < 2**53


def test_a_model_answers_the_same_conversation_the_same_and_a_retry_anew(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(
        sampling__temperature=1.5, sampling__max_tokens=12, sampling__seed=3, chat__save=False
    )
    said: list[list[str]] = []
    for _ in range(2):
        with Session.from_config(LocalBackend(config), config) as session:
            answers = [session.ask("hello"), session.ask("hello")]
            for _ in range(2):
                (done,) = [event for event in session.retry() if isinstance(event, Done)]
                answers.append(done.answer.text)
            said.append(answers)
    assert said[0] == said[1]
    assert len(set(said[0])) == 4
