"""Conversations on disk: exchanges with their token ids, sessions that point into them, totals. Knows no backend.

Exchanges form trees; a session is a named tip in one. All sessions that were forked from each other share a tree.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvchat.backends.base import well_formed
from kvchat.backends.inspection import CacheTotals
from kvchat.chat.database import Database
from kvchat.chat.rows import (
    EXCHANGE_COLUMNS,
    LATEST_FIRST,
    SESSIONS,
    exchange_from_row,
    ids_from_blob,
    ids_to_blob,
    session_from_row,
    text,
)
from kvchat.chat.rows import SessionRow as SessionRow
from kvchat.chat.schema import Connection
from kvchat.chat.search import Hit, search
from kvchat.chat.totals import add, sums
from kvchat.chat.tree import Exchange, Tree
from kvchat.chat.writes import LATEST as LATEST
from kvchat.chat.writes import (
    Deleted,
    check_name,
    delete,
    fit_name,
    move,
    pin,
    save_answer,
    save_summary,
    take_back,
)
from kvchat.chat.writes import NameTakenError as NameTakenError
from kvchat.config import Config
from kvchat.errors import KvchatError, UsageError

FILE_NAME = "kvchat.db"
_MIN_PREFIX = 3


class Store:
    """All conversations of a user. Opens its file at first use; any thread may call.

    Every method raises KvchatError when the file can't be used. What is damaged in it is mended; a file that can't be is
    set aside with one warning, and what could be read of it stands in a new one.
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
        query = f"{SESSIONS} {LATEST_FIRST} LIMIT ?"
        return [
            session_from_row(row)
            for row in self.database.read(lambda db: db.execute(query, (limit,)).fetchall())
        ]

    def session(self, key: str = LATEST, *, oneshots: bool = True) -> SessionRow:
        """The session of this name, this id or the beginning of one, or the latest. Raises UsageError.

        Without `oneshots` the latest is one that was held as a dialogue, if there is any.
        """
        key = well_formed(key)
        rows = self.database.read(lambda db: _matching(db, key, oneshots))
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise UsageError(f"{key!r} is the beginning of {len(rows)} sessions' ids", "give more of it")
        if key == LATEST:
            raise UsageError("there are no sessions yet", "kvchat -p TEXT starts one")
        names = self.database.read(lambda db: db.execute("SELECT coalesce(name, id) FROM session").fetchall())
        nearest = difflib.get_close_matches(key, [text(name) for (name,) in names], n=1, cutoff=0.5)
        raise UsageError(
            f"no session is called {key!r}",
            f"did you mean {nearest[0]!r}?" if nearest else "see kvchat sessions ls",
        )

    def sessions_of(self, tree: str) -> list[SessionRow]:
        """The sessions that share a tree, the one changed last first."""
        query = f"{SESSIONS} WHERE s.tree = ? {LATEST_FIRST}"
        rows = self.database.read(lambda db: db.execute(query, (tree,)).fetchall())
        return [session_from_row(row) for row in rows]

    def move(self, session: SessionRow, path: Sequence[Exchange], expected: str | None) -> bool:
        """Set a session's tip to the end of `path`, adding what is not there yet.

        False, and nothing is written, if its tip is no longer `expected`: another terminal moved it. Raises NameTakenError
        if the session is new and another one has its name.
        """
        return self.database.write(lambda db: move(db, session, path, expected))

    def rename(self, session_id: str, name: str) -> None:
        """Name a session. Raises UsageError for no fit name, NameTakenError if another one has it."""
        name = fit_name(name)

        def work(db: Connection) -> None:
            check_name(db, name, session_id)
            db.execute("UPDATE session SET name = ? WHERE id = ?", (name, session_id))

        self.database.write(work)

    def entitle(self, session_id: str, title: str) -> None:
        """Say what a session is about; its place in the order stays."""
        query = "UPDATE session SET title = ? WHERE id = ?"
        self.database.write(lambda db: db.execute(query, (title, session_id)))

    def delete(self, session_id: str) -> Deleted:
        """Delete a session, and of its tree what no other session shares."""
        return self.database.write(lambda db: delete(db, session_id))

    def kv_tips(self) -> frozenset[tuple[str, str]]:
        """(Model's fingerprint, block hash) up to which the cache may have KV of what is kept."""
        query = "SELECT root, tip FROM kv_tip"
        return frozenset(self.database.read(lambda db: db.execute(query).fetchall()))

    # Exchanges

    def tree(self, session: SessionRow) -> Tree:
        """The tree of a session. Raises KvchatError where its path to the tip is damaged."""
        tree = Tree(self.exchanges(session.tree))
        if session.tip is not None and session.tip not in tree:
            raise KvchatError(
                f"session {session.id} is damaged: messages are missing between its beginning and its end",
                f"go on with another one; kvchat sessions rm {session.id} removes it",
            )
        return tree

    def exchanges(self, tree: str, known: Iterable[str] = ()) -> list[Exchange]:
        """All exchanges of a tree but those that are `known`, parents first. One that was broken off has what was saved
        of its answer."""
        query = f"""
            SELECT {EXCHANGE_COLUMNS} FROM exchange e LEFT JOIN token_ids t
                ON t.rowid = (SELECT min(rowid) FROM token_ids WHERE exchange = e.id)
            WHERE e.tree = ? AND e.id NOT IN (SELECT value FROM json_each(?)) ORDER BY e.number
        """
        about = tree, json.dumps(list(known))
        rows = self.database.read(lambda db: db.execute(query, about).fetchall())
        encoded = self.database.read(lambda db: _encoded(db, tree)) if rows else {}
        return [exchange_from_row(row, encoded.get(text(row[0]), {})) for row in rows]

    def save_incoming(self, exchange_id: str, text: str, reasoning: str) -> None:
        """Save an answer as far as it is; it has no ids until it ends."""

        def work(db: Connection) -> None:
            query = "UPDATE exchange SET answer = ?, reasoning = ?, finish = NULL WHERE id = ?"
            db.execute(query, (text, reasoning, exchange_id))
            db.execute("DELETE FROM token_ids WHERE exchange = ?", (exchange_id,))

        self.database.write(work)

    def save_answer(self, session: SessionRow, path: Sequence[Exchange]) -> None:
        """Save the answer at the end of `path`, with its ids. Raises NameTakenError as `move` does."""
        self.database.write(lambda db: save_answer(db, session, path))

    def save_summary(self, tree: str, path: Sequence[Exchange]) -> None:
        """Save the summary at the end of `path`, which stands beside what was said."""
        self.database.write(lambda db: save_summary(db, tree, path))

    def pin(self, exchange_id: str, *, is_pinned: bool) -> None:
        """Keep an exchange word for word in every prompt, or no longer."""
        self.database.write(lambda db: pin(db, exchange_id, is_pinned=is_pinned))

    def take_back(self, session: SessionRow, exchange_id: str) -> None:
        """Delete an exchange that nothing follows, and the session if nothing else was said in it."""
        self.database.write(lambda db: take_back(db, session, exchange_id))

    def add_token_ids(self, exchange_id: str, tokenizer: str, ids: Sequence[int]) -> None:
        """Keep an answer's ids of another tokenizer beside those that it was generated with."""
        query = "INSERT OR IGNORE INTO token_ids SELECT id, ?, ? FROM exchange WHERE id = ?"
        row = tokenizer, ids_to_blob(ids), exchange_id
        self.database.write(lambda db: db.execute(query, row))

    def token_ids(self, exchange_id: str) -> dict[str, tuple[int, ...]]:
        """The ids of an answer by tokenizer."""
        query = "SELECT tokenizer, ids FROM token_ids WHERE exchange = ?"
        rows = self.database.read(lambda db: db.execute(query, (exchange_id,)).fetchall())
        return {text(tokenizer): ids_from_blob(blob) for tokenizer, blob in rows}

    def search(self, words: str, limit: int = 20) -> list[tuple[SessionRow, Hit]]:
        """Exchanges that contain all `words`, the newest first, each with a session that has it."""
        words = well_formed(words)
        hits = self._hits(words, limit)
        if not hits:  # a damaged index may find nothing and say nothing
            self.database.check_index()
            hits = self._hits(words, limit)
        found = ((self.sessions_of(hit.tree), hit) for hit in hits)
        return [(rows[0], hit) for rows, hit in found if rows]

    def _hits(self, words: str, limit: int) -> list[Hit]:
        return self.database.read(lambda db: search(db, words, limit, is_indexed=self.database.is_indexed))

    # All-time totals

    def add_totals(self, totals: CacheTotals) -> None:
        """Add what the cache did for an answer to the sums over all time, and of today."""
        self.database.write(lambda db: add(db, totals, time.time()))

    def totals(self, since_s: float | None = None) -> CacheTotals:
        """What the cache did over all time, or from the day of `since_s` on, at most a month back."""
        return self.database.read(lambda db: sums(db, since_s))


