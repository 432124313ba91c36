"""Writes a session's moves to the store as they happen, and branches when another terminal moved the session.

What can't be written is said once and does not stop the conversation; it is written with the next move for which that
is possible. Knows no backend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from kvchat.backends.base import Answer
from kvchat.backends.inspection import CacheTotals
from kvchat.chat.store import NameTakenError, SessionRow, Store
from kvchat.chat.tree import Exchange, new_id, title_of
from kvchat.errors import KvchatError

T = TypeVar("T")


def new_row(system: str | None, model: str) -> SessionRow:
    """A session in which nothing has been said yet."""
    return SessionRow(new_id(), new_id(), system=system, model=model, created=time.time())


class Journal:
    """One session's place in the store: its row, and the tip that the store was last told."""

    def __init__(self, store: Store, row: SessionRow, *, is_stored: bool = False) -> None:
        self.store = store
        self.row = row
        self.notices: list[str] = []
        self._is_stored = is_stored
        self._stored_tip = row.tip if is_stored else None
        self._unsaved: set[str] = set()  # exchanges whose answer is in the store only in part
        self._summaries: list[Sequence[Exchange]] = []  # paths to those that are not in the store
        self._has_failed = False

    def change(self, *, system: str | None, model: str, summary: str | None) -> None:
        """Note what the session's next messages are asked with; it is written with the next move."""
        self.row = replace(self.row, system=system, model=model, summary=summary)

    def mark(self, *, is_oneshot: bool) -> None:
        """Note whether the session is only asked without a dialogue; it is written with the next move."""
        self.row = replace(self.row, is_oneshot=is_oneshot)

    def move(self, path: Sequence[Exchange]) -> None:
        """The tip is now at the end of `path`. If another terminal moved the session since, it becomes a branch."""
        if not self._is_stored and not path:
            return
        if path and not self.row.title:
            self.row = replace(self.row, title=title_of(path[0].user.text))
        self.row = replace(self.row, tip=path[-1].id if path else None)
        self._attempt(lambda: self._moved(path))

    def fork(self, name: str | None, path: Sequence[Exchange]) -> None:
        """Go on as another session with the same tip; the one before stays where it is."""
        self.row = replace(self.row, id=new_id(), name=None, created=time.time())
        self._is_stored, self._stored_tip = False, None
        self.move(path)
        if name:
            self.rename(name)

    def rename(self, name: str) -> None:
        """Name the session. Raises UsageError if another one has the name."""
        if self._is_stored:
            self.store.rename(self.row.id, name)
        self.row = replace(self.row, name=name)

    def entitle(self, title: str) -> None:
        """Call the session so in lists, as long as it has no name."""
        self.row = replace(self.row, title=title)
        if self._is_stored:
            self._attempt(lambda: self.store.entitle(self.row.id, title))

    def incoming(self, exchange_id: str, text: str, reasoning: str) -> None:
        """An answer as far as it is."""
        self._attempt(lambda: self.store.save_incoming(exchange_id, text, reasoning))

    def answer(self, path: Sequence[Exchange]) -> None:
        """The answer at the end of `path` is what it is now."""
        self._unsaved.add(path[-1].id)
        self._attempt(lambda: self._answered(path))

    def summary(self, path: Sequence[Exchange]) -> None:
        """A summary stands at the end of `path`, beside what was said."""
        self._summaries.append(path)
        self._attempt(self._save_summaries)

    def pin(self, exchange: Exchange) -> None:
        """An exchange is pinned from now on, or no longer."""
        self._attempt(lambda: self.store.pin(exchange.id, is_pinned=exchange.is_pinned))

    def settle(self, path: Sequence[Exchange]) -> None:
        """Write what could not be written before, at the end of a conversation."""
        if path and (self._unsaved or self._stored_tip != self.row.tip):
            self.move(path)

    def encoded(self, exchange_id: str, tokenizer: str, ids: Sequence[int]) -> None:
        """An answer has these ids in another tokenizer as well."""
        self._attempt(lambda: self.store.add_token_ids(exchange_id, tokenizer, ids))

    def count(self, answer: Answer) -> None:
        """Add an answer to the totals over all time."""
        cache, asked = answer.cache, answer.usage.prompt_tokens
        totals = CacheTotals(asked, cache.live, cache.tiers, saved_s=cache.saved_s)
        self._attempt(lambda: self.store.add_totals(totals))

    def take_back(self, path: Sequence[Exchange], exchange_id: str) -> None:
        """Move to the end of `path` and forget an exchange that followed it."""
        self.move(path)
        self._attempt(lambda: self.store.take_back(self.row, exchange_id))
        if not path:
            self.row = replace(self.row, title="")

    def take_notices(self) -> list[str]:
        """What the user should know and was not told yet."""
        notices, self.notices = self.notices, []
        return notices

    def _moved(self, path: Sequence[Exchange]) -> None:
        if not self._named(lambda: self.store.move(self.row, path, self._stored_tip)):
            self.row = replace(self.row, id=new_id(), name=None, created=time.time())
            self.notices.append(
                f"another terminal went on with this session; this one goes on as a branch, session {self.row.id}"
            )
            assert self.store.move(self.row, path, None)
        self._is_stored, self._stored_tip = True, self.row.tip
        for end, exchange in enumerate(path, 1) if self._unsaved else ():
            if exchange.id in self._unsaved:
                self.store.save_answer(self.row, path[:end])
                self._unsaved.discard(exchange.id)
        self._save_summaries()

    def _save_summaries(self) -> None:
        while self._summaries:
            self.store.save_summary(self.row.tree, self._summaries[0])
            del self._summaries[0]

    def _answered(self, path: Sequence[Exchange]) -> None:
        if path[-1].id == self.row.tip and (self.row.tip != self._stored_tip or len(self._unsaved) > 1):
            self._moved(path)
        else:
            self._named(lambda: self.store.save_answer(self.row, path))
            self._unsaved.discard(path[-1].id)

    def _named(self, work: Callable[[], T]) -> T:
        """Do it; without the session's name, if another terminal gave that to another one first."""
        try:
            return work()
        except NameTakenError as error:
            self.notices.append(f"{error.message} by now; this one has no name now: /rename gives it one")
            self.row = replace(self.row, name=None)
            return work()

    def _attempt(self, work: Callable[[], object]) -> None:
        """Write; that it can't be done is said once, until all that was said is stored."""
        try:
            work()
        except KvchatError as error:
            if not self._has_failed:
                self.notices.append(f"this conversation is not saved: {error}")
            self._has_failed = True
        else:
            is_behind = self._is_stored and self._stored_tip != self.row.tip
            self._has_failed = self._has_failed and (bool(self._unsaved) or is_behind)
