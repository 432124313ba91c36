"""A `base.Backend` whose model a server has: connects in the background, asks, reads, and says what the server cached."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from kvchat.backends import base
from kvchat.backends.base import DEFAULTS, Event, ModelInfo, Options, Phase, Reach, Role, Status, Turn
from kvchat.backends.inspection import CacheView
from kvchat.backends.remote.connecting import Connected, Connecting, connected
from kvchat.backends.remote.link import Link
from kvchat.backends.remote.question import unsent
from kvchat.config import Config
from kvchat.errors import EngineDiedError, KvchatError
from kvchat.remotes import Target

if TYPE_CHECKING:
    from kvchat.backends.remote.asking import Asking


class RemoteBackend:
    """Asks the model `target`. See `base.Backend`; a server that can't be reached is tried again with the next message."""

    def __init__(self, config: Config, target: Target) -> None:
        self.config = config
        self.target = target
        self._status = Status(Phase.STARTING)
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._told: set[str] = set()
        self._lock = threading.Lock()  # over these below
        self._link: Link | None = None
        self._connecting: Connecting | None = None
        self._is_closed = False
        self._asking: Asking | None = None
        self._cancelled = threading.Event()

    def start(self) -> None:
        with self._lock:
            if self._connecting is None and not self._is_closed:
                self._begin()

    def status(self) -> Status:
        return self._status

    def info(self) -> ModelInfo:
        found = self._connected()
        return ModelInfo(
            name=found.server.model.id,
            architecture="",
            dtype="",
            device=f"{found.server.kind} at {self.target.where}",
            context=found.server.model.context,
            num_parameters=0,
            kv_bytes_per_token=0,
            reuse="server",
            tokenizer=found.tokens.id if found.tokens else "",
            load_ms=0.0,
            template="append-safe" if found.sends_ids else "server",
            weights="server",
        )

    def answer(self, history: Sequence[Turn], options: Options) -> Generator[Event, None, None]:
        from kvchat.backends.remote.asking import Asking

        self._cancelled.clear()
        connecting, link = self._connection(anew=True)
        if not connecting.is_over(self._cancelled):
            yield base.Done(base.Answer.cut_short(base.NEVER_BEGUN))
            return
        found = connecting.result()
        self._warn_of(options, found)
        yield from self._untold_notices()
        self._asking = Asking(link, found, self._cancelled, self._show)
        try:
            yield from self._asking.events(tuple(history), options)
        finally:
            self._asking = None

    def warm(self, history: Sequence[Turn], options: Options = DEFAULTS) -> Iterator[Event]:
        """Let the server compute a conversation, by asking for one token behind it."""
        turns = tuple(history)
        asked = turns if turns[-1].role is Role.USER else (*turns, Turn(Role.USER, "."))
        for event in self.answer(asked, Options(max_tokens=1, think=options.think)):
            if isinstance(event, base.Done):
                usage = event.answer.usage
                new = usage.prompt_tokens - usage.cached_tokens
                yield base.Prefilling(new, new, usage.cached_tokens)

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        return iter(())  # others wait for a server, and some are paid: nothing is asked that nobody asked for

    def ahead(self, history: Sequence[Turn], options: Options, reach: Reach) -> Iterator[base.Ahead]:
        return iter(())  # and what is not sent yet is nobody's business there

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        found, turns = self._connected(), tuple(history)
        ids: tuple[int, ...] = ()
        if found.tokens and any(turn.role is not Role.SYSTEM for turn in turns):
            ids = found.tokens.prompt(turns, options.think).ids
        return found.ledger.view(turns, ids, has_rows=has_rows)

    def cancel(self) -> None:
        self._cancelled.set()
        asking = self._asking
        if asking is not None:
            asking.cancel()

    def count(self, text: str) -> int:
        from kvchat.backends.remote.server import server_ids

        connecting, link = self._connection()
        found = connecting.result()
        if found.tokens:
            return found.tokens.tokenizer.count(text)
        ids = server_ids(text, found.server, link)
        if ids is None:
            where = self.target.where
            raise KvchatError(f"{where} does not say how it counts tokens", f"set tokenizer for {where}")
        return len(ids)

    def close(self) -> None:
        self.cancel()
        with self._lock:
            link, self._link, self._is_closed = self._link, None, True
        if link is not None:
            link.close()
        self._status = Status(Phase.CLOSED)

    def _begin(self) -> Connecting:
        """Connect in a thread; the lock is held."""
        link = self._link = self._link or Link(self.target)
        self._status = Status(Phase.LOADING, f"connecting to {self.target.where}")
        self._connecting = Connecting(lambda: self._connect(link))
        return self._connecting

    def _connect(self, link: Link) -> Connected:
        try:
            found = connected(link, self.config, self._notices.put)
            import kvchat.backends.remote.asking  # noqa: F401  # loaded here, so that no message waits for it

        except BaseException as error:
            self._show(Status(Phase.FAILED, str(error)))
            raise
        self._show(Status(Phase.READY))
        return found

    def _connected(self) -> Connected:
        """The server; waits for it. Raises KvchatError."""
        connecting, _ = self._connection()
        return connecting.result()

    def _connection(self, *, anew: bool = False) -> tuple[Connecting, Link]:
        """The way to the server; where it could not be reached it is tried again, if `anew`. Raises EngineDiedError."""
        with self._lock:
            if self._is_closed:
                raise EngineDiedError("the connection was closed")
            connecting = self._connecting or self._begin()
            if anew and connecting.has_failed:
                connecting = self._begin()
            assert self._link is not None
            return connecting, self._link

    def _warn_of(self, options: Options, found: Connected) -> None:
        """Say once what of the options is not sent."""
        names = unsent(options, found.server)
        if names:
            self._notices.put(f"{self.target.where} takes no {', '.join(names)}: not sent")

    def _untold_notices(self) -> Iterator[Event]:
        """What was found out since the last answer; each once."""
        while True:
            try:
                notice = self._notices.get_nowait()
            except Empty:
                return
            if notice not in self._told:
                self._told.add(notice)
                yield base.Notice(notice)

    def _show(self, status: Status) -> None:
        if self._status.phase is not Phase.CLOSED:
            self._status = status
