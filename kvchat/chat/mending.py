"""Mends the file of conversations where that loses nothing, and reads what is left out of one that can't be mended."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any

from kvchat.chat.schema import COLUMNS, Connection, add_index, migrate

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NOT_AS_IT_SHOULD_BE = re.compile(
    "malformed|no such (table|column|index|trigger|view|module|collation|tokenizer)|no column named|already "
    "|duplicate column|columns but|values for|is a view|may not be|foreign key mismatch"
    "|constructor|file format|unrecognized (column )?option|parse error|error in |unable to use function|logic error"
)
"""What SQLite says where a table, a column or the index is not what the file says; of a wrong statement it says something
else, with the same code."""
_WAIT_S = 5.0
_Rows = Callable[[Connection, str], Iterable[tuple[Any, ...]]]


def may_be_damage(error: Exception) -> bool:
    """Whether it is worth a look at the file: it is damaged, or it does not have what it should have."""
    if isinstance(error, UnicodeDecodeError):  # SQLite names what it found there
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.DatabaseError) or code is None:
        return isinstance(error, sqlite3.DatabaseError)
    if code & 0xFF == sqlite3.SQLITE_ERROR:
        return bool(_NOT_AS_IT_SHOULD_BE.search(str(error)))
    return code & 0xFF in _DAMAGE


def mend(db: Connection) -> bool:
    """Write the file again, from the rows of its tables; False when these can't be read whole.

    Nobody else writes meanwhile. Raises sqlite3.Error or OSError when it could not be tried: that is no damage.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        try:
            _restore_schema(db)
            db.execute("BEGIN IMMEDIATE")
            _fill(fresh, db, _all_rows)
            db.execute("ROLLBACK")
        except (sqlite3.DatabaseError, UnicodeError) as error:
            if not may_be_damage(error):
                raise
            return False
        copy_pages(fresh, db)
    return True


def rescue(damaged: Connection, target: Connection) -> None:
    """Add all rows that can still be read to a database; the schema of the damaged one is changed for that."""
    with suppress(sqlite3.DatabaseError, UnicodeError):
        _restore_schema(damaged)
    target.execute(f"PRAGMA busy_timeout = {_WAIT_S * 1000:.0f}")
    _fill(target, damaged, _readable_rows)
    target.execute("PRAGMA busy_timeout = 0")


def copy_pages(source: Connection, target: Connection) -> None:
    """Make `target` what `source` is, in one transaction. Raises TimeoutError if others use it all the time."""
    deadline = time.monotonic() + _WAIT_S

    def check(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise TimeoutError("another process uses it all the time")

    source.backup(target, progress=check, sleep=0.02)


def _restore_schema(db: Connection) -> None:
    """Correct what the file says of its tables and indexes where it is wrong.

    Until it is closed the connection overlooks what it still can't make sense of there.
    """
    db.execute("PRAGMA writable_schema = ON")
    db.execute("BEGIN IMMEDIATE")
    with db:
        for kind, name, table, text in _schema():
            db.execute(
                "UPDATE sqlite_master SET type = ?1, tbl_name = ?2, sql = ?3"
                " WHERE name = ?4 AND (type, tbl_name, sql) IS NOT (?1, ?2, ?3)",
                (kind, table, text, name),
            )
        (version,) = db.execute("PRAGMA schema_version").fetchone()
        db.execute(f"PRAGMA schema_version = {version + 1}")  # read it again


def _schema() -> list[tuple[str, str, str, str]]:
    """Type, name, table and text of all that a sound file has and that was not made by the way."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as model:
        migrate(model, "memory")
        add_index(model)
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        return model.execute(query).fetchall()


def _fill(target: Connection, source: Connection, rows: _Rows) -> None:
    """Add the rows of a database to another one, which gets its tables if it has none."""
    migrate(target, "memory")
    add_index(target)
    target.execute("PRAGMA foreign_keys = OFF")
    target.execute("BEGIN IMMEDIATE")
    with target:
        for table, columns in COLUMNS.items():
            marks = ", ".join("?" for _ in columns.split(","))
            query = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
            target.executemany(query, rows(source, table))
    target.execute("PRAGMA foreign_keys = ON")


def _all_rows(db: Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table. Raises sqlite3.DatabaseError for one that can't be read."""
    yield from db.execute(f"SELECT {COLUMNS[table]} FROM {table} NOT INDEXED")


def _readable_rows(db: Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table up to one that can't be read, and those behind it from the end back."""
    with suppress(sqlite3.DatabaseError, UnicodeError):
        yield from _all_rows(db, table)
        return
    behind: list[tuple[Any, ...]] = []
    with suppress(sqlite3.DatabaseError, UnicodeError):
        for row in db.execute(f"SELECT {COLUMNS[table]} FROM {table} NOT INDEXED ORDER BY rowid DESC"):
            behind.append(row)
    yield from reversed(behind)
