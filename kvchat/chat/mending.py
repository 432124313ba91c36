"""Mends the file of conversations where that loses nothing, and reads what is left out of one that can't be mended."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from kvchat.chat.schema import COLUMNS, INDEX, MIGRATIONS, Connection, add_index, drop_triggers, migrate

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_SUCH_THING = (None, sqlite3.SQLITE_ERROR)
"""What is said when a table or a column is called otherwise than it should be."""
_WAIT_MS = 5000


def may_be_damage(error: sqlite3.Error) -> bool:
    """Whether it is worth a look at the file: it is damaged, or it does not have what it should have."""
    return _code(error) in (*_DAMAGE, *_NO_SUCH_THING)


def mend(db: Connection) -> bool:
    """Rebuild the schema and all indexes from the tables; False when the tables themselves can't be read whole.

    Raises sqlite3.Error when it could not be tried: that is no damage.
    """
    try:
        _restore_schema(db)
        _read_all(db)
        _rebuild(db)
    except sqlite3.IntegrityError:
        return False
    except sqlite3.DatabaseError as error:
        if not may_be_damage(error):
            raise
        return False
    return True


def rescue(source: Connection, target: Connection) -> None:
    """Add all rows that can still be read to a database without them."""
    target.execute("PRAGMA foreign_keys = OFF")
    target.execute(f"PRAGMA busy_timeout = {_WAIT_MS}")
    target.execute("BEGIN IMMEDIATE")
    with target:
        for table, columns in COLUMNS.items():
            marks = ", ".join("?" for _ in columns.split(","))
            query = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
            target.executemany(query, _readable(source, table, columns))
    target.execute("PRAGMA busy_timeout = 0")
    target.execute("PRAGMA foreign_keys = ON")


def _code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _restore_schema(db: Connection) -> None:
    """Write anew what the file says of its tables and indexes, where that is not what it has to be."""
    db.execute("PRAGMA writable_schema = ON")
    db.execute("BEGIN IMMEDIATE")
    with db:
        for kind, name, table, text in _schema():
            known = kind, table, text, name
            db.execute(
                "UPDATE sqlite_master SET type = ?1, tbl_name = ?2, sql = ?3"
                " WHERE name = ?4 AND (type, tbl_name, sql) IS NOT (?1, ?2, ?3)",
                known,
            )
    db.execute("PRAGMA writable_schema = RESET")


def _schema() -> list[tuple[str, str, str, str]]:
    """Type, name, table and text of all that a sound file has and that was not made by the way."""
    model = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(model, "memory")
        add_index(model)
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        return model.execute(query).fetchall()
    finally:
        model.close()


def _read_all(db: Connection) -> None:
    """Read every row of every table. Raises sqlite3.DatabaseError for what can't be read."""
    for table, columns in COLUMNS.items():
        for _ in db.execute(f"SELECT {columns} FROM {table} NOT INDEXED"):
            pass


def _rebuild(db: Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    with db:
        drop_triggers(db)
        is_dropped = _is_index_dropped(db)
        if not is_dropped:
            _forget_index(db)
        db.execute("REINDEX")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    if not is_dropped:
        db.execute("VACUUM")  # what nothing points to any more


def _is_index_dropped(db: Connection) -> bool:
    db.execute("SAVEPOINT index_dropped")
    try:
        db.execute(f"DROP TABLE IF EXISTS {INDEX}")
    except sqlite3.DatabaseError:
        db.execute("ROLLBACK TO index_dropped")
        return False
    finally:
        db.execute("RELEASE index_dropped")
    return True


def _forget_index(db: Connection) -> None:
    """Take the index of texts out of the schema, where it is too broken to be dropped."""
    (version,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute("PRAGMA writable_schema = ON")
    db.execute("DELETE FROM sqlite_master WHERE name = ?1 OR name LIKE ?1 || '\\_%' ESCAPE '\\'", (INDEX,))
    db.execute("PRAGMA writable_schema = OFF")
    db.execute(f"PRAGMA schema_version = {version + 1}")


def _readable(db: Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a table up to one that can't be read, and those behind it from the end back."""
    query = f"SELECT {columns} FROM {table} NOT INDEXED"
    try:
        yield from db.execute(query)
        return
    except sqlite3.DatabaseError:
        pass
    behind: list[tuple[Any, ...]] = []
    try:
        for row in db.execute(f"{query} ORDER BY rowid DESC"):
            behind.append(row)
    except sqlite3.DatabaseError:
        pass
    yield from reversed(behind)
