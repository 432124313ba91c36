"""The conversation's tree, against a scripted backend."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from kvchat.backends.base import Done, Event, FinishReason, Options, Role, Text, Turn
from kvchat.chat.session import Session
from kvchat.errors import ContextOverflowError, EngineDiedError
from tests.scripted import ScriptedBackend


def texts(session: Session) -> list[str]:
    return [turn.text for turn in session.history]


def test_the_history_carries_system_messages_and_answers_in_order() -> None:
    session = Session(ScriptedBackend(), system="be brief")
    session.ask("one")
    session.ask("two")
    assert [turn.role for turn in session.history] == [
        Role.SYSTEM,
        Role.USER,
        Role.ASSISTANT,
        Role.USER,
        Role.ASSISTANT,
    ]
    assert texts(session)[:4] == ["be brief", "one", "[2] you said: one", "two"]


def test_the_generated_ids_are_what_the_next_prompt_carries() -> None:
    backend = ScriptedBackend()
    session = Session(backend)
    session.ask("one")
    session.ask("two")
    answer = backend.histories[1][1]
    assert answer.tokens == (0, 1, 2)
    assert answer.tokenizer == "words"


def test_the_message_stands_in_the_history_while_it_is_answered() -> None:
    session = Session(ScriptedBackend())
    events = session.send("hello")
    next(events)
    assert texts(session) == ["hello"]
    list(events)
    assert texts(session) == ["hello", "[1] you said: hello"]


def test_a_cancelled_answer_is_kept_with_what_was_said() -> None:
    backend = ScriptedBackend()
    session = Session(backend)
    last = None
    for event in session.send("slow 100"):
        if isinstance(event, Text) and event.text == "word2 ":
            backend.cancel()
        last = event
    assert isinstance(last, Done)
    assert last.answer.finish_reason is FinishReason.CANCELLED
    assert texts(session) == ["slow 100", "word0 word1 word2 "]
    assert session.last is last.answer


def test_a_message_cancelled_before_its_first_token_is_taken_back() -> None:
    backend = ScriptedBackend()
    session = Session(backend)
    session.ask("before")
    for _ in session.send("long 50"):
        backend.cancel()
    assert texts(session) == ["before", "[1] you said: before"]
    assert session.totals.answers == 1


def test_an_abandoned_stream_is_cancelled_and_kept_with_its_ids() -> None:
    session = Session(ScriptedBackend())
    for text in session.stream("slow 100"):
        if text == "word1 ":
            break
    assert texts(session) == ["slow 100", "word0 word1 "]
    assert session.history[1].tokens == (0, 1)
    assert session.ask("next") == "[3] you said: next"


def test_an_error_takes_the_message_back_and_the_conversation_goes_on() -> None:
    session = Session(ScriptedBackend())
    session.ask("before")
    with pytest.raises(ContextOverflowError):
        session.ask("overflow")
    assert texts(session) == ["before", "[1] you said: before"]
    assert session.ask("after") == "[3] you said: after"


def test_an_engine_that_dies_in_mid_answer_takes_the_message_back() -> None:
    session = Session(ScriptedBackend())
    with pytest.raises(EngineDiedError):
        session.ask("break 3")
    assert texts(session) == []


def test_clear_keeps_the_system_prompt_and_forgets_the_path() -> None:
    session = Session(ScriptedBackend(), system="be brief")
    session.ask("one")
    session.clear()
    assert texts(session) == ["be brief"]
    assert session.last is None


def test_a_new_system_prompt_counts_from_the_next_message() -> None:
    backend = ScriptedBackend()
    session = Session(backend, system="old")
    session.ask("one")
    session.set_system("new")
    session.ask("two")
    assert [history[0].text for history in backend.histories] == ["old", "new"]
    session.set_system(None)
    assert session.history[0].role is Role.USER


def test_the_totals_add_what_was_cached_and_what_was_prefilled() -> None:
    session = Session(ScriptedBackend())
    session.ask("one two three")
    assert session.totals.hit_rate == 0.0
    session.ask("four")
    assert session.totals.prefilled_tokens == 4
    assert session.totals.cached_tokens == 9
    assert session.totals.hit_rate == pytest.approx(9 / 13)


def test_options_reach_the_backend() -> None:
    backend = ScriptedBackend()
    session = Session(backend, Options(max_tokens=2))
    assert session.ask("slow 9") == "word0 word1 "
    assert backend.options == [Options(max_tokens=2)]


def test_leaving_the_session_closes_its_backend() -> None:
    backend = ScriptedBackend()
    with Session(backend) as session:
        session.ask("hello")
    assert backend.closed


class DyingBackend(ScriptedBackend):
    """Its engine dies in mid-answer: what was said is handed out as text without ids."""

    def answer(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        for event in super().answer(history, options):
            if isinstance(event, Done):
                usage = replace(event.answer.usage, prompt_tokens=0, completion_tokens=0, cached_tokens=0)
                reason = FinishReason.CANCELLED
                event = Done(
                    replace(event.answer, completion=(), prompt=(), usage=usage, finish_reason=reason)
                )
            yield event


def test_what_a_dying_engine_said_is_kept_as_text() -> None:
    session = Session(DyingBackend())
    session.ask("hello")
    assert texts(session) == ["hello", "[1] you said: hello"]
