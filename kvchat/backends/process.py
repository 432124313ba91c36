"""The same backend in a child process, newline-delimited JSON over its pipes: the terminal's. Never imports torch.

The child has a session of its own, so that Ctrl-C is the terminal's alone, and ends when its standard input closes,
however that came about. When it dies, what it was answering is kept as far as it came, and it is started again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader
from typing import IO, Any, TypeVar, cast

from kvchat.backends import base
from kvchat.backends.base import DEFAULTS, Event, ModelInfo, Options, Phase, Status, Turn
from kvchat.backends.connection import Connection, Message
from kvchat.backends.inspection import CacheView
from kvchat.backends.wire import EVENTS, error_from_wire, from_wire, to_wire
from kvchat.children import child_environment, child_folder, own_command
from kvchat.config import Config
from kvchat.errors import EngineDiedError, reason_of

CLOSE_TIMEOUT_S = 10.0
"""How long the engine may take to write what it still has to write."""
SIGN_TIMEOUT_S = 3.0
"""How long it may take to notice that it is to end: one that was stopped never does."""
MAX_LOST = 3
"""An engine that ended so many times in a row while it loaded is not started again until somebody asks."""

_FOREIGN = "the engine is of another version of kvchat", "leave, and start kvchat again"
_LAST_WORDS_S = 1.0
_GONE_S = 5.0

T = TypeVar("T")


class _Child:
    """One engine process, and the connection to it. A thread of the connection starts it, so nobody waits for that."""

    def __init__(self, config: Config) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_started = threading.Event()
        self._is_gone = threading.Event()
        self._why = ""
        self._last_words: deque[str] = deque(maxlen=20)
        self._hearer = threading.Thread(target=self._hear, name="kvchat-stderr", daemon=True)
        self.connection = Connection(config.to_json(), self._spawn, self._bury)

    @property
    def has_loaded(self) -> bool:
        """Whether it came so far that it answered calls."""
        return self.connection.status.phase not in (Phase.STARTING, Phase.LOADING)

    @property
    def pid(self) -> int | None:
        """Its process id; waits until it has one. None if it could not be started."""
        self._is_started.wait()
        return self._process.pid if self._process else None

    def obituary(self) -> str:
        """Why it ended, in a few words."""
        self._is_gone.wait(_GONE_S)
        return self._why

    def end(self) -> None:
        """Let it drain its writes and go; kill it when it takes too long."""
        has_ended = self.connection.close(SIGN_TIMEOUT_S, CLOSE_TIMEOUT_S)
        if self._process and not has_ended:
            self._process.kill()
        if self._process:
            self._is_gone.wait(_GONE_S)

    def _spawn(self) -> tuple[IO[bytes], IO[bytes]]:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                own_command("kvchat.backends.engine_process"),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                start_new_session=True,
                cwd=child_folder(),
                env=child_environment(),
            )
        except OSError as error:
            self._why = f"it could not be started: {reason_of(error)}"
            raise
        finally:
            self._is_started.set()
        self._hearer.start()
        assert self._process.stdin and self._process.stdout
        return self._process.stdin, BufferedReader(cast(Any, self._process.stdout))

    def _bury(self) -> None:
        """Nothing more will come: see to it that the process is gone, and find out why."""
        if self._process is not None:
            try:
                self._process.wait(_LAST_WORDS_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            with suppress(RuntimeError):  # it could not be started
                self._hearer.join(_LAST_WORDS_S)
            self._why = self._cause(self._process.returncode)
        self._is_gone.set()

    def _cause(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
            return f"killed by {name}{hint}"
        said = next((line for line in reversed(self._last_words) if line.strip()), "")
        return said.strip()[:200] or f"exit code {code}"

    def _hear(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        with BufferedReader(cast(Any, self._process.stderr)) as errors:
            for line in errors:
                self._last_words.append(line.decode(errors="replace"))


class ProcessBackend:
    """A `base.Backend` whose engine is a child process; starts it again when it dies."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._child: _Child | None = None
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
        is_lost = self._lost_with(child) >= MAX_LOST
        return Status(Phase.FAILED, "the engine ended") if is_lost else Status(Phase.STARTING)

    def info(self) -> ModelInfo:
        return self._ask({"call": "info"}, lambda value: cast(ModelInfo, from_wire(ModelInfo, value)))

    def count(self, text: str) -> int:
        return self._ask({"call": "count", "text": text}, int)

    def cancel(self) -> None:
        child = self._child
        if child is not None:
            child.connection.send({"call": "cancel"})

    def close(self) -> None:
        with self._lock:
            child, self._child, self._closed = self._child, None, True
        if child is not None:
            child.end()

    def answer(self, history: Sequence[Turn], options: Options) -> Generator[Event, None, None]:
        said: list[base.Text] = []
        call = _call("answer", history, options)
        child = self._living(anew=True)
        num_deaths = 0
        while num_deaths < 2:
            try:
                for event in self._events_of(child, call):
                    if isinstance(event, base.Text):
                        said.append(event)
                    yield event
                return
            except _DiedError:
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
            yield from self._events_of(child, _call("warm", history, options))
        except _DiedError:
            raise _ended(child) from None

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        with suppress(_DiedError):  # the next message starts it again
            yield from self._events_of(self._living(), _call("prepare", history, options))

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        call = _call("cache", history, options) | {"has_rows": has_rows}
        return self._ask(call, lambda value: cast(CacheView, from_wire(CacheView, value)))

    def _events_of(self, child: _Child, message: Message) -> Iterator[Event]:
        """The events of a call, up to `Done` or its end; those that are not known here are left out."""
        call = child.connection.call(message)
        has_ended = False
        try:
            while not has_ended:
                kind, value = call.replies.get()
                event = _event(value) if kind == "event" else None
                has_ended = kind != "event" or isinstance(event, base.Done)
                if event is not None:
                    yield event
            _check(kind, value)
            if message["call"] == "answer" and kind != "event":
                raise EngineDiedError(*_FOREIGN)  # it has ended without a `Done` that is known here
        finally:
            if not has_ended:
                child.connection.send({"call": "cancel", "target": call.number})
            child.connection.forget(call)

    def _ask(self, message: Message, read: Callable[[Any], T]) -> T:
        child = self._living()
        call = child.connection.call(message)
        try:
            kind, value = call.replies.get()
            _check(kind, value)
            return read(value)
        except _DiedError:
            raise _ended(child) from None
        except (KeyError, TypeError, ValueError):
            raise EngineDiedError(*_FOREIGN) from None
        finally:
            child.connection.forget(call)

    def _living(self, *, anew: bool = False) -> _Child:
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
                self._child = _Child(self.config)
                return self._child
        raise EngineDiedError(
            f"the engine ended {MAX_LOST} times while it loaded ({child.obituary()})",
            "take a smaller model; the next message starts it again",
        )

    def _lost_with(self, child: _Child) -> int:
        """How many in a row ended while they loaded, with this one that has ended."""
        return 0 if child.has_loaded else self._num_lost + 1


