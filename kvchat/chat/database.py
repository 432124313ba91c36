"""The file that conversations live in: opening, migrating, setting aside when damaged. Knows no conversation.

The one module that imports sqlite3.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kvchat.errors import KvchatError, reason_of

Connection = sqlite3.Connection
T = TypeVar("T")

BUSY_S = 5.0
"""How long to wait for another process's write."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_log = logging.getLogger(__name__)

MIGRATIONS = (
    """
    CREATE TABLE exchange (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        tree TEXT NOT NULL,
        parent TEXT REFERENCES exchange(id),
        depth INTEGER NOT NULL,                -- exchanges on its path, itself included
        user TEXT NOT NULL,
        answer TEXT NOT NULL DEFAULT '',
        reasoning TEXT NOT NULL DEFAULT '',
        finish TEXT,                           -- NULL while the answer is being made
        model TEXT NOT NULL,
        options TEXT NOT NULL,                 -- JSON
        statistics TEXT,                       -- JSON
        tokens INTEGER NOT NULL DEFAULT 0,     -- of prompt and answer
        created REAL NOT NULL
    );
    CREATE INDEX exchange_tree ON exchange(tree);
    CREATE INDEX exchange_parent ON exchange(parent);
    CREATE TABLE token_ids (
        exchange TEXT NOT NULL REFERENCES exchange(id) ON DELETE CASCADE,
        tokenizer TEXT NOT NULL,
        ids BLOB NOT NULL,                     -- int32, little endian
        UNIQUE (exchange, tokenizer)
    );
    CREATE TABLE session (
        id TEXT PRIMARY KEY,
        tree TEXT NOT NULL,
        name TEXT UNIQUE,
        title TEXT NOT NULL,
        tip TEXT REFERENCES exchange(id),
        system TEXT,
        model TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL
    );
    CREATE INDEX session_updated ON session(updated);
    CREATE INDEX session_tree ON session(tree);
    CREATE INDEX session_tip ON session(tip);
    CREATE TABLE counter (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
    """,
    """
    CREATE TABLE kv_tip (                      -- where the cache has the KV of a path up to an exchange
        exchange TEXT NOT NULL REFERENCES exchange(id) ON DELETE CASCADE,
        root TEXT NOT NULL,                    -- of the model's fingerprint
        tip TEXT NOT NULL,                     -- hash of the last full block
        UNIQUE (exchange, root)
    );
    CREATE INDEX kv_tip_tip ON kv_tip(tip);
    """,
)
"""What made each version of the file from the one before; `user_version` counts those that were run."""

