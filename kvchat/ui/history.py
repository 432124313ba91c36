"""Earlier messages on disk, private to the user. Knows where, not what.

What can't be read or written is said once, and never stands in the way of a message.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from prompt_toolkit.history import History, InMemoryHistory

from kvchat.errors import KvchatError, reason_of

_KEPT_BYTES = 4 * 2**20
"""What is read of a file: its end."""


def message_history(path: Path, *, save: bool, complain: Callable[[KvchatError], None]) -> History:
    """The history in a file with mode 0600; in memory alone when nothing may be saved."""
    return _MessageHistory(path, complain) if save else InMemoryHistory()


class _MessageHistory(History):
    """Messages of this dialogue and of earlier ones; `complain` is called once if the file can't be used."""

    def __init__(self, path: Path, complain: Callable[[KvchatError], None]) -> None:
        super().__init__()
        self._path = path
        self._complain = complain
        self._has_complained = False

    def load_history_strings(self) -> Iterable[str]:
        """The latest messages of a file, newest first; none of one that can't be read."""
        try:
            with os.fdopen(_opened(self._path, os.O_RDONLY), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _KEPT_BYTES))
                lines = file.read(_KEPT_BYTES).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return
        except OSError as error:
            self._say("read", error)
            return
        message: list[str] = []
        for line in reversed(["", *lines]):
            if line.startswith("+"):
                message.append(line[1:])
            elif message:
                yield "\n".join(reversed(message))
                message = []

    def store_string(self, string: str) -> None:
        """Write one message, or say why not."""
        text = "".join(f"+{line}\n" for line in string.split("\n"))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(_opened(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
                file.write(f"\n# {datetime.now()}\n{text}".encode("utf-8", "replace"))
        except OSError as error:
            self._say("write", error)

    def _say(self, verb: str, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            why = f"can't {verb} the message history in {self._path}: {reason_of(error)}"
            self._complain(KvchatError(why, "the chat goes on without it"))


def _opened(path: Path, flags: int) -> int:
    """Open a file that is one, private to the user: a pipe or a device would be waited for. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a file")
    return descriptor