class _DiedError(Exception):
    """The child ended before it replied."""


def _call(name: str, history: Sequence[Turn], options: Options) -> Message:
    return {"call": name, "history": to_wire(list(history)), "options": to_wire(options)}


def _event(value: Any) -> Event | None:
    """An event from its JSON; None for one that is not known here."""
    try:
        event: Event = from_wire(EVENTS[value["type"]], value["value"])
    except (KeyError, TypeError, ValueError):
        return None
    return event


def _check(kind: str, value: Any) -> None:
    """Raises what a call's last reply says went wrong."""
    if kind == "died":
        raise _DiedError
    if kind == "error":
        raise error_from_wire(value)


def _ended(child: _Child) -> EngineDiedError:
    return EngineDiedError(f"the engine ended ({child.obituary()})", "ask again")


def _cut_short(said: Sequence[base.Text]) -> base.Answer:
    """What was shown of an answer whose engine died; its ids died with it."""
    return base.Answer(
        text="".join(piece.text for piece in said if not piece.reasoning),
        reasoning="".join(piece.text for piece in said if piece.reasoning),
        prompt=(),
        completion=(),
        tokenizer="",
        finish_reason=base.FinishReason.CANCELLED,
        usage=base.Usage(0, 0, 0),
        timings=base.Timings(0, 0, 0, 0, 0, 0, 0, 0),
        cache=base.CacheReport(0, {}, 0, "the engine ended"),
    )


assert os.name == "posix", "kvchat runs on Linux and macOS"
