"""Answers that stopped and go on, and answers that were never made."""

import pytest

from kvchat.backends.base import Answer, Done, FinishReason, Options, Text, Turn
from kvchat.chat.session import Session
from kvchat.chat.store import Store
from kvchat.errors import ContextOverflowError, UsageError
from tests.chat.exchanges import finish, reopened, said
from tests.scripted import ScriptedBackend


def stop_after(session: Session, events: object, word: str) -> None:
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, Text) and event.text == word:
            session.backend.cancel()


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
