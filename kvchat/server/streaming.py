"""An answer's events for a protocol to write: begun before a status is sent, cancelled when nobody reads on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

from kvchat.backends.base import Answer, Done, Event, Notice, Prefilling, Text, Usage
from kvchat.errors import EngineDiedError
from kvchat.server.endpoint import EventStream
from kvchat.server.question import Question
from kvchat.server.refusals import RefusedError
from kvchat.server.service import Service, check_whole


class Writer(Protocol):
    """How a protocol writes an answer as server-sent events."""

    def begin(self, usage: Usage) -> Iterable[str]:
        """What stands in front of all text; by now the prompt's tokens are known."""

    def tell(self, text: Text) -> Iterable[str]:
        """More text."""

    def end(self, answer: Answer) -> Iterable[str]:
        """What stands behind all text."""

    def fail(self, error: RefusedError) -> Iterable[str]:
        """What is said where the answer breaks off."""


class ToldIds:
    """The ids of an answer that is streamed, each told once, where they are wanted."""

    def __init__(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._untold: list[int] = []
        self.num_generated = 0
        self._num_told = 0

    def add(self, ids: Iterable[int]) -> None:
        """These were generated."""
        new = tuple(ids)
        self._untold += new
        self.num_generated += len(new)

    def rest(self, answer: Answer) -> None:
        """This was all; behind a stop string nothing counts."""
        self._untold = list(answer.completion[self._num_told :])

    def json(self) -> dict[str, list[int]]:
        """What a choice has of them."""
        if not self._is_wanted:
            return {}
        told, self._untold = self._untold, []
        self._num_told += len(told)
        return {"token_ids": told}


async def streamed(service: Service, question: Question, writer: Writer) -> EventStream:
    """An answer as it comes. Raises what goes wrong before it begins, so that this has a status of its own."""
    written = _written(service, question, writer)
    first = await anext(written)
    return EventStream(_from(first, written))


async def answer_of(service: Service, question: Question) -> Answer:
    """A whole answer. Raises what the backend raises, and EngineDiedError for half of one."""
    async with aclosing(_events(service, question)) as events:
        async for event in events:
            if isinstance(event, Done):
                check_whole(event.answer)
                return event.answer
    raise EngineDiedError("the engine ended", "ask again")


async def _events(service: Service, question: Question) -> AsyncGenerator[Event, None]:
    """The events of an answer; the first when it is its turn and the prompt is known."""
    async with service.answering(question) as running, aclosing(running.events()) as events:
        async for event in events:
            yield event


async def _written(service: Service, question: Question, writer: Writer) -> AsyncGenerator[str, None]:
    has_begun = False
    try:
        async with aclosing(_events(service, question)) as events:
            async for event in events:
                if not has_begun and not isinstance(event, Notice):
                    for chunk in _begun(event, writer):
                        yield chunk
                    has_begun = True
                for chunk in _told(event, writer):
                    yield chunk
    except Exception as error:
        if not has_begun:
            raise
        for chunk in writer.fail(service.refusal(error)):
            yield chunk


def _begun(event: Event, writer: Writer) -> Iterable[str]:
    cached, computed = (event.cached, event.total) if isinstance(event, Prefilling) else (0, 0)
    return writer.begin(Usage(cached + computed, 0, cached))


def _told(event: Event, writer: Writer) -> Iterable[str]:
    if isinstance(event, Text):
        return writer.tell(event)
    if isinstance(event, Done):
        check_whole(event.answer)
        return writer.end(event.answer)
    return ()


async def _from(first: str, chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk
