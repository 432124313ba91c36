"""Earlier messages on disk, private to the user. Knows where, not what."""

from __future__ import annotations

import os
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory


def message_history(path: Path, *, save: bool) -> History:
    """The history in a file with mode 0600; in memory when nothing may be saved or the folder can't be used."""
    if not save:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
