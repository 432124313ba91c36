"""The resident engine's process: lets clients in, and ends when nobody has needed it for long enough.

It holds two things as long as it can be reached, its lock and its socket; whoever holds the lock may remove the socket.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvchat.backends.base import Phase
from kvchat.backends.resident.attaching import LISTENING, PASSING
from kvchat.backends.resident.line import Line, listen
from kvchat.backends.resident.log import cut, log
from kvchat.backends.resident.memory import own_bytes, spare_bytes
from kvchat.backends.resident.place import Place, open_lock, try_lock
from kvchat.config import Config

if TYPE_CHECKING:
    from kvchat.backends.resident.seats import SharedModel

TICK_S = 0.2
"""How often is looked whether the engine is still needed."""
DRAIN_TIMEOUT_S = 8.0
"""How long it may go on writing after it was to end."""
HELLO_TIMEOUT_S = 10.0
"""How long a client may take to say what it wants."""
LEAST_SPARE_BYTES = 384 * 2**20
"""With less memory to be had on the machine, an engine without a client ends, and one with clients gives back what it can."""
_TAKE_OVER_S = 5.0
_SHED_EVERY_S = 30.0


@dataclass(slots=True)
class Stay:
    """How long the engine stays without a client. Times in seconds, of the monotonic clock."""

    keep_alive: int
    since: float

    def is_over(self, now: float) -> bool:
        """Whether nobody has come for so long."""
        return 0 <= self.keep_alive <= now - self.since


class Host:
    """The engine at one place. `main` makes one and serves it until it is over."""

    def __init__(
        self,
        place: Place,
        config: Config,
        *,
        spare: Callable[[], int] = spare_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._config = config
        self._spare = spare
        self._clock = clock
        self._stay = Stay(config.engine.keep_alive, clock())
        self._began_s = time.time()
        self._lines: dict[Line, bool] = {}  # whether a client is at the other end, and not one who only asks
        self._lock = threading.Lock()  # over the lines and the place
        self._listener: socket.socket | None = None
        self._held: int | None = None
        self._model: SharedModel | None = None
        self._mark: object = None
        self._has_model = threading.Event()
        self._why = ""
        self._shed_at = 0.0

    def take_place(self) -> bool:
        """Make the place this engine's own; False if another engine has it. Raises OSError."""
        descriptor = open_lock(self._place.running)
        deadline = self._clock() + _TAKE_OVER_S  # one that is ending gives it up soon
        while not try_lock(descriptor):
            if self._place.socket.exists() or self._clock() > deadline:
                os.close(descriptor)
                return False
            time.sleep(TICK_S / 10)
        self._held = descriptor
        self._listener = listen(self._place.socket)
        self._listener.settimeout(TICK_S)
        return True

    def serve(self) -> None:
        """Load the model, let clients in until it is over, then write what is left."""
        log(f"began: {self._config.model.name}")
        threading.Thread(target=self._load, daemon=True).start()
        while not self._why:
            self._let_in()
            self._why = self._why or self._reason_to_end()
        self.retire()
        log(f"ended: {self._why}")
        threading.Thread(target=_end_after, args=(DRAIN_TIMEOUT_S,), daemon=True).start()
        for line in list(self._lines):
            line.close()
        if self._model is not None:
            self._model.close()

    def end(self, why: str) -> None:
        """Have it end at the next tick."""
        self._why = self._why or why

    def retire(self) -> None:
        """Be found no more: the next client starts another engine. Who is here already may stay."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is None:
                return
            with suppress(OSError):
                self._place.socket.unlink()
            listener.close()
            assert self._held is not None
            os.close(self._held)

    def _let_in(self) -> None:
        listener = self._listener
        if listener is None:
            time.sleep(TICK_S)
            return
        with suppress(OSError):  # nobody came, or whoever did is gone, or it has retired meanwhile
            connected, _ = listener.accept()
            connected.settimeout(None)
            line = Line(connected)
            if line.peer.uid != os.getuid():
                line.close()
                return
            with self._lock:
                self._lines[line] = False
            threading.Thread(target=self._meet, args=(line,), daemon=True).start()

    def _meet(self, line: Line) -> None:
        """All that one client has to do with this engine."""
        is_client = False
        try:
            if self._is_outdated():
                line.say({"refused": "other weights"})
                return
            line.say({"engine": os.getpid()})
            hello = line.hear(HELLO_TIMEOUT_S)
            if isinstance(hello, dict) and "ask" in hello:
                line.say(self._reply(hello["ask"]))
            elif isinstance(hello, dict):
                is_client = self._lines[line] = True
                is_passing = bool(hello.pop(PASSING, False))
                self._attend(line, Config.from_json(hello), is_passing=is_passing)
        except OSError:
            pass  # it is gone
        except Exception as error:  # whatever it sends, the others stay served
            log(f"a client was turned away: {type(error).__name__}: {error}")
        finally:
            self._part(line, is_client)

    def _attend(self, line: Line, wanted: Config, *, is_passing: bool) -> None:
        from kvchat.backends.resident.client import AttachedClient

        self._stay.keep_alive = wanted.engine.keep_alive
        log(f"client {line.peer.pid} came")
        self._has_model.wait()
        assert self._model is not None
        AttachedClient(line.replies, line.calls, self._model.seat(is_passing=is_passing)).serve()
        log(f"client {line.peer.pid} left")

    def _part(self, line: Line, is_client: bool) -> None:
        line.close()
        with self._lock:
            self._lines.pop(line, None)
            if is_client:
                self._stay.since = self._clock()

    def _load(self) -> None:
        from kvchat.backends.resident.seats import SharedModel
        from kvchat.backends.resident.weights import weights_mark

        self._mark = weights_mark(self._config)
        self._model = SharedModel(self._config)
        self._model.start()
        self._has_model.set()

    def _is_outdated(self) -> bool:
        """Whether the model's files are others than those that were loaded. Then this engine serves only who is here."""
        if self._model is None or self._model.status.phase is not Phase.READY:
            return False
        from kvchat.backends.resident.weights import weights_mark

        now = weights_mark(self._config)
        self._mark = self._mark or now  # they were fetched meanwhile
        if now == self._mark:
            return False
        log("retired: the model's files have changed")
        self.retire()
        return True

    def _reason_to_end(self) -> str:
        """Why the engine is needed no more; empty while it is."""
        cut(self._place.log)
        has_failed = self._model is not None and self._model.status.phase is Phase.FAILED
        if has_failed:
            self.retire()
        is_short = self._spare() < LEAST_SPARE_BYTES
        if self._lines:
            if is_short:
                self._shed()
            return ""
        if has_failed:
            return "the model could not be loaded"
        if self._listener is None:
            return "its model's files have changed"
        if is_short:
            return "memory is short and nobody is attached"
        return "nobody was attached for long" if self._stay.is_over(self._clock()) else ""

    def _shed(self) -> None:
        """Give back memory, now and then at most."""
        if self._model is not None and self._clock() - self._shed_at > _SHED_EVERY_S:
            self._shed_at = self._clock()
            log("memory is short: what can be had again is let go of")
            threading.Thread(target=self._model.shed, daemon=True).start()

    def _reply(self, ask: object) -> dict[str, Any]:
        """What an engine says about itself, and what it does when it is told to."""
        if ask == "stop":
            self.end("it was told to stop")
        elif ask == "forget" and self._model is not None:
            self._model.shed()
        model = self._model
        info = model.info() if model else None
        with self._lock:
            clients = [line.peer.pid for line, is_client in self._lines.items() if is_client]
        return {
            "pid": os.getpid(),
            "model": info.name if info else self._config.model.name,
            "weights": info.weights if info else "",
            "dtype": info.dtype if info else "",
            "phase": (model.status.phase if model else Phase.LOADING).value,
            "clients": clients,
            "memory_bytes": own_bytes(),
            "live_bytes": model.live_bytes if model else 0,
            "began_s": self._began_s,
            "keep_alive": self._stay.keep_alive,
            "idle_s": self._clock() - self._stay.since,
        }


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def main() -> None:
    """Take the settings from stdin, say on stdout that the engine listens, and serve until it is over."""
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)
    told = json.loads(sys.stdin.buffer.read())
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints, prints into the log
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold conversations
    place = Place(Path(told["folder"]), told["key"])
    host = Host(place, Config.from_json(told["config"]))
    signal.signal(signal.SIGTERM, lambda *_: host.end("SIGTERM"))
    is_here = host.take_place()
    with suppress(OSError), replies:  # who started it may be gone; another one will come
        replies.write(LISTENING)
    if is_here:
        host.serve()
    os._exit(0)  # threads that still load or compute don't matter any more


if __name__ == "__main__":
    main()
