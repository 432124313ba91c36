"""Calls over a stream of lines, and their replies: a thread that writes, one that reads, the table of calls between.

Knows neither what is at the other end nor what carries the lines: today a pipe, and a socket would do. No lock is held
over the stream: a side that does not read, or a line that never ends, keeps nobody waiting but those two threads.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from kvchat.backends.base import Phase, Status
from kvchat.backends.retelling import History, Ids
from kvchat.backends.wire import from_wire

MAX_UNSENT = 256
"""So many messages may wait for a side that does not read; the next ones are refused."""

Message = dict[str, Any]
"""One line, as JSON has it."""
Reply = tuple[str, Any]
"""`event`, `result`, `error` or `died`, and its value; any but an event is the last of its call."""

_REFUSED = {
    "type": "EngineDiedError",
    "message": "the engine takes no more calls",
    "remedy": "wait for it, or leave and start kvchat again",
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made at a seat, and what comes back."""

    number: int
    seat: int = 0
    replies: queue.SimpleQueue[Reply] = field(default_factory=queue.SimpleQueue)


class Connection:
    """One engine's stream. `status` is what the engine said last, `known` are the ids of an answer that it gave."""

    def __init__(
        self,
        hello: Message,
        open_stream: Callable[[], tuple[IO[bytes], IO[bytes]]],
        on_end: Callable[[], None],
    ) -> None:
        """`hello` is said first. `open_stream` gives where calls are written and where replies are read, or raises
        OSError; it may take its time. `on_end` is called when nothing more will come, before anybody is told. Both in
        threads of this."""
        self.status = Status(Phase.STARTING)
        self.known = Ids()
        self._history = History()
        self._remembers = False  # whether the other side knows what it was told before
        self._telling = threading.Lock()  # over the history: what is told in this order is sent in this order
        self._open_stream = open_stream
        self._on_end = on_end
        self._unsent: queue.Queue[bytes | None] = queue.Queue(MAX_UNSENT)
        self._calls: dict[int, Call] = {}
        self._last_number = 0
        self._lock = threading.Lock()  # over the table alone
        self._is_closed = False
        self._sign = threading.Event()  # the other side has understood that nothing more comes
        self._ended = threading.Event()
        self.send(hello)
        threading.Thread(target=self._write, name="kvchat-calls", daemon=True).start()

    @property
    def is_dead(self) -> bool:
        """Whether nothing more will come."""
        return self._ended.is_set()

    def send(self, message: Message) -> bool:
        """Have a message written; False if too many wait already. The other side may be gone: the reader notices."""
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
        try:
            self._unsent.put_nowait(line + b"\n")
        except queue.Full:
            return False
        return True

    def call(self, message: Message) -> Call:
        """Make a call; its last reply comes for sure, `died` at the latest."""
        with self._lock:
            self._last_number += 1
            call = Call(self._last_number, message.get("seat", 0))
            self._calls[call.number] = call
            is_dead = self.is_dead
        if is_dead:
            call.replies.put(("died", None))
        elif not self._tell(message | {"id": call.number}):
            call.replies.put(("error", _REFUSED))
        return call

    def _tell(self, message: Message) -> bool:
        """Send a call, of its history only what the other side was not told yet."""
        if "history" not in message:
            return self.send(message)
        with self._telling:
            turns, history = message["history"], self._history if self._remembers else History()
            is_sent = self.send(message | {"history": history.telling(turns)})
            if is_sent:
                self._history.told(turns)
        return is_sent

    def cancel(self, *calls: Call, seat: int | None = None) -> None:
        """Have calls end soon, by default all that are being made here, or at one seat."""
        with self._lock:
            made = calls or [call for call in self._calls.values() if seat in (None, call.seat)]
            numbers = [call.number for call in made]
        for number in numbers:
            self.send({"call": "cancel", "target": number})

    def forget(self, call: Call) -> None:
        """Nobody reads this call's replies any more."""
        with self._lock:
            self._calls.pop(call.number, None)

    def close(self, sign_s: float, end_s: float) -> bool:
        """Say that nothing more comes, and wait for the end; False when there is no sign that it was understood within
        `sign_s`, or no end within `end_s` after that."""
        self._is_closed = True
        with suppress(queue.Full):
            self._unsent.put_nowait(None)
        return self._sign.wait(sign_s) and self._ended.wait(end_s)

    def _write(self) -> None:
        try:
            calls, replies = self._open_stream()
            threading.Thread(target=self._read, args=(replies,), name="kvchat-replies", daemon=True).start()
        except (OSError, RuntimeError):  # there is no stream, or no thread more to be had
            self._end()
            return
        with suppress(OSError), calls:  # the reader notices
            while (line := self._unsent.get()) is not None and not self._is_closed:
                rest = memoryview(line)
                while rest:
                    rest = rest[calls.write(rest) :]

    def _read(self, replies: IO[bytes]) -> None:
        try:
            with suppress(OSError), replies:
                for line in replies:
                    self._take(line)
        finally:
            self._end()

    def _take(self, line: bytes) -> None:
        """Hand one line to whom it is for. What was cut off, or is not known in this version, is left out."""
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            message = json.loads(line)
            if "status" in message:
                self._remembers = self._remembers or message.get("remembers") is True
                self.status = from_wire(Status, message["status"])
                if self.status.phase is Phase.CLOSED:
                    self._sign.set()
                return
            reply = message["kind"], message["value"]
            with self._lock:
                call = self._calls.get(message["id"])
            if reply[0] == "error":  # maybe that it knows less than it was told
                with self._telling:
                    self._history = History()
            if call is not None and reply[0] in ("event", "result", "error"):
                call.replies.put(reply)

    def _end(self) -> None:
        """Nothing more comes: once it is known why, whoever waits is told."""
        self._sign.set()
        try:
            self._on_end()
        finally:
            with self._lock:
                self._ended.set()
                waiting = list(self._calls.values())
            for call in waiting:
                call.replies.put(("died", None))
            with suppress(queue.Full):  # where it is full, nobody waits for more
                self._unsent.put_nowait(None)
