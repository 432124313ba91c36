"""The same backend in a child process: the terminal's. Never imports torch.

When the engine dies, what it was answering is kept as far as it came, and it is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar, cast

from kvchat.backends import base
from kvchat.backends.base import DEFAULTS, Event, Keeping, ModelInfo, Options, Phase, Reach, Status, Turn
from kvchat.backends.calls import EngineGoneError, about, events_of, result_of
from kvchat.backends.child import EngineChild
from kvchat.backends.connection import Connection, Message
from kvchat.backends.inspection import CacheView
from kvchat.backends.wire import from_wire
from kvchat.config import Config
from kvchat.errors import EngineDiedError

MAX_LOST = 3
"""An engine that ended so many times in a row while it loaded is not started again until somebody asks."""

T = TypeVar("T")


class OtherProcess(Protocol):
    """An engine in another process, from its client's side; `EngineChild` says what each means."""

    connection: Connection

    @property
    def has_loaded(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    def obituary(self) -> str: ...

    def end(self) -> None: ...


class ProcessBackend:
    """A `base.Backend` whose engine is another process, by default a child of its own; starts it again when it dies."""

    def __init__(self, config: Config, open_engine: Callable[[Config], OtherProcess] = EngineChild) -> None:
        self.config = config
        self._open_engine = open_engine
        self._keeping = Keeping.from_config(config)
        self._child: OtherProcess | None = None
        self._num_lost = 0  # engines in a row, before this one, that ended while they loaded
        self._closed = False
        self._lock = threading.Lock()  # over these alone

    @property
    def pid(self) -> int | None:
        """The engine's process id, None before it was started."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        with suppress(EngineDiedError):  # `status` says so
            self._living()

    def status(self) -> Status:
        child = self._child
        if self._closed:
            return Status(Phase.CLOSED)
        if child is None or not child.connection.is_dead:
            return child.connection.status if child else Status(Phase.STARTING)
        ended = f"the engine ended ({child.obituary()})"
        return Status(Phase.FAILED if self._lost_with(child) >= MAX_LOST else Phase.STARTING, ended)

    def info(self) -> ModelInfo:
        return self._ask({"call": "info"}, lambda value: cast(ModelInfo, from_wire(ModelInfo, value)))

    def count(self, text: str) -> int:
        return self._ask({"call": "count", "text": text}, int)

    def cancel(self, seat: int | None = None) -> None:
        """See `Backend.cancel`; of an engine that has seats what is made at one of them, by default at all."""
        child = self._child
        if child is not None:
            child.connection.cancel(seat=seat)

    def close(self) -> None:
        with self._lock:
            child, self._child, self._closed = self._child, None, True
        if child is not None:
            child.end()

    def answer(
        self, history: Sequence[Turn], options: Options, *, seat: int = 0
    ) -> Generator[Event, None, None]:
        said: list[base.Text] = []
        call = self._about("answer", history, options, seat=seat)
        child = self._living(anew=True)
        num_deaths = 0
        while num_deaths < 2:
            try:
                for event in events_of(child.connection, call):
                    if isinstance(event, base.Text):
                        said.append(event)
                    yield event
                return
            except EngineGoneError:
                why = child.obituary()
            again = base.Notice(f"the engine ended ({why}) and was started again; the conversation is kept")
            if said:
                self.start()
                yield from (again, base.Done(_cut_short(said)))
                return
            num_deaths += child.has_loaded  # before that, it was not for this message
            child = self._living()
            yield again
        raise EngineDiedError(
            f"the engine ended twice over this message ({why})", "try a smaller model or --context"
        )

    def warm(self, history: Sequence[Turn], options: Options = DEFAULTS) -> Iterator[Event]:
        child = self._living(anew=True)
        try:
            yield from events_of(child.connection, self._about("warm", history, options))
        except EngineGoneError:
            raise _ended(child) from None

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        if not self.config.cache.prepare:
            return
        with suppress(EngineGoneError):  # the next message starts it again
            yield from events_of(self._living().connection, self._about("prepare", history, options))

    def ahead(self, history: Sequence[Turn], options: Options, reach: Reach) -> Iterator[base.Ahead]:
        child = self._child
        if child is None or child.connection.is_dead:  # nothing is started for what nobody asked
            return
        call = self._about("ahead", history, options, reach=reach.value)
        with suppress(EngineGoneError):
            yield from cast(Iterator[base.Ahead], events_of(child.connection, call))

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        call = self._about("cache", history, options, has_rows=has_rows)
        return self._ask(call, lambda value: cast(CacheView, from_wire(CacheView, value)))

    def prompt(self, history: Sequence[Turn], options: Options = DEFAULTS) -> tuple[int, ...]:
        """See `LocalBackend.prompt`."""
        return self._ask(self._about("prompt", history, options), tuple)

    def _ask(self, message: Message, read: Callable[[Any], T]) -> T:
        child = self._living()
        try:
            return result_of(child.connection, message, read)
        except EngineGoneError:
            raise _ended(child) from None

    def _about(self, name: str, history: Sequence[Turn], options: Options, **more: Any) -> Message:
        return about(name, history, options, self._keeping, **more)

    def _living(self, *, anew: bool = False) -> OtherProcess:
        """The engine, started again if it has ended; where that is of no use, only to try `anew`."""
        with self._lock:
            if self._closed:
                raise EngineDiedError("the engine was closed")
            child = self._child
            if child is not None and not child.connection.is_dead:
                return child
            num_lost = 0 if child is None or anew else self._lost_with(child)
            if child is None or num_lost < MAX_LOST:
                self._num_lost = num_lost
                self._child = self._open_engine(self.config)
                return self._child
        raise EngineDiedError(
            f"the engine ended {MAX_LOST} times while it loaded ({child.obituary()})",
            "take a smaller model; the next message starts it again",
        )

    def _lost_with(self, child: OtherProcess) -> int:
        """How many in a row ended while they loaded, with this one that has ended."""
        return 0 if child.has_loaded else self._num_lost + 1


def _ended(child: OtherProcess) -> EngineDiedError:
    return EngineDiedError(f"the engine ended ({child.obituary()})", "ask again")


def _cut_short(said: Sequence[base.Text]) -> base.Answer:
    """What was shown of an answer whose engine died; its ids died with it."""
    text, reasoning = (
        "".join(piece.text for piece in said if piece.reasoning is part) for part in (False, True)
    )
    return base.Answer.cut_short("the engine ended", text=text, reasoning=reasoning)
