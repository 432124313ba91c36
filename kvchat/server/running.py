"""One answer being made: the backend's blocking iterator in a thread of its own, its events in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from kvchat.backends.base import DEFAULTS, Answer, Backend, Done, Event, Options, Turn
from kvchat.server.seats import Answerer


class Engine(Backend, Protocol):
    """A backend that also tells the ids of prompts."""

    def prompt(self, history: Sequence[Turn], options: Options = DEFAULTS) -> tuple[int, ...]:
        """The ids of the prompt that a history is. Raises KvchatError."""


class Running:
    """One answer, begun at once. `on_answer` and `on_end` are called in the event loop: with what came of it, however it
    ended, and when the backend has let go of it."""

    def __init__(
        self,
        backend: Answerer,
        turns: Sequence[Turn],
        options: Options,
        *,
        on_answer: Callable[[Answer], None],
        on_end: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._on_answer, self._on_end = on_answer, on_end
        self._is_cancelled = threading.Event()
        self._has_ended = False
        work = threading.Thread(target=self._run, args=(turns, options), name="kvchat-answer", daemon=True)
        work.start()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The answer's events, as they come. Raises what the backend raises."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def cancel(self) -> None:
        """End it soon, if it has not ended. No other answer begins at its seat before `on_end`, so none is cancelled with it."""
        self._is_cancelled.set()
        if not self._has_ended:
            self._backend.cancel()

    def _run(self, turns: Sequence[Turn], options: Options) -> None:
        try:
            for event in self._events_of(turns, options):
                self._call(self._tell, event)
                if self._is_cancelled.is_set() and not isinstance(event, Done):
                    self._backend.cancel()  # the first time it may not have been asked yet
        except BaseException as error:  # raised where the events are read
            self._call(self._events.put_nowait, error)
        finally:
            self._call(self._end)

    def _events_of(self, turns: Sequence[Turn], options: Options) -> Iterator[Event]:
        return iter(()) if self._is_cancelled.is_set() else self._backend.answer(turns, options)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Done):
            self._has_ended = True
            self._on_answer(event.answer)
        self._events.put_nowait(event)

    def _end(self) -> None:
        self._has_ended = True
        self._events.put_nowait(None)
        self._on_end()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)
