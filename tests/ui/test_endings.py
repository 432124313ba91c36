"""Why an answer stopped is said, with what goes on from there."""

from dataclasses import replace

import pytest

from kvchat.backends.base import Answer, CacheReport, FinishReason, Options, Timings, Usage
from kvchat.chat.session import Session
from kvchat.chat.tree import Preset
from kvchat.ui.endings import ending
from tests.scripted import ScriptedBackend

ANSWER = Answer(
    "text",
    "",
    (),
    (1,),
    "words",
    FinishReason.STOP,
    Usage(10, 5, 0),
    Timings(0, 0, 0, 0, 0, 0, 0, 0),
    CacheReport(0, 0, 0, 0, ""),
)


@pytest.fixture
def session() -> Session:
    return Session(ScriptedBackend())


def said(session: Session, reason: FinishReason, context: int = 8192, **more: object) -> str:
    answer = replace(ANSWER, finish_reason=reason, **more)  # type: ignore[arg-type]
    return str(ending(session, answer, context))


def test_nothing_is_said_where_the_model_ended_it(session: Session) -> None:
    assert said(session, FinishReason.STOP) == ""


def test_a_loop_a_stop_string_and_the_user_are_named(session: Session) -> None:
    assert "repeating itself; /continue goes on" in said(session, FinishReason.REPETITION)
    assert said(session, FinishReason.STOP, stop_text="END") == "stopped at the stop string 'END'"
    assert said(session, FinishReason.CANCELLED) == "stopped by you; /continue goes on"
    empty = said(session, FinishReason.CANCELLED, text="", completion=())
    assert empty == "stopped before it began; your message is back in the input"


def test_each_limit_is_told_from_the_others(session: Session) -> None:
    assert "the longest answer by default" in said(session, FinishReason.LENGTH)
    assert "the context of 15 tokens is full" in said(session, FinishReason.LENGTH, context=15)
    session.options = Options(max_tokens=5)
    assert "5 tokens, which is max_tokens" in said(session, FinishReason.LENGTH)
    session.set_system("be brief", preset=Preset("brief", {"max_tokens": 5}))
    assert "5 tokens, the limit of the prompt brief" in said(session, FinishReason.LENGTH)
