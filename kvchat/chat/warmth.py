"""How many tokens of saved sessions the cache still holds: look-ups of stored tips. Knows no cache, only what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kvchat.chat.schema import Connection
from kvchat.chat.store import SessionRow, Store

StoredTips = Callable[[], Mapping[tuple[str, str], int]]
"""Tokens that are stored up to a tip, by (model's fingerprint, block hash), as the cache on disk has them now."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """Of a session's path `tokens` are stored; `was_stored` tells nothing stored from all evicted."""

    tokens: int = 0
    was_stored: bool = False

    def __str__(self) -> str:
        """`1842 warm`, `evicted`, or nothing where nothing was ever stored."""
        if self.tokens:
            return f"{self.tokens} warm"
        return "evicted" if self.was_stored else ""


def warmth(
    store: Store, rows: Iterable[SessionRow], stored: Mapping[tuple[str, str], int]
) -> dict[str, Warmth]:
    """Each session's warmth by its id, for the model that holds most of it."""
    return store.database.read(lambda db: _warmth(db, [row for row in rows if row.tip], stored))


def _warmth(
    db: Connection, rows: list[SessionRow], stored: Mapping[tuple[str, str], int]
) -> dict[str, Warmth]:
    held, trees = _held(db, stored)
    was_stored = _were_stored(db, [row.id for row in rows])
    cold = [row.id for row in rows if row.tip not in held and row.tree in trees]
    beginnings: dict[str, int] = dict.fromkeys(was_stored, 0)
    for session, exchange in _paths(db, cold):
        if exchange in held:
            beginnings[session] = max(beginnings.get(session, 0), held[exchange])
    return {
        row.id: Warmth(held.get(row.tip or "") or beginnings.get(row.id, 0), row.id in beginnings)
        for row in rows
    }


def _held(db: Connection, stored: Mapping[tuple[str, str], int]) -> tuple[dict[str, int], set[str]]:
    """Tokens by exchange, for those up to which something is stored; and the trees that they are in."""
    query = """
        SELECT k.exchange, e.tree, k.root, k.tip FROM json_each(?) j
        JOIN kv_tip k ON k.tip = j.value JOIN exchange e ON e.id = k.exchange
    """
    held: dict[str, int] = {}
    trees: set[str] = set()
    for exchange, tree, root, tip in db.execute(query, (json.dumps([tip for _, tip in stored]),)):
        if (root, tip) in stored:
            held[exchange] = max(held.get(exchange, 0), stored[root, tip])
            trees.add(tree)
    return held, trees


def _were_stored(db: Connection, ids: list[str]) -> list[str]:
    """The sessions with something stored for their last answer, or the one before if that was broken off."""
    query = """
        SELECT s.id FROM json_each(?) j JOIN session s ON s.id = j.value JOIN exchange e ON e.id = s.tip
        WHERE EXISTS (SELECT 1 FROM kv_tip WHERE exchange IN (e.id, e.parent))
    """
    return [session for (session,) in db.execute(query, (json.dumps(ids),))]


def _paths(db: Connection, ids: list[str]) -> list[tuple[str, str]]:
    """(session, exchange) for all that lies on the sessions' paths."""
    query = """
        WITH RECURSIVE path(session, exchange) AS (
            SELECT s.id, s.tip FROM json_each(?) j JOIN session s ON s.id = j.value
            UNION  -- which ends also where a damaged file has a circle of parents
            SELECT path.session, e.parent FROM path JOIN exchange e ON e.id = path.exchange
            WHERE e.parent IS NOT NULL
        )
        SELECT session, exchange FROM path
    """
    return db.execute(query, (json.dumps(ids),)).fetchall()
