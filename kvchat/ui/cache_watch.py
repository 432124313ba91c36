"""Looks at the cache after each answer: for the toolbar, and to add what was stored to the totals of all time."""

from __future__ import annotations

from contextlib import suppress

from kvchat.backends.inspection import CacheTotals, CacheView
from kvchat.chat.session import Session
from kvchat.errors import KvchatError
from kvchat.ui.figures import percent_text, tier_text

_ADDED = (
    "stored_blocks",
    "stored_bytes",
    "written_bytes",
    "evicted_blocks",
    "evicted_files",
    "corrupt_files",
    "store_s",
)
"""What an answer does not say itself; the session adds what was asked, hit and saved (less loading) as it ends."""


class CacheWatch:
    """What the cache looked like last. `look` waits for a running answer; call it in a thread that may."""

    def __init__(self, session: Session) -> None:
        self.view: CacheView | None = None
        self._session = session

    def look(self) -> None:
        """Ask again, and add what happened since. What can't be asked or written is left out."""
        with suppress(KvchatError):
            view, before = self._session.backend.cache(()), self.view
            self.view = view
            self._session.store.add_totals(_since(before, view))


def cache_part(view: CacheView) -> str:
    """The toolbar's part: how much of the budgets is used."""
    shares = [
        f"{tier_text(use.tier)} {percent_text(use.used_bytes / use.budget_bytes)}"
        for use in view.tiers
        if use.budget_bytes
    ]
    return "cache " + (" ".join(shares) or view.mode)


def _since(before: CacheView | None, now: CacheView) -> CacheTotals:
    """What was added to the engine's totals; an engine that was started again counts from 0."""
    new = now.process.counts()
    old = before.process.counts() if before else dict.fromkeys(new, 0)
    is_same = all(new.get(name, 0) >= count for name, count in old.items())
    return CacheTotals(**{name: new[name] - (old[name] if is_same else 0) for name in _ADDED})
