"""How many tokens of saved sessions the cache still holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.chat.warmth import Warmth, warmth
from tests.scripted import ScriptedBackend


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Three exchanges whose KV is stored up to tip-0, tip-1 and tip-2."""
    session = Session(ScriptedBackend(), store=Store(tmp_path / "kvchat.db"))
    for text in ("one", "two", "three"):
        session.ask(text)
    row = session.store.session()
    for number, exchange in enumerate(session.path):
        assert exchange.answer
        answer = replace(exchange.answer, kv_root="model", kv_tip=f"tip-{number}")
        session.store.save_answer(row, [replace(exchange, answer=answer)])
    session.store.move(session.store.session(), session.path, session.path[-1].id)
    session.resume()
    session.undo()
    session.switch(session.branches[-1].tip)
    return session


def held(session: Session, stored: dict[tuple[str, str], int]) -> Warmth:
    return warmth(session.store, session.store.sessions(), stored)[session.id]


def test_all_of_a_session_is_warm_while_its_tip_is_stored(session: Session) -> None:
    stored = {("model", f"tip-{number}"): 16 * (number + 1) for number in range(3)}
    assert held(session, stored) == Warmth(48, was_stored=True)
    assert str(held(session, stored)) == "48 warm"


def test_what_is_left_of_the_beginning_counts(session: Session) -> None:
    assert held(session, {("model", "tip-0"): 16}) == Warmth(16, was_stored=True)


def test_another_models_kv_does_not_count(session: Session) -> None:
    assert held(session, {("another", "tip-2"): 48}) == Warmth(0, was_stored=True)


def test_what_is_gone_is_evicted_and_what_never_was_says_nothing(session: Session) -> None:
    assert str(held(session, {})) == "evicted"
    session.new()
    session.ask("not stored")
    assert held(session, {}) == Warmth()
    assert str(Warmth()) == ""
