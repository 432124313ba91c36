"""A backend's calls over a connection, and what comes back, as values. Knows neither what is at the other end nor how it came there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kvchat.backends.base import Done, Event, Keeping, Options, Turn
from kvchat.backends.connection import Connection, Message
from kvchat.backends.retelling import Ids, prompt_heard
from kvchat.backends.wire import EVENTS, error_from_wire, from_wire, to_wire
from kvchat.errors import EngineDiedError

T = TypeVar("T")
_FOREIGN = "the engine is of another version of kvchat", "leave, and start kvchat again"


class EngineGoneError(Exception):
    """The other side ended before it replied."""


def about(name: str, history: Sequence[Turn], options: Options, keeping: Keeping, **more: Any) -> Message:
    """A call about a conversation. All that is the caller's own travels with it; the connection knows how to tell it."""
    values = {"history": history, "options": to_wire(options), "keeping": to_wire(keeping)}
    return {"call": name, **values, **more}


def events_of(connection: Connection, message: Message) -> Iterator[Event]:
    """The events of a call, up to `Done` or its end; those that are not known here are left out.

    Closing it cancels the call. Raises EngineGoneError, and what the call raised.
    """
    known = connection.known
    call = connection.call(message | {"knows": known.number})
    has_ended = False
    try:
        while not has_ended:
            kind, value = call.replies.get()
            event = _event(value, known) if kind == "event" else None
            has_ended = kind != "event" or isinstance(event, Done)
            if isinstance(event, Done):
                connection.known = Ids(call.number, (*event.answer.prompt, *event.answer.completion))
            if event is not None:
                yield event
        _check(kind, value)
        if message["call"] == "answer" and kind != "event":
            raise EngineDiedError(*_FOREIGN)  # it has ended without a `Done` that is known here
    finally:
        if not has_ended:
            connection.cancel(call)
        connection.forget(call)


def result_of(connection: Connection, message: Message, read: Callable[[Any], T]) -> T:
    """What a call returns, as `read` makes it of its JSON. Raises EngineGoneError, and what the call raised."""
    call = connection.call(message)
    try:
        kind, value = call.replies.get()
        _check(kind, value)
        return read(value)
    except (KeyError, TypeError, ValueError):
        raise EngineDiedError(*_FOREIGN) from None
    finally:
        connection.forget(call)


def _event(value: Any, known: Ids) -> Event | None:
    """An event from its JSON, told to who has the `known` ids; None for one that is not known here."""
    try:
        if value["type"] == "Done":
            answer = value["value"]["answer"]
            answer["prompt"] = prompt_heard(answer["prompt"], known)
        event: Event = from_wire(EVENTS[value["type"]], value["value"])
    except (KeyError, TypeError, ValueError):
        return None
    return event


def _check(kind: str, value: Any) -> None:
    """Raises what a call's last reply says went wrong."""
    if kind == "died":
        raise EngineGoneError
    if kind == "error":
        raise error_from_wire(value)
