"""A session of three exchanges, and the store that it is saved in."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.chat.session import Session
from kvchat.chat.store import Store
from tests.scripted import ScriptedBackend


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kvchat.db")


@pytest.fixture
def session(store: Store) -> Session:
    """Three exchanges, saved."""
    session = Session(ScriptedBackend(), system="be brief", store=store, model="scripted")
    for text in ("one", "two", "three"):
        session.ask(text)
    return session
