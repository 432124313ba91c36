"""A conversation with the clerk of a railway station, over whichever server: its moves, and what the server had of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from kvchat.backends.base import Answer, Done, FinishReason, Options, Text
from kvchat.backends.remote.backend import RemoteBackend
from kvchat.chat.session import Session
from kvchat.config import Config

SYSTEM = "You are the clerk of a small railway station. " + " ".join(
    f"Train {n} leaves at {n}:{n * 7 % 60:02} from platform {n % 5}." for n in range(1, 23)
)


def held(answer: Answer) -> float:
    """Of the prompt's full blocks of 16 tokens, the part that the server says it had."""
    return answer.usage.cached_tokens / (answer.usage.prompt_tokens // 16 * 16)


def last_of(events: Iterator[object]) -> Answer:
    *_, done = events
    assert isinstance(done, Done)
    return done.answer


@contextmanager
def session_over(backend: RemoteBackend, config: Config, options: Options) -> Iterator[Session]:
    with Session.from_config(backend, replace(config, chat=replace(config.chat, system=SYSTEM))) as session:
        session.options = options
        session.model = "here"
        yield session


def make_every_move(connect: Callable[[], RemoteBackend], config: Config, options: Options) -> None:
    """Ten turns, a retry, an edit, a fork, a switch and a restart: the server had what was said before."""
    with session_over(connect(), config, options) as session:
        for number in range(1, 11):
            answer = last_of(session.send(f"Where is train {number}?"))
            assert answer.text and answer.cache.is_reported
            assert number == 1 or held(answer) >= 0.95
        assert held(last_of(session.retry())) >= 0.95
        assert last_of(session.edit(9, "And train 12?")).usage.cached_tokens > 300
        first = session.id
        session.fork("beside")
        assert held(last_of(session.send("Thank you."))) >= 0.95
        session.switch(first)
        assert last_of(session.send("Good bye.")).text
        kept = [turn.text for turn in session.history]
    with session_over(connect(), config, options) as again:  # as -c after a restart
        again.resume()
        assert [turn.text for turn in again.history] == kept
        assert held(last_of(again.send("One more?"))) >= 0.95


def stop(session: Session) -> Answer:
    """An answer that is stopped at its third piece of text."""
    events, seen = session.send("Name all the trains, one by one."), 0
    for event in events:
        seen += isinstance(event, Text)
        if seen == 3:
            session.backend.cancel()
            break
    stopped = last_of(events)
    assert stopped.finish_reason is FinishReason.CANCELLED and stopped.text
    return stopped


def go_on(session: Session, stopped: Answer) -> None:
    """Continue it: what was said stays, and the server had all that came before it. A text may be cut otherwise."""
    joined = last_of(session.continue_answer())
    assert joined.text.startswith(stopped.text) and len(joined.text) > len(stopped.text)
    assert joined.usage.cached_tokens >= stopped.usage.prompt_tokens // 16 * 16
