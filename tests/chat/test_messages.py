"""The messages of a conversation that goes on are made once, and stay the same objects."""

from __future__ import annotations

from kvchat.backends.base import Role
from kvchat.chat.messages import Messages
from kvchat.chat.session import Session
from tests.scripted import ScriptedBackend


def test_of_a_longer_path_only_what_is_new_is_made() -> None:
    session = Session(ScriptedBackend())
    for number in range(20):
        session.ask(f"message {number}")
    messages, path = Messages(), session.path
    first = messages.of(path[:15], "")
    whole = messages.of(path, "")
    assert all(one is other for one, other in zip(first, whole, strict=False))
    assert messages.num_made == 20
    assert [turn.text for turn in whole if turn.role is Role.USER] == [f"message {n}" for n in range(20)]


def test_another_branch_or_tokenizer_makes_what_differs_anew() -> None:
    session = Session(ScriptedBackend())
    for number in range(4):
        session.ask(f"message {number}")
    messages, path = Messages(), session.path
    messages.of(path, "")
    session.undo(2)
    session.ask("another")
    assert messages.of(session.path, "") == Messages().of(session.path, "")
    assert messages.of(path, "t") == Messages().of(path, "t")


def test_roles_alternate_behind_a_message_without_an_answer() -> None:
    session = Session(ScriptedBackend())
    session.ask("one")
    silent = session._new_exchange("two", session.path[-1].id)
    messages = Messages()
    for path in ([*session.path, silent], [*session.path, silent, session._new_exchange("three", silent.id)]):
        roles = [turn.role for turn in messages.of(path, "")]
        assert roles == [Role.USER, Role.ASSISTANT] * (len(roles) // 2) + [Role.USER] * (len(roles) % 2)
