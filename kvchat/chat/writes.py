"""What a conversation's moves change in the tables; each function runs in one transaction. Opens no file."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvchat.backends.base import well_formed
from kvchat.chat.rows import SessionRow, ids_to_blob, options_json, statistics_json, text
from kvchat.chat.schema import Connection
from kvchat.chat.tree import Exchange
from kvchat.errors import UsageError

LATEST = "latest"
"""What may be said instead of a session's id: the one that was changed last."""
NAME_LENGTH = 100
"""Longest name of a session, in characters."""

_BREAKS = ("Cc", "Zl", "Zp")  # controls, separators of lines and of paragraphs
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol that show nothing
_SHOWN_AS = 40


class NameTakenError(UsageError):
    """Another session has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"another session is called {name!r}", "choose another name, or rename that one")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What went with a session. `kept` of its exchanges stay, because the sessions `sharers` have them too.

    `kv_tips` are (model's fingerprint, block hash) up to which the cache may have KV of what went.
    """

    kept: int
    sharers: tuple[str, ...]
    kv_tips: frozenset[tuple[str, str]]


def move(db: Connection, session: SessionRow, path: Sequence[Exchange], expected: str | None) -> bool:
    """Set a session's tip to the end of `path`, adding what is missing; False if its tip is not `expected`."""
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
        "rank = excluded.rank",
        "oneshot = excluded.oneshot",
        "summary = excluded.summary",
        *changes,
    )
    if session.name and not db.execute("SELECT 1 FROM session WHERE id = ?", (session.id,)).fetchone():
        check_name(db, session.name, session.id)
    row = session.id, session.tree, session.title, session.name, session.tip, session.system, session.model
    db.execute(
        "INSERT INTO session (id, tree, title, name, tip, system, model, created, updated, oneshot, summary, rank)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(rank), 0) + 1 FROM session))"
        f" ON CONFLICT (id) DO UPDATE SET {', '.join(what)}",
        (*row, session.created, time.time(), session.is_oneshot, session.summary),
    )


def fit_name(name: str) -> str:
    """A session's name as it can be written: one line that can be seen. Raises UsageError for another."""
    name = well_formed(name)
    kinds = [unicodedata.category(letter) for letter in name if letter not in _BLANK]
    is_seen = any(kind[0] in "LNPS" for kind in kinds) and not any(kind in _BREAKS for kind in kinds)
    if not is_seen or len(name) > NAME_LENGTH or name == LATEST or name.startswith("-"):
        shown = name if len(name) <= _SHOWN_AS else name[: _SHOWN_AS - 1] + "…"
        raise UsageError(
            f"a session can't be called {shown!r}",
            f"choose another name: one line, at most {NAME_LENGTH} characters",
        )
    return name


def check_name(db: Connection, name: str, session_id: str) -> None:
    """Raise NameTakenError if another session has the name."""
    if db.execute("SELECT 1 FROM session WHERE name = ? AND id <> ?", (name, session_id)).fetchone():
        raise NameTakenError(name)


def _add_missing(db: Connection, tree: str, path: Sequence[Exchange]) -> None:
    """Add the end of a path that is not stored yet; all of it after the file was set aside."""
    first = len(path)
    while first and not db.execute("SELECT 1 FROM exchange WHERE id = ?", (path[first - 1].id,)).fetchone():
        first -= 1
    for depth, exchange in enumerate(path[first:], first + 1):
        asked = exchange.model, options_json(exchange.options), exchange.created
        kind = exchange.is_pinned, exchange.follows
        db.execute(
            "INSERT INTO exchange (id, tree, parent, depth, user, model, options, created, pinned, follows)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (exchange.id, tree, exchange.parent, depth, exchange.user.text, *asked, *kind),
        )
        _put_answer(db, exchange)


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


def save_answer(db: Connection, session: SessionRow, path: Sequence[Exchange]) -> None:
    """Save the answer at the end of `path`, and what is missing before it."""
    _add_missing(db, session.tree, path)
    _put_answer(db, path[-1])
    _put_session(db, replace(session, tip=path[-1].id))


def save_summary(db: Connection, tree: str, path: Sequence[Exchange]) -> None:
    """Save a summary that stands beside what was said, at the end of `path`."""
    _add_missing(db, tree, path)


def pin(db: Connection, exchange_id: str, *, is_pinned: bool) -> None:
    """Keep an exchange word for word in every prompt, or no longer."""
    db.execute("UPDATE exchange SET pinned = ? WHERE id = ?", (is_pinned, exchange_id))


def take_back(db: Connection, session: SessionRow, exchange_id: str) -> None:
    """Delete an exchange that nothing follows, and the session if nothing else was said in it."""
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


def delete(db: Connection, session_id: str) -> Deleted:
    """Delete a session, and of its tree what no other session has: its path, as far as it is its own, and what follows."""
    query = "DELETE FROM session WHERE id = ? RETURNING tree, tip"
    tree, tip = db.execute(query, (session_id,)).fetchone() or ("", None)
    parents = dict(db.execute("SELECT id, parent FROM exchange WHERE tree = ?", (tree,)).fetchall())
    others = db.execute("SELECT coalesce(name, id), tip FROM session WHERE tree = ?", (tree,)).fetchall()
    path, kept = _path(parents, tip), set().union(*(_path(parents, other) for _, other in others))
    gone = _with_followers(parents, path - kept) if others else set(parents)
    kv_tips = [
        row
        for each in gone
        for row in db.execute("SELECT root, tip FROM kv_tip WHERE exchange = ?", (each,)).fetchall()
    ]
    db.execute("PRAGMA defer_foreign_keys = ON")
    db.executemany("DELETE FROM exchange WHERE id = ?", [(each,) for each in gone])
    sharers = tuple(text(name) for name, other in others if path & _path(parents, other))
    return Deleted(len(path & kept), sharers, frozenset(kv_tips))


def _path(parents: Mapping[str, str | None], tip: str | None) -> set[str]:
    """The exchanges from a tip up to the root, or to where a damaged tree ends."""
    path: set[str] = set()
    while tip is not None and tip in parents and tip not in path:
        path.add(tip)
        tip = parents[tip]
    return path


def _with_followers(parents: Mapping[str, str | None], exchanges: Iterable[str]) -> set[str]:
    """Exchanges and all that was said behind them."""
    children: dict[str | None, list[str]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    found: set[str] = set()
    waiting = list(exchanges)
    while waiting:
        exchange = waiting.pop()
        if exchange not in found:
            found.add(exchange)
            waiting.extend(children.get(exchange, ()))
    return found
