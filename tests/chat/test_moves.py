"""Every verb that moves a session's tip: what it shows, what it keeps, and what the store has of it."""

import json
from dataclasses import replace

import pytest

from kvchat.chat.session import Session
from kvchat.errors import ContextOverflowError, UsageError
from tests.chat.exchanges import finish, reopened, said


def test_a_resumed_session_is_what_it_was(session: Session) -> None:
    other = reopened(session)
    assert other.history == session.history
    assert (other.id, other.title, other.system) == (session.id, "one", "be brief")
    assert other.history[2].tokens == (0, 1, 2)
    assert other.path[0].model == "scripted"
    assert other.last and session.last
    assert other.last.usage == session.last.usage
    assert other.last.timings == session.last.timings
    assert other.last.cache == session.last.cache


def test_undo_moves_back_and_destroys_nothing(session: Session) -> None:
    left = session.undo(2)
    assert [exchange.user.text for exchange in left] == ["two", "three"]
    assert said(session) == ["one"]
    assert said(reopened(session)) == ["one"]
    session.switch(left[-1].id)
    assert said(session) == ["one", "two", "three"]


@pytest.mark.parametrize("number", [0, 4, -1])
def test_undo_of_more_than_there_is_says_how_much_there_is(session: Session, number: int) -> None:
    with pytest.raises(UsageError, match="1 to 3"):
        session.undo(number)
    assert said(session) == ["one", "two", "three"]


def test_retry_branches_at_the_last_message(session: Session) -> None:
    before = session.tip
    finish(session.retry())
    assert said(session) == ["one", "two", "three"]
    assert before and session.tip
    assert session.tip.id != before.id
    assert session.tip.parent == before.parent
    assert [branch.shared for branch in session.branches] == [2, 3]
    session.switch(before.id)
    assert before.answer
    assert session.tip == replace(before, answer=replace(before.answer, prompt=()))


def test_edit_branches_where_the_message_stood(session: Session) -> None:
    finish(session.edit(2, "zwei"))
    assert said(session) == ["one", "zwei"]
    finish(session.edit(-1, "deux"))
    assert said(session) == ["one", "deux"]
    finish(session.edit(1, "uno"))
    assert said(session) == ["uno"]
    assert [(b.text, b.num_exchanges, b.shared) for b in session.branches] == [
        ("three", 3, 0),
        ("zwei", 2, 0),
        ("deux", 2, 0),
        ("uno", 1, 1),
    ]
    assert said(reopened(session)) == ["uno"]


@pytest.mark.parametrize("number", [0, 4, -4])
def test_editing_a_message_that_is_not_there_is_refused_at_once(session: Session, number: int) -> None:
    with pytest.raises(UsageError, match="1 to 3"):
        session.edit(number, "x")


def test_an_edit_that_fails_leaves_everything_as_it_was(session: Session) -> None:
    before = session.path
    with pytest.raises(ContextOverflowError):
        finish(session.edit(2, "overflow"))
    assert session.path == before
    assert len(session.branches) == 1
    assert said(reopened(session)) == ["one", "two", "three"]


def test_a_fork_goes_on_alone(session: Session) -> None:
    first = session.id
    assert session.fork("side") == session.id != first
    session.ask("four")
    assert said(reopened(session, "side")) == ["one", "two", "three", "four"]
    assert said(reopened(session, first)) == ["one", "two", "three"]
    names = {branch.text: branch.sessions for branch in session.branches}
    assert names == {"three": (first,), "four": ("side",)}
    session.switch(first)
    assert (session.id, said(session)) == (first, ["one", "two", "three"])


def test_switch_takes_the_beginning_of_a_branchs_id(session: Session) -> None:
    left = session.undo()[0]
    session.switch(left.id[:6])
    assert said(session) == ["one", "two", "three"]
    with pytest.raises(UsageError, match="no session is called 'nowhere'"):
        session.switch("nowhere")


def test_new_begins_another_session_with_the_same_system_prompt(session: Session) -> None:
    first = session.id
    session.new("second")
    assert session.path == ()
    session.ask("hello")
    assert session.title == "hello"
    assert session.system == "be brief"
    assert [row.label for row in session.store.sessions()] == ["second", "one"]
    session.resume(first)
    assert said(session) == ["one", "two", "three"]


def test_a_session_is_found_by_its_new_name(session: Session) -> None:
    session.rename("holiday")
    assert reopened(session, "holiday").name == "holiday"


@pytest.mark.parametrize("name", ["", " ", "latest", "-r", "x" * 101, "one\n0123 two"])
@pytest.mark.parametrize("verb", ["rename", "fork", "new"])
def test_names_that_would_be_misread_are_refused(session: Session, verb: str, name: str) -> None:
    before = session.id
    with pytest.raises(UsageError, match="can't be called") as caught:
        getattr(session, verb)(name)
    assert session.id == before and "\n" not in str(caught.value) and len(str(caught.value)) < 150


@pytest.mark.parametrize("spoilt", ["\r", "\t", "\x0b", "\x0c", "\0", "\x1b", "\x85", "\u2028", "\u2029"])
def test_a_name_is_one_line_wherever_it_is_given(session: Session, spoilt: str) -> None:
    for rename in (session.rename, lambda name: session.store.rename(session.id, name)):
        with pytest.raises(UsageError, match="one line, at most 100 characters"):
            rename(f"one{spoilt}two")


@pytest.mark.parametrize("name", ["\u200b", "\u3164", "\u2800 \u00a0", "\u0301", "\ufe0f", "\u202e\u2066"])
def test_a_name_that_nobody_sees_is_refused(session: Session, name: str) -> None:
    with pytest.raises(UsageError, match="can't be called"):
        session.rename(name)


@pytest.mark.parametrize("name", ["x" * 100, "日本", "👩\u200d💻", "a-b c.d", "?"])
def test_what_is_one_visible_line_is_a_name(session: Session, name: str) -> None:
    session.rename(name)
    assert reopened(session, name).name == name


def test_a_name_is_given_once(session: Session) -> None:
    session.rename("holiday")
    session.new()
    session.ask("hello")
    for verb in (session.rename, session.fork, session.new):
        with pytest.raises(UsageError, match="another session is called 'holiday'"):
            verb("holiday")


def test_a_conversation_is_exported_as_it_stands(session: Session) -> None:
    session.undo()
    assert session.export("md").startswith(
        "# one\n\n## System\n\nbe brief\n\n## User\n\none\n\n## Assistant\n\n"
    )
    assert "three" not in session.export("html")
    assert json.loads(session.export("json"))["turns"] == 2
    with pytest.raises(UsageError, match="md, json, html"):
        session.export("pdf")
