"""Looks at the cache after each answer: for the toolbar, and to add what was stored to the totals of all time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict

from kvchat.backends.inspection import CacheTotals, CacheView
from kvchat.chat.session import Session
from kvchat.errors import KvchatError
from kvchat.ui.figures import percent_text

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
        """Ask anew, and add what happened since. What can't be asked or written is left out."""
        with suppress(KvchatError):
            view, before = self._session.backend.cache(()), self.view
            self.view = view
            self._session.store.add_totals(_since(before, view))


def cache_part(view: CacheView) -> str:
    """The toolbar's part: how much of the budgets is used."""
    tiers = (("RAM", view.ram_used, view.ram_budget), ("disk", view.disk_used, view.disk_budget))
    shares = [f"{name} {percent_text(used / budget)}" for name, used, budget in tiers if budget]
    return "cache " + (" ".join(shares) or view.mode)


def _since(before: CacheView | None, now: CacheView) -> CacheTotals:
    """What was added to the engine's totals; an engine that was started again counts from 0."""
    new = asdict(now.process)
    old = asdict(before.process) if before else dict.fromkeys(new, 0)
    is_same = all(new[name] >= old[name] for name in new)
    return CacheTotals(**{name: new[name] - (old[name] if is_same else 0) for name in _ADDED})
