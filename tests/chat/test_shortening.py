"""A conversation of which the model is told less: a summary of its beginning, without its oldest messages, with what is pinned."""

import pytest

from kvchat.backends.base import FinishReason
from kvchat.chat.session import SUMMARY_REQUEST, Session
from kvchat.errors import UsageError
from tests.chat.exchanges import finish, reopened, said
from tests.scripted import ScriptedBackend


def told(session: Session) -> list[str]:
    """The user's messages that the next prompt has."""
    return [turn.text for turn in session.history if turn.role == "user"]


def test_the_model_is_told_a_summary_of_older_messages_and_all_of_the_rest(session: Session) -> None:
    finish(session.compact(keep=1))
    assert said(session) == ["one", "two", "three"]
    assert told(session) == [SUMMARY_REQUEST, "three"]
    assert session.history[0].text == "be brief"
    backend = session.backend
    assert isinstance(backend, ScriptedBackend)
    assert [turn.text for turn in backend.histories[-1]][1::2] == ["one", "two", SUMMARY_REQUEST]
    assert told(reopened(session)) == [SUMMARY_REQUEST, "three"]
    assert said(reopened(session)) == ["one", "two", "three"]


def test_one_command_goes_back_from_each_summary(session: Session) -> None:
    finish(session.compact(keep=1))
    first = session.summary
    session.ask("four")
    finish(session.compact(keep=1))
    assert told(session) == [SUMMARY_REQUEST, "four"]
    assert session.expand() == first
    assert told(session) == [SUMMARY_REQUEST, "three", "four"]
    assert told(reopened(session)) == told(session)
    assert session.expand() is None
    assert told(session) == said(session) == ["one", "two", "three", "four"]
    assert told(reopened(session)) == said(session)
    with pytest.raises(UsageError, match="told the whole conversation"):
        session.expand()


def test_going_back_before_what_a_summary_stands_for_tells_all_up_to_there(session: Session) -> None:
    finish(session.compact(keep=1))
    session.undo(2)
    assert told(session) == ["one"]
    session.ask("other")
    assert told(session) == ["one", "other"]


def test_an_answer_is_made_again_and_another_message_said_behind_the_summary(session: Session) -> None:
    finish(session.compact(keep=1))
    finish(session.retry())
    assert told(session) == [SUMMARY_REQUEST, "three"]
    finish(session.edit(-1, "three, anew"))
    assert told(session) == [SUMMARY_REQUEST, "three, anew"]
    assert said(session) == ["one", "two", "three, anew"]


def test_a_summary_is_no_branch_no_hit_of_a_search_and_no_turn(session: Session) -> None:
    finish(session.compact(keep=1))
    assert [branch.num_exchanges for branch in session.branches] == [3]
    assert session.store.search("Summarise") == []
    assert [hit.text for _, hit in session.store.search("one")] == ["one"]
    assert session.store.session(session.id).num_exchanges == 3
    assert SUMMARY_REQUEST not in session.export("md")


def test_another_session_that_shares_the_path_is_told_what_it_was_told_before(session: Session) -> None:
    before = session.id
    session.fork("beside")
    finish(session.compact(keep=1))
    other = reopened(session, before)
    assert told(other) == ["one", "two", "three"]
    assert told(reopened(session, "beside")) == [SUMMARY_REQUEST, "three"]


def test_an_unfinished_answer_that_a_summary_stands_for_is_gone_on_with_as_it_was(session: Session) -> None:
    finish(session.edit(-1, "slow 9"))
    session.set_option("max_tokens", 3)
    finish(session.retry())
    assert session.last
    assert session.last.finish_reason is FinishReason.LENGTH
    finish(session.compact(keep=0))
    assert told(session) == [SUMMARY_REQUEST]
    session.set_option("max_tokens", None)
    finish(session.continue_answer())
    assert session.last.text.split() == [f"word{n}" for n in range(9)]


def test_a_cancelled_summary_changes_nothing(session: Session) -> None:
    before = session.path
    events = session.compact()
    next(events)
    events.close()
    assert session.path == before
    assert session.summary is None
    with pytest.raises(UsageError, match="nothing comes before"):
        session.compact(keep=3)


def test_what_is_summarised_already_can_not_be_summarised_again_alone(session: Session) -> None:
    finish(session.compact(keep=2))
    with pytest.raises(UsageError, match="nothing comes before"):
        session.compact(keep=2)


def test_the_oldest_messages_are_left_out_and_come_back(session: Session) -> None:
    session.drop_oldest(2)
    assert said(session) == ["one", "two", "three"]
    assert told(session) == told(reopened(session)) == ["three"]
    assert session.history[0].text == "be brief"
    assert session.history[2].tokens == (0, 1, 2)
    session.expand()
    assert told(session) == ["one", "two", "three"]
    for number in (0, 3):
        with pytest.raises(UsageError, match="has to stay"):
            session.drop_oldest(number)


def test_a_summary_stays_when_what_follows_it_is_left_out(session: Session) -> None:
    finish(session.compact(keep=2))
    session.drop_oldest(1)
    assert told(session) == [SUMMARY_REQUEST, "three"]
    session.expand()
    assert told(session) == [SUMMARY_REQUEST, "two", "three"]


def test_what_is_pinned_stays_word_for_word_before_every_summary(session: Session) -> None:
    assert session.pin(1).user.text == "one"
    finish(session.compact(keep=1))
    assert told(session) == ["one", SUMMARY_REQUEST, "three"]
    session.ask("four")
    session.pin()
    session.ask("five")
    finish(session.compact(keep=1))
    assert told(session) == ["one", "four", SUMMARY_REQUEST, "five"]
    other = reopened(session)
    assert other.pinned == (1, 4)
    assert told(other) == told(session)
    other.pin(1, is_pinned=False)
    assert told(other) == ["four", SUMMARY_REQUEST, "five"]
    assert reopened(session).pinned == (4,)
    with pytest.raises(UsageError, match="no message 9"):
        other.pin(9)