def _matching(db: Connection, key: str, oneshots: bool) -> list[SessionRow]:
    """The session that is named `key`, or those whose id is `key` or begins with it."""
    searches = [("WHERE s.name = ?", key), ("WHERE s.id = ?", key)]
    if key == LATEST:
        order = LATEST_FIRST if oneshots else LATEST_FIRST.replace("BY ", "BY s.oneshot, ")
        searches.append((f"WHERE ? <> '' {order} LIMIT 1", key))
    if len(key) >= _MIN_PREFIX:
        searches.append(("WHERE substr(s.id, 1, length(?1)) = ?1", key))
    for condition, value in searches:
        rows = db.execute(SESSIONS + condition, (value,)).fetchall()
        if rows:
            return [session_from_row(row) for row in rows]
    return []


def _encoded(db: Connection, tree: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """By exchange and tokenizer, the ids of answers that another tokenizer generated."""
    query = """
        SELECT t.exchange, t.tokenizer, t.ids FROM token_ids t JOIN exchange e ON e.id = t.exchange
        WHERE e.tree = ? AND t.rowid > (SELECT min(rowid) FROM token_ids WHERE exchange = e.id)
    """
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for exchange, tokenizer, blob in db.execute(query, (tree,)):
        found.setdefault(text(exchange), {})[text(tokenizer)] = ids_from_blob(blob)
    return found
