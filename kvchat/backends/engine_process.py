"""The engine's side of the pipe: reads calls, runs them on a LocalBackend, writes events. Ends with its input."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from kvchat.backends.base import Done, Keeping, Options, Phase, Reach, Status
from kvchat.backends.child import SEATS
from kvchat.backends.retelling import History, Ids, prompt_telling
from kvchat.backends.wire import error_to_wire, from_wire, to_wire
from kvchat.config import Config
from kvchat.errors import EngineDiedError

if TYPE_CHECKING:
    from kvchat.backends.local import LocalBackend
    from kvchat.backends.resident.seats import SharedModel
    from kvchat.engine.worker import Stream

STATUS_INTERVAL_S = 0.05
"""How often a change of status is looked for."""
DRAIN_TIMEOUT_S = 8.0
"""How long the engine may go on writing after its input has closed."""


class EngineProcess:
    """Serves one terminal until `calls` ends."""

    def __init__(self, calls: IO[bytes], replies: IO[bytes]) -> None:
        self._calls = calls
        self._replies = replies
        self._write_lock = threading.Lock()
        self._backend: LocalBackend | None = None
        self._model: SharedModel | None = None  # of an engine that has seats
        self._seats: dict[int, LocalBackend] = {}
        self._backend_ready = threading.Event()
        self._failure: BaseException | None = None
        self._is_ending = False
        self._history = History()
        self._known = Ids()
        self._lock = threading.Lock()  # over what runs
        self._running: dict[int, Stream[Any] | None] = {}  # calls by number; None: not so far, or no stream
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        """Read calls until the other side is gone; then drain, within a bound, and return."""
        first = self._calls.readline()
        if not first:
            return
        hello = json.loads(first)
        has_seats = bool(hello.pop(SEATS, False))
        _in_background(self._open, Config.from_json(hello), has_seats)
        self.report_in_background()
        for line in self._calls:
            self.hear(line)
        self._is_ending = True
        _in_background(_end_after, DRAIN_TIMEOUT_S)
        whole = self._model or self._backend
        if whole is not None:
            whole.close()

    def hear(self, line: bytes) -> None:
        """Begin what one line asks for. What was cut off in mid-line, or is no call, is left out."""
        with suppress(ValueError, KeyError, TypeError):
            self._handle(json.loads(line))

    def report_in_background(self) -> None:
        """Tell each change of status from now on, until the end."""
        _in_background(self._report_status)

    def _open(self, config: Config, has_seats: bool) -> None:
        try:
            from kvchat.backends.local import LocalBackend  # torch: seconds, while the reader goes on reading
            from kvchat.backends.resident.seats import SharedModel

            self._model = SharedModel(config, is_shared=False) if has_seats else None
            self._backend = self._model.seat() if self._model else LocalBackend(config)
            self._backend.start()
        except BaseException as error:  # told to whoever calls
            self._failure = error
        self._backend_ready.set()

    def _handle(self, call: dict[str, Any]) -> None:
        if call["call"] == "cancel":
            self._cancel(call["target"])
            return
        if "history" in call and not self._has_heard(call):
            return
        with self._lock:
            self._running[call["id"]] = None
        _in_background(self._run, call)

    def _has_heard(self, call: dict[str, Any]) -> bool:
        """Put the whole history into a call; histories are heard in the order in which they were told."""
        try:
            call["history"] = self._history.heard(call["history"])
        except (ValueError, KeyError, TypeError, AttributeError):
            error = EngineDiedError("the engine has not understood what was said before", "say it again")
            self._write({"id": call["id"], "kind": "error", "value": error_to_wire(error)})
            return False
        return True

    def _cancel(self, number: int) -> None:
        """Cancel one call; all others go on."""
        with self._lock:
            if number in self._running:
                self._cancelled.add(number)
                if stream := self._running[number]:
                    stream.cancel()

    def _run(self, call: dict[str, Any]) -> None:
        number = call["id"]
        try:
            result = self._result(number, call)
        except BaseException as error:  # crosses the pipe
            self._write({"id": number, "kind": "error", "value": error_to_wire(error)})
        else:
            self._write({"id": number, "kind": "result", "value": result})
        finally:
            with self._lock:
                del self._running[number]
                self._cancelled.discard(number)

    def _result(self, number: int, call: dict[str, Any]) -> Any:
        self._backend_ready.wait()
        if self._failure is not None:
            raise self._failure
        backend = self._at(call.get("seat", 0))
        if call["call"] == "info":
            return to_wire(backend.info())
        if call["call"] == "count":
            return backend.count(call["text"])
        if call["call"] not in ("answer", "warm", "prepare", "ahead", "cache", "prompt"):
            raise EngineDiedError(f"the engine knows no {call['call']!r}", "leave, and start kvchat again")
        history, options = call["history"], from_wire(Options, call["options"])
        if call["call"] == "prompt":
            return backend.prompt(history, options)
        keeping = from_wire(Keeping, call.get("keeping"))
        if call["call"] == "cache":
            view = backend.cache(history, options, has_rows=call["has_rows"], keeping=keeping)
            return to_wire(view)
        streams: dict[str, Callable[..., Stream[Any]]] = {
            "answer": backend.answer,
            "warm": backend.warm,
            "prepare": backend.prepare,
            "ahead": partial(backend.ahead, reach=Reach(call.get("reach", "typed"))),
        }
        events = streams[call["call"]](history, options, keeping=keeping)
        with self._lock:
            self._running[number] = events
            if number in self._cancelled:
                events.cancel()
        for event in events:
            value = self._done(number, event, call) if isinstance(event, Done) else to_wire(event)
            self._write(
                {"id": number, "kind": "event", "value": {"type": type(event).__name__, "value": value}}
            )
        return None

    def _at(self, number: int) -> LocalBackend:
        """The backend of a seat; an engine without seats has one for all."""
        assert self._backend is not None
        if self._model is None or not number:
            return self._backend
        with self._lock:
            if number not in self._seats:
                self._seats[number] = self._model.seat()
            return self._seats[number]

    def _done(self, number: int, event: Done, call: dict[str, Any]) -> Any:
        """The end of an answer, for a terminal that may know most of its prompt."""
        answer = event.answer
        known = self._known if call.get("knows") == self._known.number else Ids()
        self._known = Ids(number, (*answer.prompt, *answer.completion))
        told = to_wire(replace(answer, prompt=())) | {"prompt": prompt_telling(answer.prompt, known)}
        return {"answer": told}

    def _status(self) -> Status:
        """What it does now; never that it starts, which is said of an engine that cannot say anything yet."""
        if self._is_ending:
            return Status(Phase.CLOSED)
        if self._failure is not None:
            return Status(Phase.FAILED, str(self._failure))
        status = self._backend.status() if self._backend else Status(Phase.STARTING)
        return Status(Phase.LOADING, "loading torch") if status.phase is Phase.STARTING else status

    def _report_status(self) -> None:
        last: Status | None = None
        while True:
            status = self._status()
            if status != last:
                self._write({"status": to_wire(status), "remembers": True})
                last = status
            if status.phase is Phase.CLOSED:
                return
            time.sleep(STATUS_INTERVAL_S)

    def _write(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
        try:
            with self._write_lock:
                self._replies.write(line + b"\n")
                self._replies.flush()
        except (OSError, ValueError):
            pass  # the terminal is gone; the reader notices


def _in_background(function: Any, *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def main() -> None:
    """Serve on the standard streams; whatever else prints goes to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    EngineProcess(sys.stdin.buffer, replies).serve()
    os._exit(0)  # threads that still load or compute don't matter any more


if __name__ == "__main__":
    main()
