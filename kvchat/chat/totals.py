"""What the cache did for all answers, over all time and day by day for a month: sums in the table `counter`; knows no session.

A count stands there under its name, and a second time as `name@day`, the day as a number since 1970, which earlier versions of
kvchat pass over.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvchat.backends.inspection import CacheTotals
from kvchat.chat.rows import number, text
from kvchat.chat.schema import Connection

DAY_S = 86_400.0
KEPT_DAYS = 31

_ADD = "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
_FORGET = (
    "DELETE FROM counter WHERE name LIKE '%@%' AND CAST(substr(name, instr(name, '@') + 1) AS INTEGER) <= ?"
)


def add(db: Connection, totals: CacheTotals, now_s: float) -> None:
    """Add to the sums over all time and to those of today; days of long ago are forgotten."""
    today = int(now_s // DAY_S)
    counts = [(name, value) for name, value in totals.counts().items() if value]
    db.executemany(_ADD, [*counts, *((f"{name}@{today}", value) for name, value in counts)])
    db.execute(_FORGET, (today - KEPT_DAYS,))


def sums(db: Connection, since_s: float | None = None) -> CacheTotals:
    """The sums over all time, or over the days from the one of `since_s` on, at most a month back."""
    found: dict[str, float] = {}
    for row in db.execute("SELECT name, value FROM counter").fetchall():
        name, _, day = text(row[0]).partition("@")
        first = None if since_s is None else int(since_s // DAY_S)
        if bool(day) == (first is not None) and (first is None or (day.isdecimal() and int(day) >= first)):
            found[name] = found.get(name, 0) + number(row[1])
    return CacheTotals.from_counts(dict(_whole(found.items())))


def _whole(counts: Iterable[tuple[str, float]]) -> Iterable[tuple[str, float]]:
    kinds = {name: type(value) for name, value in CacheTotals().counts().items()}
    return ((name, kinds.get(name, int)(value)) for name, value in counts)
