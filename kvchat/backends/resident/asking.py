"""What a user asks of engines that run already: what they are, to stop, to forget. Starts none, and never imports torch."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvchat.backends.resident.line import Line, is_running, reach
from kvchat.backends.resident.place import Place, is_held, places, runtime_folder, socket_folder
from kvchat.backends.wire import from_wire

ASK_TIMEOUT_S = 5.0
"""How long an engine may take to say something about itself."""
END_TIMEOUT_S = 12.0
"""How long one that was told to stop may go on writing."""
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class About:
    """What an engine says of itself. `clients` are process ids, `began_s` is since the epoch, `idle_s` since a client left.

    `live_bytes` are those of the KV that is live at all seats, `memory_bytes` all that the process takes.
    """

    pid: int
    model: str
    weights: str
    dtype: str
    phase: str
    clients: tuple[int, ...]
    memory_bytes: int
    live_bytes: int
    began_s: float
    keep_alive: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Resident:
    """An engine that can be reached. What it is `about` is None where it does not react."""

    place: Place
    pid: int
    about: About | None


def residents(folder: Path) -> list[Resident]:
    """The engines of a runtime folder; what others left behind there is removed. Raises OSError."""
    found = (resident(place) for place in places(runtime_folder(folder)))
    return [one for one in found if one is not None]


def resident(place: Place) -> Resident | None:
    """The engine at a place; None where there is none. Raises OSError."""
    line = reach(place.socket)
    if line is None:
        _sweep(place)
        return None
    return Resident(place, line.peer.pid, _asked(line, "about"))


def stop(engine: Resident, *, timeout_s: float = END_TIMEOUT_S) -> bool:
    """Let an engine write what it has to write, and end; kill it if it does not. False if it was killed. Raises OSError."""
    line = reach(engine.place.socket)
    if line is None:
        return True
    pid = line.peer.pid
    reacts = _asked(line, "stop") is not None
    deadline = time.monotonic() + (timeout_s if reacts else 0.0)
    while is_running(pid):
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(_POLL_S)
    return True


def forget(folder: Path) -> None:
    """Have all engines let go of the KV that they hold in RAM, where what it was computed from is deleted."""
    with suppress(OSError):
        for place in places(runtime_folder(folder)) if socket_folder(folder).is_dir() else ():
            line = reach(place.socket)
            if line is not None:
                _asked(line, "forget")


def _asked(line: Line, what: str) -> About | None:
    try:
        greeting = line.hear(ASK_TIMEOUT_S)
        if not (isinstance(greeting, dict) and "engine" in greeting):
            return None
        line.say({"ask": what})
        about: About = from_wire(About, line.hear(ASK_TIMEOUT_S))
        return about
    except (OSError, KeyError, TypeError, ValueError):
        return None
    finally:
        line.close()


def _sweep(place: Place) -> None:
    """Remove what an engine left that was killed; its log stays."""
    if not is_held(place.running) and not is_held(place.starting):
        with suppress(OSError):
            place.socket.unlink(missing_ok=True)
