"""The same backend in a child process, newline-delimited JSON over its pipes: the terminal's. Never imports torch.

The child has a session of its own, so that Ctrl-C is the terminal's alone, and ends when its standard input closes,
however that came about. When it dies, what it was answering is kept as far as it came, and it is started again.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

from kvchat.backends import base
from kvchat.backends.base import DEFAULTS, Event, ModelInfo, Options, Phase, Status, Turn
from kvchat.backends.inspection import CacheView
from kvchat.backends.wire import EVENTS, error_from_wire, from_wire, to_wire
from kvchat.config import Config
from kvchat.errors import EngineDiedError

CLOSE_TIMEOUT_S = 10.0
"""How long the engine may take to write what it still has to write."""

_Reply = tuple[str, Any]  # "event" | "result" | "error" | "died", and its value


class _Child:
    """One engine process and the calls that wait for it."""

    def __init__(self, config: Config) -> None:
        self.status = Status(Phase.STARTING)
        self.pid = 0
        self._calls: dict[int, queue.SimpleQueue[_Reply]] = {}
        self._lock = threading.Lock()
        self._last_words: deque[str] = deque(maxlen=20)
        self.is_dead = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvchat.backends.engine_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._listener = threading.Thread(target=self._listen, name="kvchat-listener", daemon=True)
        self._hearer = threading.Thread(target=self._hear, name="kvchat-stderr", daemon=True)
        self._listener.start()
        self._hearer.start()
        self.send(config.to_json())

    def send(self, message: dict[str, Any]) -> None:
        """Write one line; a child that is gone is noticed by the listener."""
        line = (
            json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
            + b"\n"
        )
        pipe = self._process.stdin
        assert pipe is not None
        try:
            with self._lock:
                pipe.write(line)
                pipe.flush()
        except (OSError, ValueError):
            pass

    def call(self, number: int, message: dict[str, Any]) -> queue.SimpleQueue[_Reply]:
        """Send a call; its replies come into the queue, `died` at the latest."""
        replies: queue.SimpleQueue[_Reply] = queue.SimpleQueue()
        with self._lock:
            self._calls[number] = replies
            dead = self.is_dead
        if dead:
            replies.put(("died", None))
        else:
            self.send(message | {"id": number})
        return replies

    def forget(self, number: int) -> None:
        """Nobody reads this call's replies any more."""
        with self._lock:
            self._calls.pop(number, None)

    def obituary(self) -> str:
        """Why the engine ended, in a few words."""
        self._hearer.join(1.0)
        code = self._process.poll()
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
            return f"killed by {name}{hint}"
        said = next((line for line in reversed(self._last_words) if line.strip()), "")
        return said.strip()[:200] or f"exit code {code}"

    def end(self, timeout_s: float) -> None:
        """Let it drain its writes and go; kill it when it takes longer than `timeout_s`."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.close()
        except OSError:
            pass
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "status" in message:
                self.status = from_wire(Status, message["status"])
                continue
            with self._lock:
                replies = self._calls.get(message["id"])
            if replies is not None:
                replies.put((message["kind"], message["value"]))
        self._process.wait()
        with self._lock:
            self.is_dead = True
            waiting = list(self._calls.values())
        for replies in waiting:
            replies.put(("died", None))

    def _hear(self) -> None:
        pipe: IO[bytes] | None = self._process.stderr
        assert pipe is not None
        for line in pipe:
            self._last_words.append(line.decode(errors="replace"))


class ProcessBackend:
    """A `base.Backend` whose engine is a child process; starts it again when it dies."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._child: _Child | None = None
        self._closed = False
        self._last_id = 0
        self._lock = threading.RLock()

    @property
    def pid(self) -> int | None:
        """The engine's process id, None before it was started."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        self._living()

    def status(self) -> Status:
        child = self._child
        if self._closed:
            return Status(Phase.CLOSED)
        if child is None or child.is_dead:
            return Status(Phase.STARTING)
        return child.status

    def info(self) -> ModelInfo:
        info: ModelInfo = from_wire(ModelInfo, self._ask("info"))
        return info

    def count(self, text: str) -> int:
        return int(self._ask("count", text=text))

    def cancel(self) -> None:
        child = self._child
        if child is not None:
            child.send({"call": "cancel"})

    def close(self) -> None:
        with self._lock:
            child, self._child, self._closed = self._child, None, True
        if child is not None:
            child.end(CLOSE_TIMEOUT_S)

    def answer(self, history: Sequence[Turn], options: Options) -> Generator[Event, None, None]:
        said: list[base.Text] = []
        call = {"call": "answer", "history": to_wire(list(history)), "options": to_wire(options)}
        for _ in range(2):
            child = self._living()
            try:
                for event in self._events_of(child, call):
                    if isinstance(event, base.Text):
                        said.append(event)
                    yield event
                return
            except _DiedError:
                why = child.obituary()
                if self._closed:
                    raise EngineDiedError("the engine was closed") from None
                self._living()
                yield base.Notice(f"the engine ended ({why}) and was started again; the conversation is kept")
                if said:
                    yield base.Done(_cut_short(said))
                    return
        raise EngineDiedError(
            f"the engine ended twice over this message ({why})", "try a smaller model or --context"
        )

    def warm(self, history: Sequence[Turn], options: Options = DEFAULTS) -> Iterator[Event]:
        child = self._living()
        call = {"call": "warm", "history": to_wire(list(history)), "options": to_wire(options)}
        try:
            yield from self._events_of(child, call)
        except _DiedError:
            raise EngineDiedError(f"the engine ended ({child.obituary()})", "ask again") from None

    def prepare(self, history: Sequence[Turn], options: Options) -> Iterator[Event]:
        call = {"call": "prepare", "history": to_wire(list(history)), "options": to_wire(options)}
        with suppress(_DiedError):  # the next message starts it again
            yield from self._events_of(self._living(), call)

    def cache(
        self, history: Sequence[Turn], options: Options = DEFAULTS, *, has_rows: bool = True
    ) -> CacheView:
        asked = {"history": to_wire(list(history)), "options": to_wire(options), "has_rows": has_rows}
        view: CacheView = from_wire(CacheView, self._ask("cache", **asked))
        return view

    def _events_of(self, child: _Child, call: dict[str, Any]) -> Iterator[Event]:
        number = self._next_id()
        replies = child.call(number, call)
        ended = False
        try:
            while not ended:
                kind, value = replies.get()
                ended = kind != "event"
                if kind == "event":
                    event: Event = from_wire(EVENTS[value["type"]], value["value"])
                    yield event
                elif kind != "result":
                    _raise(kind, value)
        finally:
            if not ended:
                child.send({"call": "cancel", "target": number})
            child.forget(number)

    def _ask(self, call: str, **arguments: Any) -> Any:
        number = self._next_id()
        child = self._living()
        replies = child.call(number, {"call": call, **arguments})
        try:
            kind, value = replies.get()
            if kind != "result":
                _raise(kind, value)
            return value
        except _DiedError:
            raise EngineDiedError(f"the engine ended ({child.obituary()})", "ask again") from None
        finally:
            child.forget(number)

    def _living(self) -> _Child:
        with self._lock:
            if self._closed:
                raise EngineDiedError("the engine was closed")
            if self._child is None or self._child.is_dead:
                self._child = _Child(self.config)
            return self._child

    def _next_id(self) -> int:
        with self._lock:
            self._last_id += 1
            return self._last_id


class _DiedError(Exception):
    """The child ended before it replied."""


def _raise(kind: str, value: Any) -> None:
    if kind == "died":
        raise _DiedError
    raise error_from_wire(value)


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
        cache=base.CacheReport(0, 0, 0, 0, "the engine ended"),
    )


assert os.name == "posix", "kvchat runs on Linux and macOS"
