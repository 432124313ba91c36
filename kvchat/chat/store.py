"""Conversations on disk: exchanges with their token ids, sessions that point into them, totals. Knows no backend.

Exchanges form trees; a session is a named tip in one. All sessions that were forked from each other share a tree.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kvchat.backends.inspection import CacheTotals
from kvchat.chat.database import Connection, Database
from kvchat.chat.rows import EXCHANGE_COLUMNS, exchange_from_row, ids_from_blob, ids_to_blob, statistics_json
from kvchat.chat.search import Hit, search
from kvchat.chat.tree import Exchange
from kvchat.config import Config
from kvchat.errors import UsageError

FILE_NAME = "kvchat.db"
LATEST = "latest"
"""What may be said instead of a session's id: the one that was changed last."""

_MIN_PREFIX = 4


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as it is kept. Times are in seconds since the epoch; `tree` names the tree that `tip` is in.

    `num_exchanges` lie on the path to the tip, which has `num_tokens` with its prompt and answer.
    """

    id: str
    tree: str
    title: str = ""
    name: str | None = None
    tip: str | None = None
    system: str | None = None
    model: str = ""
    created: float = 0.0
    updated: float = 0.0
    num_exchanges: int = 0
    num_tokens: int = 0

    @property
    def label(self) -> str:
        """How a person knows it: its name, or its title."""
        return self.name or self.title


_SESSIONS = """
    SELECT s.id, s.tree, s.title, s.name, s.tip, s.system, s.model, s.created, s.updated,
           coalesce(e.depth, 0), coalesce(e.tokens, 0)
    FROM session s LEFT JOIN exchange e ON e.id = s.tip