_INDEXING = """
    CREATE VIRTUAL TABLE IF NOT EXISTS exchange_text USING fts5(
        user, answer, content='exchange', content_rowid='number', tokenize='unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER text_added AFTER INSERT ON exchange BEGIN
        INSERT INTO exchange_text(rowid, user, answer) VALUES (new.number, new.user, new.answer);
    END;
    CREATE TRIGGER text_removed AFTER DELETE ON exchange BEGIN
        INSERT INTO exchange_text(exchange_text, rowid, user, answer)
            VALUES ('delete', old.number, old.user, old.answer);
    END;
    CREATE TRIGGER text_changed AFTER UPDATE OF user, answer ON exchange BEGIN
        INSERT INTO exchange_text(exchange_text, rowid, user, answer)
            VALUES ('delete', old.number, old.user, old.answer);
        INSERT INTO exchange_text(rowid, user, answer) VALUES (new.number, new.user, new.answer);
    END;
    INSERT INTO exchange_text(exchange_text) VALUES ('rebuild');
"""
_TRIGGERS = ("text_added", "text_removed", "text_changed")


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
        self._inode = 0
        self._is_copied = self._saves or path is None

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

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _whole(self, work: Callable[[Connection], T], *, is_question: bool = False) -> T:
        """Do it; if the file proves to be damaged, set it aside and do it once more in a new one."""
        with self._lock:
            try:
                try:
                    return work(self._opened(with_kept=is_question))
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._set_aside(error)
                    return work(self._opened())
            except sqlite3.ProgrammingError:
                raise
            except (sqlite3.Error, OSError) as error:
                raise KvchatError(
                    f"can't use the conversations in {self.path}: {reason_of(error)}",
                    "see to the folder and its disk, or use --no-save",
                ) from error

    def _opened(self, *, with_kept: bool = False) -> Connection:
        if self._connection is None:
            self._connection = self._prepared(self._connect() if self._saves else _connection(":memory:"))
        if with_kept and not self._is_copied:
            kept = self._prepared(self._copy())
            _add_rows(self._connection, kept)
            self._connection.close()
            self._connection, self._is_copied = kept, True
        return self._connection

    def _prepared(self, connection: Connection) -> Connection:
        try:
            _migrate(connection, self.path)
            self.is_indexed = _indexed(connection) if self._full_text else _unindexed(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> Connection:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        self._inode = self.path.stat().st_ino
        connection = _connection(str(self.path))
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a crash of this program loses nothing
        except BaseException:
            connection.close()
            raise
        return connection

    def _copy(self) -> Connection:
        """A database in memory, with what the file holds; the file and its folder are left as they are."""
        memory = _connection(":memory:")
        if self.path is None or not self.path.exists():
            return memory
        is_open_elsewhere = self.path.with_name(self.path.name + "-wal").exists()
        mode = "mode=ro" if is_open_elsewhere else "immutable=1"
        source = _connection(f"{self.path.resolve().as_uri()}?{mode}")
        try:
            source.backup(memory)
        except sqlite3.DatabaseError as error:
            _log.warning("the conversations in %s are left out: %s", self.path, error)
            return _connection(":memory:")
        finally:
            source.close()
        return memory

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Give the damaged file another name, unless another process did, which the inode tells."""
        self.close()
        if self.path is None or not self._saves:
            return
        if self.path.exists() and self.path.stat().st_ino == self._inode:
            suffix = time.strftime(".damaged-%Y%m%d-%H%M%S")
            for end in ("-wal", "-shm", ""):
                file = self.path.with_name(self.path.name + end)
                if file.exists():
                    file.rename(self.path.with_name(self.path.name + suffix + end))
            _log.warning("%s is damaged (%s); it is kept as %s", self.path, error, self.path.name + suffix)


def _connection(name: str) -> Connection:
    db = sqlite3.connect(
        name,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
        uri=name.startswith("file:"),
    )
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _add_rows(source: Connection, target: Connection) -> None:
    """Add what was said in one database in memory to another one; totals add up."""
    ends = {
        "exchange": "",
        "token_ids": "",
        "kv_tip": "",
        "session": "",
        "counter": " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
    }
    for table, end in ends.items():
        names = [name for _, name, *_ in source.execute(f"PRAGMA table_info({table})") if name != "number"]
        rows = source.execute(
            f"SELECT {', '.join(names)} FROM {table}"
        )  # in the order in which they were added
        marks = ", ".join("?" for _ in names)
        target.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}){end}", rows.fetchall())


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _version(db: Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _migrate(db: Connection, path: Path | None) -> None:
    if _version(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    with db:
        version = _version(db)
        if version > len(MIGRATIONS):
            raise KvchatError(
                f"the conversations in {path} were written by a newer kvchat",
                "upgrade kvchat, or use --no-save",
            )
        for script in MIGRATIONS[version:]:
            _run(db, script)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _run(db: Connection, script: str) -> None:
    """All statements of a script, inside the transaction that is open (`executescript` would end it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    assert not statement.strip()


def _has_triggers(db: Connection) -> bool:
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name = ?"
    return bool(db.execute(query, (_TRIGGERS[0],)).fetchone()[0])


def _indexed(db: Connection) -> bool:
    """See to it that texts are indexed, where this SQLite can do it; whether they are."""
    if ("ENABLE_FTS5",) not in db.execute("PRAGMA compile_options").fetchall():
        return _unindexed(db)
    if not _has_triggers(db):
        db.execute("BEGIN IMMEDIATE")
        with db:
            if not _has_triggers(db):
                _run(db, _INDEXING)
    return True


def _unindexed(db: Connection) -> bool:
    """Stop keeping an index that this SQLite can't write; another one rebuilds it."""
    if _has_triggers(db):
        for name in _TRIGGERS:
            db.execute(f"DROP TRIGGER IF EXISTS {name}")
    return False
