"""Every verb that moves a session's tip: what it shows, what it keeps, and what the store has of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvchat.backends.base import Answer, Done, Event, FinishReason, Notice, Options, Text, Turn, time_of
from kvchat.chat.conversation import Conversation
from kvchat.chat.session import SUMMARY_REQUEST, Session
from kvchat.chat.store import Store
from kvchat.errors import ContextOverflowError, UsageError
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


def stop_after(session: Session, events: object, word: str) -> None:
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, Text) and event.text == word:
            session.backend.cancel()


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


@pytest.mark.parametrize("name", ["", " ", "latest", "-r"])
def test_names_that_would_be_misread_are_refused(session: Session, name: str) -> None:
    with pytest.raises(UsageError, match="can't be called"):
        session.rename(name)


def test_a_name_is_given_once(session: Session) -> None:
    session.rename("holiday")
    session.new()
    session.ask("hello")
    for verb in (session.rename, session.fork, session.new):
        with pytest.raises(UsageError, match="another session is called 'holiday'"):
            verb("holiday")


def test_an_answer_cut_by_its_length_goes_on_where_it_stopped(store: Store) -> None:
    backend = ScriptedBackend()
    session = Session(backend, Options(max_tokens=2), store=store)
    session.ask("slow 5")
    session.options = Options()
    events = finish(session.continue_answer())
    assert backend.histories[-1][-1] == Turn(
        backend.histories[-1][-1].role, "word0 word1 ", "", (0, 1), "words"
    )
    assert "".join(event.text for event in events if isinstance(event, Text)) == "word2 word3 word4 "
    assert isinstance(events[-1], Done)
    assert events[-1].answer is session.last
    whole = reopened(session).last
    assert whole
    assert whole.text == "word0 word1 word2 word3 word4 "
    assert whole.completion == (0, 1, 2, 3, 4)
    assert whole.finish_reason is FinishReason.STOP
    with pytest.raises(UsageError, match="complete"):
        session.continue_answer()


def test_an_answer_goes_on_after_a_restart(store: Store) -> None:
    session = Session(ScriptedBackend(), store=store)
    stop_after(session, session.send("slow 4"), "word1 ")
    other = reopened(session)
    finish(other.continue_answer())
    assert other.last
    assert other.last.text == "word0 word1 word2 word3 "
    assert len(other.path) == 1


def test_what_followed_a_cut_answer_keeps_the_cut_answer(store: Store) -> None:
    session = Session(ScriptedBackend(), Options(max_tokens=2), store=store)
    session.ask("slow 3")
    session.ask("and then")
    session.undo()
    session.options = Options()
    finish(session.continue_answer())
    assert session.last
    assert session.last.text == "word0 word1 word2 "
    before, after = session.branches
    assert (before.num_exchanges, before.shared, after.num_exchanges) == (2, 0, 1)
    session.switch(before.tip)
    assert session.history[1].text == "word0 word1 "


def test_going_on_with_another_tokenizer_keeps_the_text_and_forgets_the_ids(store: Store) -> None:
    backend = ScriptedBackend()
    session = Session(backend, Options(max_tokens=2), store=store)
    session.ask("slow 3")
    session.options, backend.tokenizer = Options(), "letters"
    finish(session.continue_answer())
    assert session.last
    assert (session.last.text, session.last.completion) == ("word0 word1 word2 ", ())
    assert reopened(session).history[1].tokens is None


def test_an_answer_that_fails_to_go_on_stays_as_it_was(store: Store) -> None:
    backend = ScriptedBackend()
    session = Session(backend, Options(max_tokens=2), store=store)
    session.ask("slow 3")
    before = session.path
    backend.missing = True
    with pytest.raises(Exception, match="nobody"):
        finish(session.continue_answer())
    assert session.path == before
    assert reopened(session).history[1].tokens == (0, 1)


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
    with pytest.raises(UsageError, match="nothing lies ahead"):
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


def test_a_conversation_is_exported_as_it_stands(session: Session) -> None:
    session.undo()
    assert session.export("md").startswith(
        "# one\n\n## System\n\nbe brief\n\n## User\n\none\n\n## Assistant\n\n"
    )
    assert "three" not in session.export("html")
    assert json.loads(session.export("json"))["turns"] == 2
    with pytest.raises(UsageError, match="md, json, html"):
        session.export("pdf")


def test_a_move_in_a_session_that_moved_elsewhere_branches_as_well(session: Session) -> None:
    other = reopened(session)
    session.ask("four")
    other.undo()
    assert said(reopened(session, session.id)) == ["one", "two", "three", "four"]
    assert any(isinstance(event, Notice) for event in other.send("hello"))


def test_a_message_that_is_taken_back_leaves_no_session(store: Store) -> None:
    session = Session(ScriptedBackend(), store=store)
    with pytest.raises(ContextOverflowError):
        session.ask("overflow")
    assert store.sessions() == []
    session.ask("hello")
    assert [row.title for row in store.sessions()] == ["hello"]


def test_an_unanswered_message_is_answered_later_or_passed_over_with_roles_in_turn(store: Store) -> None:
    session = Session(ScriptedBackend(), store=store)
    events = session.send("hello")
    next(events)
    other = reopened(session)
    assert other.tip
    assert other.tip.answer is None
    assert other.ask("and") == "[3] you said: and"
    assert [turn.role for turn in other.history] == ["user", "assistant", "user", "assistant"]
    third = reopened(session, session.id)
    third.undo()
    finish(third.retry())
    assert said(third) == ["hello"]
    assert third.last
    assert third.last.text == "[1] you said: hello"


def test_the_answers_text_is_saved_while_it_comes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvchat.chat.incoming.SAVE_EVERY_S", 0.0)
    session = Session(ScriptedBackend(), store=store)
    events = session.send("slow 5")
    for event in events:
        if isinstance(event, Text) and event.text == "word2 ":
            break
    last = reopened(session).last
    assert isinstance(last, Answer)
    assert (last.text, last.completion) == ("word0 word1 word2 ", ())
    assert last.finish_reason is FinishReason.CANCELLED


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
