"""What tests of a saved session ask of it."""

from __future__ import annotations

from kvchat.backends.base import Event
from kvchat.chat.conversation import Conversation
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from tests.scripted import ScriptedBackend


def said(session: Conversation) -> list[str]:
    return [exchange.user.text for exchange in session.path]


def reopened(session: Session, key: str = "latest") -> Session:
    """The same session as another program finds it."""
    assert session.store.database.path
    other = Session(ScriptedBackend(), store=Store(session.store.database.path))
    other.resume(key)
    return other


def finish(events: object) -> list[Event]:
    return list(events)  # type: ignore[call-overload, no-any-return]
