"""The tables that conversations live in, and the index of their texts: how they are made and brought up to date."""

from __future__ import annotations

import sqlite3

from kvchat.errors import KvchatError

Connection = sqlite3.Connection

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
    """
    ALTER TABLE session ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;  -- counts the changes; a clock may go back
    UPDATE session SET rank = o.rank
        FROM (SELECT id, row_number() OVER (ORDER BY updated, rowid) AS rank FROM session) o WHERE o.id = session.id;
    DROP INDEX session_updated;
    CREATE INDEX session_rank ON session(rank);
    """,
    """
    ALTER TABLE session ADD COLUMN oneshot INTEGER NOT NULL DEFAULT 0;  -- whether it was only asked without a dialogue
    """,
    """
    ALTER TABLE session ADD COLUMN summary TEXT;                        -- the exchange that is told instead of the oldest
    ALTER TABLE exchange ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;  -- whether it stays word for word
    ALTER TABLE exchange ADD COLUMN follows TEXT;  -- of a summary: the one before it, or empty; NULL for what was said
    """,
)
"""What made each version of the file from the one before; `user_version` counts those that were run."""

COLUMNS = {
    "exchange": "id, tree, parent, depth, user, answer, reasoning, finish, model, options, statistics, tokens, created,"
    " pinned, follows",
    "token_ids": "exchange, tokenizer, ids",
    "kv_tip": "exchange, root, tip",
    "session": "id, tree, name, title, tip, system, model, created, updated, rank, oneshot, summary",
    "counter": "name, value",
}
"""All that is kept, by table; what else the file has can be made from it."""

INDEX = "exchange_text"
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


def migrate(db: Connection, whose: str) -> None:
    """Bring the tables up to date. Raises KvchatError when a newer kvchat wrote the file `whose`."""
    if _version(db) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    with db:
        version = _version(db)
        if version > len(MIGRATIONS):
            raise KvchatError(
                f"the conversations in {whose} were written by a newer kvchat",
                "upgrade kvchat, or use --no-save",
            )
        for script in MIGRATIONS[max(0, version) :]:
            _run(db, script)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def add_index(db: Connection) -> bool:
    """Index the texts, if this SQLite can; whether they are indexed."""
    if ("ENABLE_FTS5",) not in db.execute("PRAGMA compile_options").fetchall():
        return drop_triggers(db)
    if not _has_triggers(db):
        db.execute("BEGIN IMMEDIATE")
        with db:
            if not _has_triggers(db):
                _run(db, _INDEXING)
    return True


def drop_triggers(db: Connection) -> bool:
    """Stop keeping an index that this SQLite can't write; another one rebuilds it. False, for nothing is indexed."""
    if _has_triggers(db):
        for name in _TRIGGERS:
            db.execute(f"DROP TRIGGER IF EXISTS {name}")
    return False


def _version(db: Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


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
