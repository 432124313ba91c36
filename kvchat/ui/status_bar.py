"""The toolbar's line: what the engine does, how long the conversation is, what the cache holds. Draws nothing.

Lives in the event loop's thread; what has to wait is done in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from kvchat.backends.base import Phase
from kvchat.chat.session import Session
from kvchat.config import Config
from kvchat.errors import KvchatError
from kvchat.ui.cache_watch import CacheWatch, cache_part
from kvchat.ui.engine_watch import EngineWatch
from kvchat.ui.live_answer import LiveAnswer
from kvchat.ui.render import phase_text, toolbar
from kvchat.ui.turns import Turns


class StatusBar:
    """What is true of a session now, in one line; `redraw` is called when that has changed."""

    def __init__(
        self,
        session: Session,
        config: Config,
        engine: EngineWatch,
        turns: Turns,
        live: LiveAnswer,
        redraw: Callable[[], None],
    ) -> None:
        self._session = session
        self._config = config
        self._engine = engine
        self._turns = turns
        self._live = live
        self._redraw = redraw
        self._cache = CacheWatch(session)
        self._counted: tuple[object, int] = (None, 0)  # a place in the tree, and the tokens up to it
        self._seen: object = session.place  # the place that was looked at last

    def line(self, columns: int, mode: Sequence[str] = (), sign: str = "") -> str:
        """The line; `mode` is the input's, in a word, and `sign` says how far what is typed was computed."""
        status = self._engine.status()
        name = self._engine.name(otherwise=self._config.model.name)
        parts = [*mode, name, sign or phase_text(status)]
        if self._session.is_shortening or self._session.is_titling:
            parts = [*mode, name, sign or ("summarising" if self._session.is_shortening else "ready")]
        elif status.phase in (Phase.PREFILLING, Phase.DECODING):
            parts = [phase_text(status), "Ctrl-C stops", *self._live.progress, name]
        if used := self._used():
            parts.append(f"ctx {used}/{self.context}")
        if self._session.totals.answers:
            parts.append(f"hit {100 * self._session.totals.hit_rate:.0f}%")
        if self._cache.view:
            parts.append(cache_part(self._cache.view))
        return toolbar(parts, columns)

    @property
    def context(self) -> int:
        """The model's context in tokens; 0 before anybody knows."""
        info = self._engine.info
        return info.context if info else self._config.model.context or 0

    def look_at_cache(self) -> None:
        """See what the cache has stored by now."""
        self._turns.start(self._look_at_cache)

    def recount(self, *, is_answered: bool = False) -> None:
        """Count the conversation again if it moved; an answer to a message tells its length itself."""
        if self._seen != (place := self._session.place):
            self._seen = place
            if not is_answered:
                self._turns.start(self._count)

    def _look_at_cache(self) -> None:
        """In a thread, for it waits."""
        self._cache.look()
        self._turns.hand(self._redraw)

    def _used(self) -> int:
        """Tokens of the conversation: as they were counted after a move, or as the last answer left them."""
        place, tokens = self._counted
        if place == self._session.place:
            return tokens
        return self._session.last.usage.total_tokens if self._session.last else 0

    def _count(self) -> None:
        """In a thread, for it waits: how long the conversation is where it moved to."""
        session, place, history = self._session, self._session.place, self._session.history
        with suppress(KvchatError):
            view = session.backend.cache(history, session.chosen, has_rows=False) if history else None
            self._counted = place, view.prompt_tokens if view else 0
            self._turns.hand(self._redraw)