"""


class Store:
    """All conversations of a user. Opens its file at first use; any thread may call.

    Every method raises KvchatError when the file can't be used. A damaged file is set aside, with one warning.
    """

    def __init__(self, path: Path | None = None, *, saves: bool = True) -> None:
        self.database = Database(path, saves=saves)

    @classmethod
    def from_config(cls, config: Config) -> Store:
        """The store in the data folder; a copy in memory when nothing may be saved."""
        return cls(config.paths.data / FILE_NAME, saves=config.chat.save)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self.database.close()

    # Sessions

    def sessions(self, limit: int = -1) -> list[SessionRow]:
        """Sessions, the one changed last first."""
        query = _SESSIONS + "ORDER BY s.updated DESC, s.rowid DESC LIMIT ?"
        return [
            SessionRow(*row) for row in self.database.read(lambda db: db.execute(query, (limit,)).fetchall())
        ]

    def session(self, key: str = LATEST) -> SessionRow:
        """The session of this name, this id or the beginning of one, or the latest. Raises UsageError."""
        rows = self.database.read(lambda db: _matching(db, key))
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise UsageError(f"{key!r} is the beginning of {len(rows)} sessions' ids", "give more of it")
        if key == LATEST:
            raise UsageError("there is no session yet", "kvchat -p TEXT begins one")
        names = self.database.read(lambda db: db.execute("SELECT coalesce(name, id) FROM session").fetchall())
        nearest = difflib.get_close_matches(key, [name for (name,) in names], n=1, cutoff=0.5)
        raise UsageError(
            f"no session is called {key!r}",
            f"did you mean {nearest[0]!r}?" if nearest else "see kvchat sessions ls",
        )

    def sessions_of(self, tree: str) -> list[SessionRow]:
        """The sessions that share a tree."""
        rows = self.database.read(lambda db: db.execute(_SESSIONS + "WHERE s.tree = ?", (tree,)).fetchall())
        return [SessionRow(*row) for row in rows]

    def move(self, session: SessionRow, path: Sequence[Exchange], expected: str | None) -> bool:
        """Set a session's tip to the end of `path`, adding what is not there yet.

        False, and nothing is written, if its tip is no longer `expected`: another terminal moved it.
        """
        return self.database.write(lambda db: _move(db, session, path, expected))

    def rename(self, session_id: str, name: str) -> None:
        """Name a session. Raises UsageError if another one has the name."""

        def work(db: Connection) -> None:
            if db.execute("SELECT 1 FROM session WHERE name = ? AND id <> ?", (name, session_id)).fetchone():
                raise UsageError(
                    f"another session is called {name!r}", "choose another name, or rename that one"
                )
            db.execute("UPDATE session SET name = ? WHERE id = ?", (name, session_id))

        self.database.write(work)

    def delete(self, session_id: str) -> None:
        """Delete a session, and its tree unless another session shares it."""
        self.database.write(lambda db: _delete(db, session_id))

    # Exchanges

    def exchanges(self, tree: str) -> list[Exchange]:
        """All exchanges of a tree, parents first. One that was broken off has what was saved of its answer."""
        query = f"""
            SELECT {EXCHANGE_COLUMNS} FROM exchange e LEFT JOIN token_ids t
                ON t.rowid = (SELECT min(rowid) FROM token_ids WHERE exchange = e.id)
            WHERE e.tree = ? ORDER BY e.number
        """
        rows = self.database.read(lambda db: db.execute(query, (tree,)).fetchall())
        encoded = self.database.read(lambda db: _encoded(db, tree))
        return [exchange_from_row(row, encoded.get(row[0], {})) for row in rows]

    def save_draft(self, exchange_id: str, text: str, reasoning: str) -> None:
        """Save an answer as far as it is; it has no ids until it ends."""

        def work(db: Connection) -> None:
            query = "UPDATE exchange SET answer = ?, reasoning = ?, finish = NULL WHERE id = ?"
            db.execute(query, (text, reasoning, exchange_id))
            db.execute("DELETE FROM token_ids WHERE exchange = ?", (exchange_id,))

        self.database.write(work)

    def save_answer(self, session: SessionRow, path: Sequence[Exchange]) -> None:
        """Save the answer at the end of `path`, with its ids."""
        self.database.write(lambda db: _save_answer(db, session, path))

    def take_back(self, session: SessionRow, exchange_id: str) -> None:
        """Delete an exchange that nothing follows, and the session if nothing else was said in it."""
        self.database.write(lambda db: _take_back(db, session, exchange_id))

    def add_token_ids(self, exchange_id: str, tokenizer: str, ids: Sequence[int]) -> None:
        """Keep an answer's ids of another tokenizer beside those that it was generated with."""
        query = "INSERT OR IGNORE INTO token_ids SELECT id, ?, ? FROM exchange WHERE id = ?"
        row = tokenizer, ids_to_blob(ids), exchange_id
        self.database.write(lambda db: db.execute(query, row))

    def token_ids(self, exchange_id: str) -> dict[str, tuple[int, ...]]:
        """The ids of an answer by tokenizer."""
        query = "SELECT tokenizer, ids FROM token_ids WHERE exchange = ?"
        rows = self.database.read(lambda db: db.execute(query, (exchange_id,)).fetchall())
        return {tokenizer: ids_from_blob(blob) for tokenizer, blob in rows}

    def search(self, text: str, limit: int = 20) -> list[tuple[SessionRow, Hit]]:
        """Exchanges that contain all words of `text`, the newest first, each with a session that has it."""
        hits = self.database.read(lambda db: search(db, text, limit, is_indexed=self.database.is_indexed))
        return [(max(self.sessions_of(hit.tree), key=lambda row: row.updated), hit) for hit in hits]

    # All-time totals

    def add_totals(self, totals: CacheTotals) -> None:
        """Add what the cache did for an answer to the sums over all time."""
        query = """
            INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value
        """
        counts = [(name, value) for name, value in asdict(totals).items() if value]
        self.database.write(lambda db: db.executemany(query, counts))

    def totals(self) -> CacheTotals:
        """What the cache did over all time."""
        rows = self.database.read(lambda db: db.execute("SELECT name, value FROM counter").fetchall())
        kinds = {name: type(value) for name, value in asdict(CacheTotals()).items()}
        return CacheTotals(**{name: kinds[name](value) for name, value in rows if name in kinds})


def _matching(db: Connection, key: str) -> list[SessionRow]:
    """The session that is named `key`, or those whose id is `key` or begins with it."""
    searches = [("WHERE s.name = ?", key), ("WHERE s.id = ?", key)]
    if key == LATEST:
        searches.append(("WHERE ? <> '' ORDER BY s.updated DESC, s.rowid DESC LIMIT 1", key))
    if len(key) >= _MIN_PREFIX:
        searches.append(("WHERE substr(s.id, 1, length(?1)) = ?1", key))
    for condition, value in searches:
        rows = db.execute(_SESSIONS + condition, (value,)).fetchall()
        if rows:
            return [SessionRow(*row) for row in rows]
    return []


