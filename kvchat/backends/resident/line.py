"""A UNIX socket between a client and a resident engine: who is at the other end, and lines both ways. Knows no call."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

BACKLOG = 512
"""Clients that may wait to be let in."""
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
_MACOS_LEVEL, _MACOS_PEER, _MACOS_PID = 0, 1, 2  # SOL_LOCAL, LOCAL_PEERCRED, LOCAL_PEERPID of <sys/un.h>


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, by what the kernel says."""

    pid: int
    uid: int


def peer_of(connected: socket.socket) -> Peer:
    """Who is at the other end. Raises OSError."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return Peer(pid, uid)
    raw = connected.getsockopt(_MACOS_LEVEL, _MACOS_PEER, 128)  # struct xucred: version, uid, groups
    (pid,) = struct.unpack("i", connected.getsockopt(_MACOS_LEVEL, _MACOS_PID, 4))
    return Peer(pid, struct.unpack_from("I", raw, 4)[0])


def is_running(pid: int) -> bool:
    """Whether a process is there; one that has ended and that nobody has waited for yet is not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return state.rpartition(")")[2].split()[:1] != ["Z"]
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc/self").exists() or Path(f"/proc/{pid}").exists()


def listen(path: Path) -> socket.socket:
    """A socket that only its owner can reach; whatever stood there before is replaced. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def reach(path: Path) -> Line | None:
    """The other end's line; None where nobody listens. Raises OSError, PermissionError for an engine that is not one's own."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.connect(str(path))
        line = Line(connected)
        if line.peer.uid != os.getuid():
            raise PermissionError(errno.EPERM, "the engine there belongs to another user")
    except OSError as error:
        connected.close()
        if error.errno in _NOBODY:
            return None
        raise
    return line


class Line:
    """One connected socket as two streams of lines. `calls` is what is written to, `replies` what is read from."""

    def __init__(self, connected: socket.socket) -> None:
        self.peer = peer_of(connected)
        self._socket = connected
        self.replies: IO[bytes] = connected.makefile("rb")
        self.calls: IO[bytes] = cast(IO[bytes], _Writing(connected))

    def say(self, message: object) -> None:
        """Write one message. Raises OSError."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def hear(self, timeout_s: float) -> Any:
        """Read one message; None where the other side has ended, or says what is none. Raises TimeoutError, after which
        the line is of no use."""
        self._socket.settimeout(timeout_s)
        try:
            return json.loads(self.replies.readline() or b"null")
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None
        finally:
            with suppress(OSError):
                self._socket.settimeout(None)

    def close(self) -> None:
        """Hang up; the other side reads the end, and so does a thread that reads here."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class _Writing:
    """The half of a socket that is written; closing it tells the other side that nothing more comes, and leaves it the way back."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> int:
        self._socket.sendall(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
