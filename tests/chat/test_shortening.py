"""A conversation made shorter: a summary of its beginning, or without its oldest messages."""

import pytest

from kvchat.chat.session import SUMMARY_REQUEST, Session
from kvchat.errors import UsageError
from tests.chat.exchanges import finish, reopened, said
from tests.scripted import ScriptedBackend


def test_the_model_compacts_older_messages_and_the_rest_stays(session: Session) -> None:
    before = session.tip
    finish(session.compact(keep=1))
    assert said(session) == [SUMMARY_REQUEST, "three"]
    assert session.history[0].text == "be brief"
    backend = session.backend
    assert isinstance(backend, ScriptedBackend)
    assert [turn.text for turn in backend.histories[-1]][1::2] == ["one", "two", SUMMARY_REQUEST]
    assert said(reopened(session)) == [SUMMARY_REQUEST, "three"]
    assert before
    session.switch(before.id)
    assert said(session) == ["one", "two", "three"]


def test_a_cancelled_summary_changes_nothing(session: Session) -> None:
    before = session.path
    events = session.compact()
    next(events)
    events.close()
    assert session.path == before
    with pytest.raises(UsageError, match="nothing comes before"):
        session.compact(keep=3)


def test_the_oldest_messages_are_dropped_as_a_branch(session: Session) -> None:
    before = session.tip
    session.drop_oldest(2)
    assert said(session) == ["three"]
    assert session.history[0].text == "be brief"
    assert session.history[2].tokens == (0, 1, 2)
    assert before
    session.switch(before.id)
    assert len(session.path) == 3
    for number in (0, 3):
        with pytest.raises(UsageError, match="has to stay"):
            session.drop_oldest(number)
