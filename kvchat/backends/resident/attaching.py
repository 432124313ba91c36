"""A client's seat at a resident engine: found, or started if there is none. Knows no call and never imports torch.

Clients that start in the same instant agree by a lock: one starts the engine, the others wait and attach to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from typing import IO

from kvchat.backends.base import Phase
from kvchat.backends.child import EngineChild
from kvchat.backends.connection import Connection
from kvchat.backends.resident.identity import engine_config, place_of
from kvchat.backends.resident.line import Line, is_running, reach
from kvchat.backends.resident.place import Place, last_line, locked
from kvchat.children import child_environment, own_command
from kvchat.config import Config
from kvchat.errors import reason_of

START_TIMEOUT_S = 60.0
"""How long a client waits until an engine listens, and for others to start one."""
GREETING_TIMEOUT_S = 30.0
"""How long an engine may take to let a client in; one that loads torch may not come to it for a second."""
LEAVE_TIMEOUT_S = 1.0
"""How long a client that leaves waits for the engine to notice."""
PASSING = "is_passing"
"""What a client's first message has beside its settings."""
LISTENING = b"listening\n"
"""What an engine writes once it can be reached; anything else says why it can't."""
_ATTEMPTS = 20
_PAUSE_S = 0.05


class AttachedEngine:
    """An engine that others use too, from one client's side; what `EngineChild` is for an engine of one's own."""

    def __init__(self, config: Config, *, is_passing: bool = False) -> None:
        """One that `is_passing` asks and leaves: its live KV goes before that of terminals."""
        self._config = config
        self._line: Line | None = None
        self._place: Place | None = None
        self._is_attached = threading.Event()
        self._why = ""
        self._is_leaving = False
        self.connection = Connection({**config.to_json(), PASSING: is_passing}, self._attach, self._bury)

    @property
    def has_failed(self) -> bool:
        """Whether there was none to be found, nor to be started."""
        return self._is_attached.is_set() and self._line is None

    @property
    def has_loaded(self) -> bool:
        """Whether it came so far that it answered calls."""
        return self.connection.status.phase not in (Phase.STARTING, Phase.LOADING)

    @property
    def pid(self) -> int | None:
        """Its process id; waits until it is found or started. None if it could not be."""
        self._is_attached.wait()
        return self._line.peer.pid if self._line else None

    def obituary(self) -> str:
        """Why it ended, in a few words; known once its connection is dead."""
        return self._why

    def end(self) -> None:
        """Leave it; it ends what this client had asked for, and stays for others."""
        self._is_leaving = True
        self.connection.close(LEAVE_TIMEOUT_S, LEAVE_TIMEOUT_S)
        if self._line is not None:
            self._line.close()

    def _attach(self) -> tuple[IO[bytes], IO[bytes]]:
        try:
            self._place = place_of(self._config)
            self._line = attach(self._place, self._config)
        except OSError as error:
            self._why = f"it could not be started: {reason_of(error)}"
            raise
        finally:
            self._is_attached.set()
        return self._line.calls, self._line.replies

    def _bury(self) -> None:
        if self._is_leaving:
            self._why = "it was left"
        elif self._line is not None and self._place is not None:
            self._why = "killed" if _has_ended(self._line.peer.pid) else "it let go of this terminal"
            said = last_line(self._place.log)
            if f" {self._line.peer.pid} ended: " in said:
                self._why = said.partition(" ended: ")[2]


class Attaching:
    """Opens the engine that terminals share, and one of its own for a terminal that could not attach."""

    def __init__(self, *, is_passing: bool = False) -> None:
        """`is_passing` as `AttachedEngine` has it."""
        self._is_passing = is_passing
        self._last: AttachedEngine | None = None

    def __call__(self, config: Config) -> AttachedEngine | EngineChild:
        """The engine, which is found or started in the background."""
        if self._last is not None and self._last.has_failed:
            return EngineChild(config)
        self._last = AttachedEngine(config, is_passing=self._is_passing)
        return self._last


def attach(place: Place, config: Config) -> Line:
    """A line to the engine at a place, which is started if need be. Raises OSError."""
    for _ in range(_ATTEMPTS):
        line = reach(place.socket) or _started(place, config)
        if line is not None and _is_let_in(line):
            return line
        time.sleep(_PAUSE_S)  # it was ending, or knows other weights: its place is free in a moment
    raise OSError(f"no engine lets anybody in; see {place.log}")


def _started(place: Place, config: Config) -> Line | None:
    with locked(place.starting, START_TIMEOUT_S):
        line = reach(place.socket)  # others may have been faster
        if line is None:
            start(place, config)
            line = reach(place.socket)
        return line


def _is_let_in(line: Line) -> bool:
    """Whether the engine greets; one that is ending hangs up. Raises OSError for one that says nothing."""
    try:
        greeting = line.hear(GREETING_TIMEOUT_S)
    except TimeoutError:
        line.close()
        pid = line.peer.pid
        raise OSError(
            f"the engine with process id {pid} does not react; end it with kvchat engine stop"
        ) from None
    if isinstance(greeting, dict) and "engine" in greeting:
        return True
    line.close()
    return False


def start(place: Place, config: Config) -> None:
    """Start an engine that outlives this process, and wait until it listens or another one does. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    log = os.open(place.log, flags, 0o600)
    try:
        engine = subprocess.Popen(
            own_command("kvchat.backends.resident.host"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=child_environment(),
        )
    finally:
        os.close(log)
    threading.Thread(target=engine.wait, name="kvchat-reaper", daemon=True).start()
    assert engine.stdin and engine.stdout
    with engine.stdin as calls, engine.stdout as replies:
        settings = engine_config(config).to_json()
        calls.write(json.dumps({"key": place.key, "folder": str(place.folder), "config": settings}).encode())
        calls.close()
        said = replies.readline()
    if said != LISTENING:
        why = said.decode(errors="replace").strip() or last_line(place.log)
        raise OSError(why or f"its process ended with code {engine.wait()}")


def _has_ended(pid: int) -> bool:
    """Whether a process that hung up is gone; one that was killed hangs up a moment before."""
    deadline = time.monotonic() + LEAVE_TIMEOUT_S / 2
    while is_running(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S / 10)
    return True
