"""One session in two terminals, and the time that a conversation began."""

from pathlib import Path

from kvchat.backends.base import Notice, time_of
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from tests.chat.exchanges import finish, reopened, said
from tests.scripted import ScriptedBackend


def test_the_second_of_two_terminals_branches_and_says_so(session: Session) -> None:
    other = reopened(session)
    session.ask("mine")
    notices = [event.message for event in other.send("yours") if isinstance(event, Notice)]
    assert len(notices) == 1
    assert other.id in notices[0]
    assert other.id != session.id
    assert said(reopened(session, session.id)) == ["one", "two", "three", "mine"]
    assert said(reopened(session, other.id)) == ["one", "two", "three", "yours"]
    assert not [event for event in session.send("more") if isinstance(event, Notice)]
    assert not [event for event in other.send("more") if isinstance(event, Notice)]


def test_a_branch_of_another_terminal_can_be_seen_and_switched_to(session: Session) -> None:
    other = reopened(session)
    session.ask("mine")
    finish(other.send("yours"))
    assert [(branch.text, branch.shared) for branch in session.branches] == [("mine", 4), ("yours", 3)]
    session.switch(other.id)
    assert said(session) == ["one", "two", "three", "yours"]


def test_a_move_in_a_session_that_moved_elsewhere_branches_as_well(session: Session) -> None:
    other = reopened(session)
    session.ask("four")
    other.undo()
    assert said(reopened(session, session.id)) == ["one", "two", "three", "four"]
    assert any(isinstance(event, Notice) for event in other.send("hello"))


def test_a_store_that_can_not_be_written_is_named_once_and_the_conversation_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    session = Session(ScriptedBackend(), store=Store(tmp_path / "file" / "kvchat.db"))
    notices = [e.message for text in ("one", "two") for e in session.send(text) if isinstance(e, Notice)]
    assert len(notices) == 1
    assert "not saved" in notices[0]
    assert said(session) == ["one", "two"]


def test_it_is_the_time_of_the_beginning_for_a_whole_conversation_wherever_it_goes_on(
    session: Session,
) -> None:
    began = session.path[0].created
    assert time_of(session.history) == began
    other = reopened(session)
    other.ask("four")
    finish(other.retry())
    finish(other.edit(1, "one, anew"))
    other.fork("beside")
    other.ask("five")
    other.switch(session.id)
    other.ask("six")
    other.drop_oldest(1)
    other.ask("seven")
    assert isinstance(other.backend, ScriptedBackend)
    assert {time_of(history) for history in other.backend.histories} == {began}


def test_a_new_conversation_has_a_time_of_its_own(session: Session) -> None:
    before = time_of(session.history)
    session.new()
    session.ask("hello")
    after = time_of(session.history)
    assert before is not None
    assert after is not None
    assert after > before
