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


def held(answer: Answer, block: int = 16) -> float:
    """Of the prompt's full blocks of so many tokens, the part that the server says it had."""
    return answer.usage.cached_tokens / (answer.usage.prompt_tokens // block * block)


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


def every_move(
    connect: Callable[[], RemoteBackend], config: Config, options: Options
) -> Iterator[tuple[str, Answer]]:
    """Ten turns, a retry, an edit, a fork, a switch and a restart, each with its answer."""
    with session_over(connect(), config, options) as session:
        for number in range(1, 11):
            yield f"turn {number}", last_of(session.send(f"Where is train {number}?"))
        yield "retry", last_of(session.retry())
        yield "edit", last_of(session.edit(9, "And train 12?"))
        first = session.id
        session.fork("beside")
        yield "fork", last_of(session.send("Thank you."))
        session.switch(first)
        yield "switch", last_of(session.send("Good bye."))
        kept = [turn.text for turn in session.history]
    with session_over(connect(), config, options) as again:  # as -c after a restart
        again.resume()
        assert [turn.text for turn in again.history] == kept
        yield "restart", last_of(again.send("One more?"))


def make_every_move(connect: Callable[[], RemoteBackend], config: Config, options: Options) -> None:
    """Make them: the server had what was said before."""
    for move, answer in every_move(connect, config, options):
        assert answer.text and answer.cache.is_reported
        if move == "edit":
            assert answer.usage.cached_tokens > 300
        else:
            assert move == "turn 1" or held(answer) >= 0.95, move


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


def go_on(session: Session, stopped: Answer) -> Answer:
    """Continue it: what was said stays, and the server had all that came before it. A text may be cut otherwise."""
    joined = last_of(session.continue_answer())
    assert joined.text.startswith(stopped.text) and len(joined.text) > len(stopped.text)
    assert joined.usage.cached_tokens >= stopped.usage.prompt_tokens // 16 * 16
    return joined
