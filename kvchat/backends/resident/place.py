"""Where a resident engine is found: its files in the runtime folder, and the locks on them. Knows no protocol."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

MAX_SOCKET_BYTES = 100
"""Longest path of a socket; the kernels' own limits are 108 and 104 bytes."""
_POLL_S = 0.01
_KEY_LENGTH = 16


class UnsafeFolderError(OSError):
    """The runtime folder can't be used: it belongs to somebody else, or is no folder."""


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one engine. `key` stands for all that tells it from others."""

    folder: Path
    key: str

    @property
    def socket(self) -> Path:
        """What clients connect to."""
        return self.folder / f"{self.key}.sock"

    @property
    def starting(self) -> Path:
        """Locked by the client that starts the engine, while the others wait."""
        return self.folder / f"{self.key}.start"

    @property
    def running(self) -> Path:
        """Locked by the engine as long as the socket is its own; whoever holds this may remove the socket."""
        return self.folder / f"{self.key}.run"

    @property
    def log(self) -> Path:
        """What the engine says."""
        return self.folder / f"{self.key}.log"


def socket_folder(wanted: Path) -> Path:
    """The folder for sockets: `wanted`, or a short one in its place where a socket's path would be too long."""
    folder = wanted.absolute()
    if len(os.fsencode(folder)) + _KEY_LENGTH + len("/.start") <= MAX_SOCKET_BYTES:
        return folder
    mark = blake2b(os.fsencode(folder), digest_size=6).hexdigest()
    return Path("/tmp") / f"kvchat-{os.getuid()}-{mark}"


def runtime_folder(wanted: Path) -> Path:
    """The folder for sockets, made private. Raises OSError, above all UnsafeFolderError."""
    folder = socket_folder(wanted)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UnsafeFolderError(f"{folder} is not your own folder")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder


def places(folder: Path) -> list[Place]:
    """The engines that have, or had, a socket or a log in a folder."""
    keys = {path.stem for path in folder.glob("*.*") if path.suffix in (".sock", ".log", ".run")}
    return [Place(folder, key) for key in sorted(keys)]


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock that ends with the process. Raises TimeoutError, and OSError where there can be no lock."""
    descriptor = open_lock(path)
    try:
        deadline = time.monotonic() + timeout_s
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path.name} is held by another process")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """A descriptor to lock; children don't inherit it. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def try_lock(descriptor: int) -> bool:
    """Lock it unless somebody else has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def last_line(log: Path) -> str:
    """The last line that an engine wrote; empty where there is none."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""
