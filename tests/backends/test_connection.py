"""The stream between terminal and engine: here its other end is played by hand."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest

from kvchat.backends.base import Phase, Role, Turn
from kvchat.backends.connection import MAX_UNSENT, Connection


class Engine:
    """The other end: `said` is what comes from the terminal, `say` sends a line."""

    def __init__(self) -> None:
        (heard, calls), (replies, says) = os.pipe(), os.pipe()
        self.said, self._says = os.fdopen(heard, "rb"), os.fdopen(says, "wb")
        self._calls, self._replies = os.fdopen(calls, "wb", buffering=0), os.fdopen(replies, "rb")
        self.has_ended = threading.Event()
        self.connection = Connection({"hello": 1}, lambda: (self._calls, self._replies), self.has_ended.set)

    def hear(self) -> Any:
        return json.loads(self.said.readline())

    def say(self, message: object, end: bytes = b"\n") -> None:
        self._says.write((message if isinstance(message, bytes) else json.dumps(message).encode()) + end)
        self._says.flush()

    def die(self) -> None:
        self.said.close()
        self._says.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.die()


def test_calls_get_the_replies_that_carry_their_number(engine: Engine) -> None:
    first, second = (engine.connection.call({"call": name}) for name in "ab")
    assert engine.hear() == {"hello": 1}
    assert [engine.hear() for _ in range(2)] == [{"call": "a", "id": 1}, {"call": "b", "id": 2}]
    engine.say({"id": 2, "kind": "result", "value": "two"})
    engine.say({"id": 1, "kind": "event", "value": "one"})
    assert first.replies.get() == ("event", "one")
    assert second.replies.get() == ("result", "two")


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": 1, "kind": "ev',
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"id": [], "kind": "event", "value": 1}',
        b'{"id": 1, "kind": "thought", "value": 1}',
        b'{"status": {"phase": "dreaming"}}',
        b'{"status": 3}',
    ],
)
def test_a_line_that_is_not_known_is_left_out(engine: Engine, line: bytes) -> None:
    call = engine.connection.call({})
    engine.say(line)
    engine.say({"status": {"phase": "ready", "mood": "new"}})
    engine.say({"id": 1, "kind": "result", "value": 1})
    assert call.replies.get() == ("result", 1)
    assert engine.connection.status.phase is Phase.READY


def test_an_engine_that_ends_in_mid_line_leaves_nobody_waiting(engine: Engine) -> None:
    calls = [engine.connection.call({}) for _ in range(2)]
    engine.say(b'{"id": 1, "kind": "eve', end=b"")
    engine.die()
    assert [call.replies.get() for call in calls] == [("died", None)] * 2
    assert engine.has_ended.wait(60)
    assert engine.connection.is_dead
    assert engine.connection.call({}).replies.get() == ("died", None)


def test_a_stream_that_can_not_be_had_is_an_end() -> None:
    def no_stream() -> tuple[IO[bytes], IO[bytes]]:
        raise FileNotFoundError

    has_ended = threading.Event()
    connection = Connection({}, no_stream, has_ended.set)
    assert connection.call({}).replies.get() == ("died", None)
    assert has_ended.wait(60)


def test_nobody_waits_for_a_side_that_does_not_read(engine: Engine) -> None:
    call = engine.connection.call({"text": "x" * 2**24})
    while engine.connection.send({"call": "cancel"}):
        pass
    kind, value = engine.connection.call({}).replies.get()
    assert (kind, value["message"]) == ("error", "the engine takes no more calls")
    assert not engine.connection.close(0.0, 0.0)
    assert call.replies.empty()
    assert MAX_UNSENT >= engine.connection._unsent.qsize() > 0


def test_an_end_that_was_understood_is_waited_for(engine: Engine) -> None:
    engine.say({"status": {"phase": "closed"}})
    threading.Thread(target=lambda: (engine.said.read(), engine.die())).start()
    assert engine.connection.close(60.0, 60.0)


def test_a_history_is_told_in_parts_only_to_who_remembers_and_anew_after_an_error(engine: Engine) -> None:
    said = [Turn(Role.USER, "a"), Turn(Role.ASSISTANT, "b"), Turn(Role.USER, "c")]
    engine.hear()
    for _ in range(2):
        engine.connection.call({"history": said[:1]})
        assert len(engine.hear()["history"]) == 1
    engine.say({"status": {"phase": "ready"}, "remembers": True})
    while engine.connection.status.phase is not Phase.READY:
        time.sleep(0.001)
    third = engine.connection.call({"history": said[:1]})
    engine.hear()
    engine.connection.call({"history": said})
    assert engine.hear()["history"]["same"] == 1
    engine.say({"id": third.number, "kind": "error", "value": {}})
    assert third.replies.get()[0] == "error"
    engine.connection.call({"history": said})
    assert len(engine.hear()["history"]) == 3