def _move(db: Connection, session: SessionRow, path: Sequence[Exchange], expected: str | None) -> bool:
    found = db.execute("SELECT tip FROM session WHERE id = ?", (session.id,)).fetchone()
    if found and found[0] != expected:
        return False
    _add_missing(db, session.tree, path)
    tip = path[-1].id if path else None
    _put_session(db, replace(session, tip=tip), "tip = excluded.tip")
    return True


def _put_session(db: Connection, session: SessionRow, *changes: str) -> None:
    """Add a session, or change what the row that is there says."""
    what = (
        "title = excluded.title",
        "system = excluded.system",
        "model = excluded.model",
        "updated = excluded.updated",
        *changes,
    )
    row = session.id, session.tree, session.title, session.name, session.tip, session.system, session.model
    db.execute(
        "INSERT INTO session (id, tree, title, name, tip, system, model, created, updated)"
        f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET {', '.join(what)}",
        (*row, session.created, time.time()),
    )


def _add_missing(db: Connection, tree: str, path: Sequence[Exchange]) -> None:
    """Add the end of a path that is not stored yet; all of it after the file was set aside."""
    first = len(path)
    while first and not db.execute("SELECT 1 FROM exchange WHERE id = ?", (path[first - 1].id,)).fetchone():
        first -= 1
    for depth, exchange in enumerate(path[first:], first + 1):
        asked = exchange.model, json.dumps(asdict(exchange.options)), exchange.created
        db.execute(
            "INSERT INTO exchange (id, tree, parent, depth, user, model, options, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (exchange.id, tree, exchange.parent, depth, exchange.user.text, *asked),
        )
        _put_answer(db, exchange)


def _encoded(db: Connection, tree: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """By exchange and tokenizer, the ids of answers that another tokenizer generated."""
    query = """
        SELECT t.exchange, t.tokenizer, t.ids FROM token_ids t JOIN exchange e ON e.id = t.exchange
        WHERE e.tree = ? AND t.rowid > (SELECT min(rowid) FROM token_ids WHERE exchange = e.id)
    """
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for exchange, tokenizer, blob in db.execute(query, (tree,)):
        found.setdefault(exchange, {})[tokenizer] = ids_from_blob(blob)
    return found


def _put_answer(db: Connection, exchange: Exchange) -> None:
    answer = exchange.answer
    if answer is None:
        db.execute(
            "UPDATE exchange SET answer = '', reasoning = '', finish = NULL WHERE id = ?", (exchange.id,)
        )
        return
    said = answer.text, answer.reasoning, str(answer.finish_reason)
    db.execute(
        "UPDATE exchange SET answer = ?, reasoning = ?, finish = ?, model = ?, statistics = ?, tokens = ?"
        " WHERE id = ?",
        (*said, exchange.model, statistics_json(answer), answer.usage.total_tokens, exchange.id),
    )
    db.execute("DELETE FROM token_ids WHERE exchange = ?", (exchange.id,))  # the text is not what they say
    if answer.completion:
        row = exchange.id, answer.tokenizer, ids_to_blob(answer.completion)
        db.execute("INSERT INTO token_ids VALUES (?, ?, ?)", row)
    if answer.kv_tip:
        db.execute(
            "INSERT OR REPLACE INTO kv_tip VALUES (?, ?, ?)", (exchange.id, answer.kv_root, answer.kv_tip)
        )


def _save_answer(db: Connection, session: SessionRow, path: Sequence[Exchange]) -> None:
    _add_missing(db, session.tree, path)
    _put_answer(db, path[-1])
    _put_session(db, replace(session, tip=path[-1].id))


def _take_back(db: Connection, session: SessionRow, exchange_id: str) -> None:
    db.execute(
        "DELETE FROM exchange WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM exchange WHERE parent = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM session WHERE tip = ?1)",
        (exchange_id,),
    )
    db.execute(
        "DELETE FROM session WHERE id = ? AND tip IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM exchange WHERE tree = session.tree)",
        (session.id,),
    )


def _delete(db: Connection, session_id: str) -> None:
    tree = db.execute("DELETE FROM session WHERE id = ? RETURNING tree", (session_id,)).fetchone()
    db.execute(
        "DELETE FROM exchange WHERE tree = ?1 AND NOT EXISTS (SELECT 1 FROM session WHERE tree = ?1)",
        tree or ("",),
    )
