"""Messages and commands, one after the other: the queue, and the threads that wait for the backend.

Lives in the event loop's thread; what a thread finds out is handed to the loop. Knows no screen.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from kvchat.backends.base import Done, Event, Phase
from kvchat.chat.session import Session
from kvchat.errors import KvchatError
from kvchat.ui import commands
from kvchat.ui.cost import check_length
from kvchat.ui.desk import Asking, Desk
from kvchat.ui.files import with_files

_POLL_S = 0.05


class Listener(Protocol):
    """Who is told, in the loop's thread, what became of a message or a command."""

    def on_turn(self, text: str) -> None:
        """A message is sent now, or with an empty `text` what a command asks."""

    def on_event(self, event: Event) -> None:
        """The backend's events for it."""

    def on_failure(self, text: str, error: KvchatError) -> None:
        """It could not be answered."""

    def on_turn_end(self) -> None:
        """Its turn is over, however it ended."""

    def on_result(self, text: str, shown: str, error: KvchatError | None) -> None:
        """A command ended, with something to show or an error."""


class Turns:
    """Answers messages in order, and runs commands where their turn comes."""

    def __init__(self, session: Session, desk: Desk, listener: Listener) -> None:
        self.running: str | None = None
        self.waiting: deque[str] = deque()
        self._session = session
        self._desk = desk
        self._listener = listener
        self._is_stopping = False
        self._news = asyncio.Event()
        self._worker: threading.Thread | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        is_working = self._worker is not None and self._worker.is_alive()
        return not (self.waiting or self.running is not None or is_working)

    def add(self, text: str) -> None:
        """Put a message or a command at the end of the queue."""
        self.waiting.append(text)
        self._news.set()

    def take_back(self) -> str:
        """The messages that wait, as one text; nothing waits any more, commands neither."""
        text = "\n".join(text for text in self.waiting if not commands.is_command(text))
        self.waiting.clear()
        return text

    def run_now(self, command: str) -> None:
        """Run a command beside whatever is going on."""
        self.start(self._run_command, command)

    def stop(self) -> None:
        """Cancel the running answer, even if the backend has not begun with it."""
        self._is_stopping = True
        self._session.backend.cancel()

    async def work(self) -> None:
        """Take one after the other, for ever."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            while await self._is_next_ready():
                text = self.waiting.popleft()
                if commands.is_command(text):
                    await self._command(text)
                else:
                    await self._turn(text, partial(self._said, text), shown=text)

    def start(self, work: Callable[..., None], *values: object) -> threading.Thread:
        """Do something that may wait, in a thread that does not keep the program alive."""
        thread = threading.Thread(target=work, args=values, name="dialogue", daemon=True)
        thread.start()
        return thread

    def hand(self, verb: Callable[..., Any], *values: object) -> None:
        """From any thread: do this in the loop's thread, or nothing once the loop is over."""
        try:
            self._loop.call_soon_threadsafe(verb, *values)
        except RuntimeError:
            pass

    def abandon(self, limit_s: float) -> None:
        """Cancel the running answer and wait for its end, so that its turn is kept; within a bound."""
        if self._worker is not None and self._worker.is_alive():
            self._session.backend.cancel()
            self._worker.join(limit_s)

    async def _is_next_ready(self) -> bool:
        """Whether something is to be done; a message waits for the model, so that it can still be taken back."""
        if self.waiting and self._session.backend.status().phase in (Phase.STARTING, Phase.LOADING):
            waiter = self.start(self._wait_for_model)
            while waiter.is_alive() and self.waiting and not commands.is_command(self.waiting[0]):
                await asyncio.sleep(_POLL_S)
        return bool(self.waiting)

    async def _command(self, text: str) -> None:
        """Run a command, and answer what it asks."""
        asked: list[Asking] = []
        await self._finish(partial(self._run_command, text, asked.append))
        for asking in asked:
            await self._turn(text, lambda asking=asking: asking.events, shown="")  # type: ignore[misc]

    async def _turn(self, text: str, events: Callable[[], Iterator[Event]], *, shown: str) -> None:
        self.running = text
        self._is_stopping = False
        self._listener.on_turn(shown)
        try:
            await self._finish(partial(self._answer, text, events))
        finally:
            self.running = None
            self._listener.on_turn_end()

    async def _finish(self, work: Callable[[], None]) -> None:
        done = asyncio.Event()

        def whole() -> None:
            try:
                work()
            finally:
                self.hand(done.set)

        self._worker = self.start(whole)
        await done.wait()

    def _wait_for_model(self) -> None:
        with suppress(KvchatError):  # the message will meet the same error
            self._session.backend.info()

    def _said(self, text: str) -> Iterator[Event]:
        whole = sent_text(text)
        check_length(self._session.backend, whole)
        return self._session.send(whole)

    def _answer(self, text: str, events: Callable[[], Iterator[Event]]) -> None:
        try:
            for event in events():
                if self._is_stopping and not isinstance(event, Done):
                    self._is_stopping = False  # once more: what was asked before it began may be forgotten
                    self._session.backend.cancel()
                self.hand(self._listener.on_event, event)
        except Exception as error:  # a bug must not end the dialogue
            self.hand(self._listener.on_failure, text, _as_known(error))

    def _run_command(self, text: str, ask: Callable[[Asking], None] | None = None) -> None:
        shown, failure = "", None
        try:
            command, argument = commands.find(text)
            result = command.run(self._desk, argument)
            shown = result.note if isinstance(result, Asking) else result
            if isinstance(result, Asking):
                assert ask is not None, "a command that asks has to wait for its turn"
                ask(result)
        except Exception as error:  # nor may one in a command
            failure = _as_known(error)
        self.hand(self._listener.on_result, text, shown, failure)


def sent_text(text: str) -> str:
    """What the model gets of a message: one that begins with `//` is no command, and files come along. Raises UsageError."""
    return with_files(text.removeprefix("/") if text.startswith("//") else text)


def _as_known(error: Exception) -> KvchatError:
    if isinstance(error, KvchatError):
        return error
    return KvchatError(f"internal error: {type(error).__name__}: {error}")
