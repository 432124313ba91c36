"""The file that conversations live in: opening, waiting for others, mending what is damaged. Knows no conversation."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from kvchat.chat.connecting import backup, connect, create_private, has_wal, uri
from kvchat.chat.mending import may_be_damage, mend, rescue
from kvchat.chat.schema import COLUMNS, INDEX, Connection, add_index, drop_triggers, migrate
from kvchat.errors import KvchatError, reason_of

T = TypeVar("T")

BUSY_S = 5.0
"""How long to wait for another process's write."""
IMPATIENT_S = 0.1
"""How long after one waited in vain, until something could be written again."""

_POLL_S = 0.02
_log = logging.getLogger(__name__)


class Database:
    """One SQLite file, opened at its first use; for all threads of a process, and beside other processes.

    Without a `path` it lives in memory. Unless `saves` it does so too, and what the file holds is copied into it when
    something is read for the first time.
    """

    def __init__(self, path: Path | None, *, saves: bool = True, full_text: bool = True) -> None:
        self.path = path
        self.is_indexed = False  # whether full-text search is there; known once opened
        self._saves = saves and path is not None
        self._full_text = full_text
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._inode: int | None = None  # of the file that is open; None where it was copied into memory
        self._is_copied = self._saves or path is None
        self._patience_s = BUSY_S

    def read(self, query: Callable[[Connection], T]) -> T:
        """The result of a query. Raises KvchatError when the file can't be used."""
        return self._whole(query, is_question=True)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do all of it or nothing. Raises KvchatError when the file can't be used."""

        def transaction(db: Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            with db:
                return work(db)

        return self._whole(transaction)

    def check_index(self) -> None:
        """Compare the index with the texts, and rebuild it where they differ; if the file can be written."""
        check = f"INSERT INTO {INDEX}({INDEX}, rank) VALUES ('integrity-check', 1)"
        with suppress(KvchatError):
            if self.is_indexed:
                self._whole(lambda db: db.execute(check), is_question=True)

    def scrub(self) -> bool:
        """Leave nothing of what was deleted in the file; False when others are just using it, and something may stay."""

        def work(db: Connection) -> bool:
            if self.is_indexed:
                db.execute(f"INSERT INTO {INDEX}({INDEX}) VALUES ('rebuild')")
            db.execute("VACUUM")
            busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

        return self._whole(work)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _whole(self, work: Callable[[Connection], T], *, is_question: bool = False) -> T:
        """Do it, as soon as no other process writes.

        While it waits other threads may go on; once it waited in vain, others wait a moment only.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                with self._lock:
                    result = self._done(work, is_question)
                self._patience_s = BUSY_S if not is_question else self._patience_s
                return result
            except sqlite3.ProgrammingError:
                raise
            except (sqlite3.Error, OSError, UnicodeError, OverflowError) as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    self._patience_s = IMPATIENT_S if _is_busy(error) else self._patience_s
                    raise KvchatError(
                        f"can't use the conversations in {self.path}: {reason_of(error)}",
                        "check the folder and its disk, or use --no-save",
                    ) from error
            time.sleep(_POLL_S)

    def _done(self, work: Callable[[Connection], T], is_question: bool) -> T:
        """Do it; where that shows damage, once more in a file that was mended, or in a new one."""
        try:
            return work(self._opened(is_question))
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not self._saves or not may_be_damage(error):
                raise
            self._mend(error)
            return work(self._opened(is_question))

    def _opened(self, is_question: bool) -> Connection:
        if self._saves:
            if self._connection is None or self._is_outdated(is_question):
                self.close()
                self._connection = self._file(is_question)
            return self._connection
        if self._connection is None:
            self._connection = self._prepared(connect(":memory:"))
        if is_question and not self._is_copied:
            kept = self._prepared(self._copy())
            _add_rows(self._connection, kept)
            self._connection.close()
            self._connection, self._is_copied = kept, True
        return self._connection

    def _is_outdated(self, is_question: bool) -> bool:
        """Whether what is open is no longer the file by that name; a copy of it serves questions alone."""
        assert self.path is not None
        if self._inode is None:
            return not is_question
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _file(self, is_question: bool) -> Connection:
        """The file itself; a copy in memory where it can only be read, as on a medium that can't be written."""
        try:
            return self._prepared(self._connect())
        except sqlite3.OperationalError as error:
            if not is_question or _is_busy(error) or may_be_damage(error):
                raise
        copy = self._prepared(self._copy())
        self._inode = None
        return copy

    def _prepared(self, connection: Connection) -> Connection:
        try:
            migrate(connection, str(self.path))
            self.is_indexed = add_index(connection) if self._full_text else drop_triggers(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> Connection:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.path.exists():
            create_private(self.path)
        connection = connect(str(self.path))
        try:
            self._inode = self.path.stat().st_ino
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a crash of this program loses nothing
        except BaseException:
            connection.close()
            raise
        return connection

    def _copy(self) -> Connection:
        """A database in memory, with what the file holds; the file and its folder are left as they are."""
        memory = connect(":memory:")
        if self.path is None or not self.path.exists():
            return memory
        try:
            if not has_wal(self.path):
                backup(self.path, "immutable=1", memory)
                return memory
            try:
                backup(self.path, "mode=ro", memory)
            except sqlite3.OperationalError:  # what another process wrote last can't be read beside it
                backup(self.path, "immutable=1", memory)
        except sqlite3.DatabaseError as error:
            memory.close()
            if not may_be_damage(error):
                raise
            _log.warning("the conversations in %s are left out: %s", self.path, error)
            return connect(":memory:")
        return memory

    def _mend(self, error: Exception) -> None:
        """Rebuild what can be made from the tables; where they can't be read, go on with what is left of them."""
        self.close()
        if self._is_mended():
            return
        aside = self._set_aside(error)
        if aside is None:
            return
        with closing(connect(":memory:")) as copy:
            with suppress(sqlite3.DatabaseError):
                backup(aside, "mode=ro" if has_wal(aside) else "immutable=1", copy)
            rescue(copy, self._opened(False))

    def _is_mended(self) -> bool:
        assert self.path is not None
        with closing(connect(uri(self.path, "mode=rw"))) as connection:
            self._inode = self.path.stat().st_ino
            return mend(connection)

    def _set_aside(self, error: Exception) -> Path | None:
        """Give the damaged file another name, unless another process did, which the inode tells."""
        assert self.path is not None
        if not self.path.exists() or self.path.stat().st_ino != self._inode:
            return None
        suffix = time.strftime(".damaged-%Y%m%d-%H%M%S")
        aside = self.path.with_name(self.path.name + suffix)
        for end in ("-wal", "-shm", ""):
            file = self.path.with_name(self.path.name + end)
            if file.exists():
                file.rename(aside.with_name(aside.name + end))
        _log.warning("%s is damaged (%s); it is kept as %s", self.path, error, aside.name)
        return aside


def _is_busy(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _add_rows(source: Connection, target: Connection) -> None:
    """Add what was said in one database in memory to another one, as the latest; totals add up."""
    (highest,) = target.execute("SELECT coalesce(max(rank), 0) FROM session").fetchone()
    adding = " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
    for table, columns in COLUMNS.items():
        marks = ", ".join("?" for _ in columns.split(","))
        query = f"INSERT INTO {table} ({columns}) VALUES ({marks}){adding if table == 'counter' else ''}"
        rows = source.execute(f"SELECT {columns.replace('rank', f'rank + {highest}')} FROM {table}")
        target.executemany(query, rows.fetchall())
