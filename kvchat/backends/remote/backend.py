"""A `base.Backend` whose model a server has: connects in the background, asks, reads, and says what the server cached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import xxhash

from kvchat.backends import base
from kvchat.backends.base import DEFAULTS, Event, ModelInfo, Options, Phase, Role, Status, Turn, time_of
from kvchat.backends.inspection import CacheView
from kvchat.backends.remote.answering import Answering, Setting, check_room, kept, never_begun
from kvchat.backends.remote.dialects import Question, dialect_for, unsent
from kvchat.backends.remote.ledger import Ledger
from kvchat.backends.remote.link import Link, Streaming
from kvchat.backends.remote.refusals import BrokenError, BusyError
from kvchat.backends.remote.server import Kind, Server, connect
from kvchat.backends.remote.tokens import Prompt, Tokens, disagreement, load_tokens, server_ids
from kvchat.config import Config
from kvchat.errors import EngineDiedError, KvchatError
from kvchat.remotes import Target

MAX_WAIT_S = 60.0
"""A server that asks for more patience is not asked again by itself."""
MAX_TRIES = 4
_BREATH_S = 1.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Connected:
    """A server that answered, what is known of its model's tokens, and what it was sent."""

    server: Server
    tokens: Tokens | None
    ledger: Ledger
    sends_ids: bool


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
        self._connecting: _Connecting | None = None
        self._streaming: Streaming | None = None
        self._cancelled = threading.Event()
        self._is_closed = False

    def start(self) -> None:
        with self._lock:
            if self._connecting is None and not self._is_closed:
                self._begin()

    def status(self) -> Status:
        return self._status

    def info(self) -> ModelInfo:
        connected = self._connected()
        server = connected.server
        return ModelInfo(
            name=server.model.id,
            architecture="",
            dtype="",
            device=f"{server.kind} at {self.target.where}",
            context=server.model.context,
            num_parameters=0,
            kv_bytes_per_token=0,
            reuse="server",
            tokenizer=connected.tokens.id if connected.tokens else "",
            load_ms=0.0,
            template="server" if not connected.sends_ids else "append-safe",
            weights="server",
        )

    def answer(self, history: Sequence[Turn], options: Options) -> Generator[Event, None, None]:
        turns = tuple(history)
        self._cancelled.clear()
        connecting = self._connection(anew=True)
        if not connecting.is_over(self._cancelled):
            yield base.Done(never_begun())
            return
        connected = connecting.result()
        question, answering = self._question(connected, turns, options)
        self._warn_of(connected, options)
        yield from self._told_notices()
        failed: KvchatError | None = None
        try:
            self._show(Status(Phase.PREFILLING))
            yield from self._asked(connected, question, answering)
        except KvchatError as error:
            if not answering.has_begun:
                raise
            failed = error
        finally:
            self._stop()
            self._show(Status(Phase.READY))
        yield from answering.rest()
        if failed is not None:
            yield kept(failed)
        is_cut = failed is not None or answering.finish is None
        is_nothing = is_cut and not answering.has_begun
        yield base.Done(never_begun() if is_nothing else answering.answer(is_cancelled=is_cut))

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

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        connected, turns = self._connected(), tuple(history)
        ids: tuple[int, ...] = ()
        if connected.tokens and any(turn.role is not Role.SYSTEM for turn in turns):
            ids = connected.tokens.prompt(turns, options.think).ids
        return connected.ledger.view(turns, ids, mode="server", has_rows=has_rows)

    def cancel(self) -> None:
        self._cancelled.set()
        streaming = self._streaming
        if streaming is not None:
            streaming.cancel()

    def count(self, text: str) -> int:
        connected = self._connected()
        if connected.tokens:
            return connected.tokens.tokenizer.count(text)
        assert self._link is not None
        ids = server_ids(text, connected.server, self._link)
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

    # Connecting

    def _begin(self) -> _Connecting:
        """Connect in a thread; the lock is held."""
        self._link = self._link or Link(self.target)
        self._status = Status(Phase.LOADING, f"connecting to {self.target.where}")
        self._connecting = _Connecting(partial(self._connect, self._link))
        return self._connecting

    def _connected(self) -> Connected:
        """The server; waits for it. Raises KvchatError."""
        return self._connection().result()

    def _connection(self, *, anew: bool = False) -> _Connecting:
        """The way to the server; one on which it could not be reached is gone again, if `anew`. Raises EngineDiedError."""
        with self._lock:
            if self._is_closed:
                raise EngineDiedError("the connection was closed")
            connecting = self._connecting or self._begin()
            if anew and connecting.has_failed:
                connecting = self._begin()
        return connecting

    def _connect(self, link: Link) -> Connected:
        try:
            server = connect(link)
            tokens = self._tokens_of(server, link)
        except BaseException as error:
            self._show(Status(Phase.FAILED, str(error)))
            raise
        self._show(Status(Phase.READY))
        sends_ids = (
            tokens is not None and self.target.remote.send != "text" and server.kind is not Kind.ANTHROPIC
        )
        return Connected(server, tokens, Ledger(server.features.remedy), sends_ids)

    def _tokens_of(self, server: Server, link: Link) -> Tokens | None:
        """The model's tokenizer, if one is named and the server agrees with it."""
        remote = self.target.remote
        tokens = load_tokens(server, self.config, self._notices.put)
        if tokens is None or remote.send == "text":
            return tokens
        differs = disagreement(tokens, server, link)
        if differs is None:
            return tokens
        if remote.send == "ids":
            raise KvchatError(
                f"{remote.tokenizer} is not the tokenizer of {server.model.id}: {differs}", "name another"
            )
        self._notices.put(f"the conversation goes out as text: {differs}")
        return None

    # Asking

    def _question(
        self, connected: Connected, turns: tuple[Turn, ...], options: Options
    ) -> tuple[Question, Answering]:
        server, tokens = connected.server, connected.tokens
        prompt: Prompt | None = None
        if connected.sends_ids and tokens is not None:
            prompt = tokens.prompt(turns, options.think)
            check_room(prompt, server.model.context, server.model.id)
        question = Question(
            server,
            turns,
            options,
            prompt.ids if prompt else (),
            tokens.closing_ids if tokens else (),
            self.target.remote.cache_salt,
        )
        dialect = dialect_for(server, sends_ids=prompt is not None)
        setting = Setting(self.target.where, dialect, connected.ledger, tokens)
        return question, Answering(setting, turns, options, prompt)

    def _asked(self, connected: Connected, question: Question, answering: Answering) -> Iterator[Event]:
        """The answer's events; a server that is busy for a moment is asked again."""
        dialect = answering.setting.dialect
        url, body = dialect.url(connected.server), dialect.body(question)
        for number in range(1, MAX_TRIES + 1):
            if self._cancelled.is_set():
                return
            assert self._link is not None
            self._streaming = self._link.stream(url, body, self._sticky(question.turns))
            if self._cancelled.is_set():
                self._streaming.cancel()
            try:
                yield from answering.events(self._streaming, self._show)
            except BusyError as error:
                wait_s = error.wait_s if error.wait_s is not None else number * _BREATH_S
                if number == MAX_TRIES or wait_s > MAX_WAIT_S or answering.has_begun:
                    raise
                yield base.Notice(f"{error.message}; asked again in {wait_s:.0f} s")
                self._cancelled.wait(wait_s)
                continue
            if answering.finish is None and not self._cancelled.is_set():
                raise BrokenError(
                    f"{self.target.where} ended the answer early", "/continue goes on, or ask again"
                )
            return

    def _sticky(self, turns: Sequence[Turn]) -> dict[str, str]:
        """The header by which a router finds the replica that holds this conversation: its beginning, hashed."""
        name = self.target.remote.session_header
        if not name:
            return {}
        first = next((turn.text for turn in turns if turn.role is Role.USER), "")
        system = turns[0].text if turns[0].role is Role.SYSTEM else ""
        began = "\0".join((system, first, str(time_of(turns))))
        return {name: xxhash.xxh3_128_hexdigest(began.encode(errors="replace"))}

    def _warn_of(self, connected: Connected, options: Options) -> None:
        """Say once what of the options is not sent."""
        names = unsent(options, connected.server)
        if names:
            self._notices.put(f"{self.target.where} takes no {', '.join(names)}: not sent")

    def _told_notices(self) -> Iterator[Event]:
        """What was found out since the last answer; each once."""
        while True:
            try:
                notice = self._notices.get_nowait()
            except Empty:
                return
            if notice not in self._told:
                self._told.add(notice)
                yield base.Notice(notice)

    def _stop(self) -> None:
        """Close what is still open of an answer that is over, or that nobody reads on."""
        streaming, self._streaming = self._streaming, None
        if streaming is not None:
            streaming.cancel()

    def _show(self, status: Status) -> None:
        if self._status.phase is not Phase.CLOSED:
            self._status = status


class _Connecting:
    """A connection on its way, in a thread of its own that nobody has to wait for."""

    def __init__(self, work: Callable[[], Connected]) -> None:
        self._done = threading.Event()
        self._result: Connected | BaseException | None = None
        threading.Thread(target=self._run, args=(work,), name="kvchat-connect", daemon=True).start()

    @property
    def has_failed(self) -> bool:
        """Whether nothing came of it."""
        return isinstance(self._result, BaseException)

    def is_over(self, cancelled: threading.Event) -> bool:
        """Wait for its end; False if that was `cancelled` first."""
        while not self._done.wait(_POLL_S):
            if cancelled.is_set():
                return False
        return True

    def result(self) -> Connected:
        """What came of it; waits. Raises what went wrong."""
        self._done.wait()
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result

    def _run(self, work: Callable[[], Connected]) -> None:
        try:
            self._result = work()
        except BaseException as error:
            self._result = error
        self._done.set()
