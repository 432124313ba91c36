"""What a resident engine says of itself: lines of bounded length in a file of bounded size, and never a word of a conversation."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 2**20
"""How large the file may grow; then its older part goes."""
_KEPT_BYTES = 2**18


def log(message: str) -> None:
    """Write one line, with the time and this process's id, to stderr, which is the file."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError, ValueError):
        print(f"{stamp} {os.getpid()} {message[:500]}", file=sys.stderr, flush=True)  # noqa: T201  # the log


def cut(path: Path, *, max_bytes: int = MAX_BYTES, kept_bytes: int = _KEPT_BYTES) -> None:
    """Leave the newest part of a file that has grown too large; whoever appends to it goes on behind that."""
    with suppress(OSError):
        size = path.stat().st_size
        if size <= max_bytes:
            return
        with path.open("r+b") as file:
            file.seek(size - kept_bytes)
            rest = file.read().partition(b"\n")[2]
            file.seek(0)
            file.truncate()
            file.write(rest)
