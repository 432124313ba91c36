"""SQLite files as they are opened, copied and created. Knows nothing of what they hold."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from kvchat.chat.mending import copy_pages
from kvchat.chat.schema import Connection


def connect(name: str) -> Connection:
    """An open database: a path, a URI or `:memory:`. Waits for no lock, and leaves nothing of what is deleted."""
    db = sqlite3.connect(
        name, timeout=0, isolation_level=None, check_same_thread=False, uri=name.startswith("file:")
    )
    db.text_factory = lambda text: text.decode(errors="replace")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA secure_delete = ON")
    return db


def uri(path: Path, mode: str) -> str:
    """The name under which a file is opened in a mode, such as `mode=ro`."""
    return f"{path.resolve().as_uri()}?{mode}"


def has_wal(path: Path) -> bool:
    """Whether something was written that is not in the file itself yet."""
    return path.with_name(path.name + "-wal").exists()


def backup(path: Path, mode: str, memory: Connection) -> None:
    """Copy a file that is opened in a mode into another database."""
    with closing(connect(uri(path, mode))) as source:
        copy_pages(source, memory)


def create_private(path: Path) -> None:
    """An empty file that only its owner can read, unless there is one.

    It gets its name once it is closed: closing a file that SQLite has open in this process would drop SQLite's locks.
    """
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    os.close(descriptor)
    try:
        os.link(name, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    finally:
        Path(name).unlink()
